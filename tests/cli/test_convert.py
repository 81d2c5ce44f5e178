"""`suri convert` as a person types it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import make_model, write_tokenizer
from suri.cli.main import main, overview


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A model in fp32."""
    from safetensors.torch import load_file, save_file

    folder = write_tokenizer(make_model(tmp_path_factory.mktemp("model")))
    file = folder / "model.safetensors"
    save_file({name: tensor.float() for name, tensor in load_file(file).items()}, file)
    return folder


@pytest.mark.slow
def test_the_last_line_says_pass_and_the_next_format_takes_it(model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SURI_CACHE", str(tmp_path / "cache"))
    sources = {"meta": str(model), "gguf": "out-meta", "hf": "out-gguf/model.gguf"}
    for to, source in sources.items():
        main(["convert", source, "--to", to, f"--output-dir=out-{to}", "--dtype", "float32"])
        lines = capsys.readouterr().out.splitlines()
        assert lines[-1] == f"PASS {to} out-{to}"
        assert len(lines) >= 3
        assert {line[:5] for line in lines[:-1]} <= {"ok   ", "note:"}
        assert json.loads(Path(f"out-{to}/certificate.json").read_text())["adapter"] is None
        main(["verify", f"out-{to}"])
        assert capsys.readouterr().out.splitlines()[-1] == f"PASS {to} out-{to}"
    main(["convert", "out-hf", "--to", "hf", "--output_dir", "again"])
    from safetensors.torch import load_file

    first, last = load_file(model / "model.safetensors"), load_file("again/model.safetensors")
    assert set(first) == set(last)
    assert all(first[name].equal(last[name]) for name in first)


def test_a_hub_id_is_taken_from_the_cache(model, tmp_path, monkeypatch, capsys):
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repository, commit = tmp_path / "hub" / "models--alpaca--tiny", "a" * 40
    shutil.copytree(model, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    out = tmp_path / "out"
    main(["convert", "alpaca/tiny", "--to", "meta", "--output_dir", str(out)])
    assert capsys.readouterr().out.splitlines()[-1] == f"PASS meta {out}"
    assert "# alpaca/tiny, in another format" in (out / "README.md").read_text()


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["{out}/nowhere", "--to", "hf", "--output_dir", "{out}"], "no such model folder"),
        ([" ", "--to", "hf", "--output_dir", "{out}"], "holds no model"),
        (["{model}", "--to", "hf", "--output_dir", "{model}"], "exists already"),
        (["{model}", "--to", "onnx", "--output_dir", "{out}"], "onnx"),
        (["{model}", "--to", "hf"], "output_dir"),
        (["{run}", "--to", "hf", "--output_dir", "{out}"], "suri merge"),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_2(
    model, tmp_path, monkeypatch, capsys, flags, complaint
):
    run = tmp_path / "run"
    run.mkdir()
    (run / "adapter_config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    words = [word.format(model=model, run=run, out=tmp_path / "out") for word in flags]
    with pytest.raises(SystemExit) as stopped:
        main(["convert", *words])
    assert stopped.value.code == 2
    said = capsys.readouterr()
    assert complaint in said.err + said.out
    assert "Traceback" not in said.err
    assert not (tmp_path / "out").exists()


def test_help_lists_it_and_loads_no_torch():
    assert "\n  convert " in overview()
    code = (
        "import sys\nfrom suri.cli.main import main\n"
        "try:\n    main(['convert', '--help'])\nexcept SystemExit:\n    pass\n"
        "print('heavy:', sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.splitlines()[-1] == "heavy: []"
    assert "FROM" in said.stdout
