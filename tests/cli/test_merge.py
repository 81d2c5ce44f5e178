"""`suri merge` and `suri verify` as a person types them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import lacks, make_model, write_tokenizer
from suri.cli.main import main


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> tuple[Path, Path]:
    """A base in fp32, and an adapter that knows where it is."""
    import torch
    from safetensors.torch import load_file, save_file

    from suri.model.adapter import initial_adapter
    from suri.model.adapter_file import write_adapter
    from suri.model.config import read_config
    from suri.model.weights import base_identity

    base = write_tokenizer(make_model(tmp_path_factory.mktemp("base")))
    file = base / "model.safetensors"
    save_file({name: tensor.float() for name, tensor in load_file(file).items()}, file)
    adapter = initial_adapter(
        read_config(base),
        r=3,
        alpha=7.0,
        targets=("v_proj", "gate_proj"),
        seed=1,
        base=base_identity(base, "none"),
    )
    for _, b in adapter.tensors.values():
        b.copy_(torch.linspace(-0.3, 0.4, b.numel()).view_as(b))
    run = tmp_path_factory.mktemp("run")
    write_adapter(run, adapter)
    return base, run


@pytest.mark.slow
@pytest.mark.parametrize("to", ["hf", "meta", "gguf"])
def test_the_last_line_says_pass_and_where(folders, tmp_path, monkeypatch, capsys, to):
    monkeypatch.chdir(tmp_path)
    main(["merge", str(folders[1]), "--to", to, "--output-dir=out", "--dtype", "float16"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == f"PASS {to} out"
    by_llama_cpp = to == "gguf" and not lacks("xllamacpp")
    assert all(line.startswith("ok   ") for line in lines[: 3 + by_llama_cpp])
    assert len(lines) == 4 + (to == "gguf")
    if to == "gguf" and not by_llama_cpp:
        assert lines[3].startswith("note: llama.cpp did not read the file")
    assert json.loads((tmp_path / "out" / "certificate.json").read_text())["dtype"] == "float16"
    main(["verify", "out"])
    assert capsys.readouterr().out.splitlines()[-1] == f"PASS {to} out"


@pytest.mark.slow
@pytest.mark.parametrize("to", ["hf", "meta", "gguf"])
def test_a_merge_without_a_certificate_is_held_against_its_adapter(folders, tmp_path, capsys, to):
    import torch

    from suri.model.adapter_file import read_adapter, write_adapter

    base, run = folders
    out = tmp_path / "out"
    main(["merge", str(run), "--to", to, "--output_dir", str(out), "--dtype", "float16"])
    (out / "certificate.json").unlink()
    capsys.readouterr()
    main(["verify", str(out), "--adapter", str(run)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == f"PASS {to} {out}"
    assert len(lines) >= 4
    assert all(line.startswith("ok   ") for line in lines[:-1])
    assert not (out / "certificate.json").exists()
    other = read_adapter(run)
    for _, b in other.tensors.values():
        b.add_(torch.ones_like(b))
    write_adapter(tmp_path / "other", other)
    with pytest.raises(SystemExit) as stopped:
        main(["verify", str(out), "--adapter", str(tmp_path / "other"), "--base_model", str(base)])
    assert stopped.value.code == 6
    said = capsys.readouterr()
    assert said.out.startswith("FAIL")
    assert "is not this base with this adapter" in said.err


def test_a_model_of_another_shape_is_named(folders, tmp_path, capsys):
    larger = make_model(tmp_path / "larger", vocab_size=132)
    with pytest.raises(SystemExit) as stopped:
        main(["verify", str(larger), "--adapter", str(folders[1])])
    assert stopped.value.code == 6
    said = capsys.readouterr().err
    assert "model.embed_tokens.weight is (132, 48), not (131, 48)" in said
    with pytest.raises(SystemExit) as stopped:
        main(["verify", str(tmp_path / "nowhere"), "--adapter", str(folders[1])])
    assert stopped.value.code == 2


def test_a_broken_folder_has_exit_code_6(folders, tmp_path, capsys):
    out = tmp_path / "out"
    main(["merge", f"{folders[1]} ", "--to", "hf", "--output_dir", str(out), "--dtype", "float32"])
    (out / "config.json").write_text("{}")
    with pytest.raises(SystemExit) as stopped:
        main(["verify", str(out)])
    assert stopped.value.code == 6
    assert "config.json has changed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["{run}", "--to", "hf", "--output_dir", "{run}"], "exists already"),
        (["{base}", "--to", "hf", "--output_dir", "{out}"], "is not an adapter"),
        (["{out}/nowhere", "--to", "meta", "--output_dir", "{out}"], "no such folder"),
        (
            ["{run}", "--to", "meta", "--output_dir", "{out}", "--base_model", "{out}/gone"],
            "no such model folder",
        ),
        (["{run}", "--to", "onnx", "--output_dir", "{out}"], "onnx"),
        (["{run}", "--to", "hf", "--output_dir", "{out}", "--dtype", "q8_0"], "q8_0 are not"),
        (["{run}", "--to", "hf", "--output_dir", "{run}/base.json/x"], "is a file"),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_2(folders, tmp_path, capsys, flags, complaint):
    base, run = folders
    words = [word.format(base=base, run=run, out=tmp_path / "out") for word in flags]
    with pytest.raises(SystemExit) as stopped:
        main(["merge", *words])
    assert stopped.value.code == 2
    said = capsys.readouterr()
    assert complaint in said.err + said.out
    assert "Traceback" not in said.err
    assert not (tmp_path / "out").exists()


def test_help_loads_neither_torch_nor_transformers():
    code = (
        "import sys\nfrom suri.cli.main import main\n"
        "try:\n    main(['merge', '--help'])\nexcept SystemExit:\n    pass\n"
        "print('heavy:', sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.splitlines()[-1] == "heavy: []"
    assert "--merge_base" in said.stdout
