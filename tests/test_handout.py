"""The commands that the handout prints, typed as they stand there, on a small base."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from conftest import make_model, write_tokenizer
from suri.cli.main import main
from suri.export.publish import write_merge
from suri.export.verify import certify_other
from suri.files import write_json
from suri.model.adapter import initial_adapter
from suri.model.adapter_file import read_adapter, write_adapter
from suri.model.config import read_config
from suri.model.weights import base_identity, open_weights
from suri.reading import read_json
from suri.recipe import recipe_from_toml

ROOT = Path(__file__).parents[1]
BASE = "/mnt/model/llama-7b-hf0527"


def printed(document: str, program: str) -> str:
    """The shell command of `program` in a document, backslashes and all."""
    text = (ROOT / "docs" / document).read_text(encoding="utf-8")
    commands = re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)
    return next(command for command in commands if program in command)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the scripts and the data, as a checkout's root has them."""
    folder = tmp_path_factory.mktemp("desk")
    for name in ("finetune.py", "generate.py", "mini_data.json"):
        shutil.copy(ROOT / name, folder / name)
    return folder


def shell(command: str, desk: Path, tiny: Path) -> subprocess.Popen[str]:
    """Start a printed command in bash; only the base is another."""
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    return subprocess.Popen(
        ["bash", "-c", command.replace(BASE, str(tiny))], cwd=desk, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def finetuned(desk: Path, tiny: Path) -> Path:
    process = shell(printed("handout.md", "finetune.py"), desk, tiny)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return desk / "lora-alpaca"


@pytest.mark.slow
def test_finetune_as_printed(finetuned: Path) -> None:
    recipe = recipe_from_toml(finetuned / "recipe.toml")
    assert (recipe.batch_size, recipe.micro_batch_size, recipe.val_set_size) == (2, 1, 2)
    assert (recipe.lora_dropout, recipe.train_on_inputs) == (0.05, True)
    assert recipe.lora_target_modules == ("q_proj", "v_proj")
    adapter = read_adapter(finetuned)
    assert any(bool(b.any()) for _, b in adapter.tensors.values())
    assert len((finetuned / "held_out.jsonl").read_text().splitlines()) == 2


@pytest.mark.slow
def test_generate_as_printed_opens_the_page(finetuned: Path, desk: Path, tiny: Path) -> None:
    command = printed("handout.md", "generate.py")
    assert "'./lora-alpaca '" in command
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = shell(f"{command.rstrip()} --port {port}", desk, tiny)
    try:
        page = wait_for(f"http://127.0.0.1:{port}/", process)
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        output, _ = process.communicate(timeout=60)
    assert "Suri" in page, output


@pytest.mark.slow
def test_merges_as_printed(finetuned: Path, desk: Path, tiny: Path) -> None:
    commands = printed("handout.md", "suri merge").strip().splitlines()
    assert [("--to hf" in c, "--to meta" in c) for c in commands] == [(True, False), (False, True)]
    process = shell(commands[0], desk, tiny)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert output.rstrip().splitlines()[-1] == "PASS hf alpaca-lora-hf"


def by_the_handouts_script(script: str, base: Path, adapter: Path, out: Path) -> None:
    """Run one of the two scripts of 2.4, rewritten for these folders, in a process of its own."""
    subprocess.run(
        [sys.executable, str(ROOT / "tests" / "handout_merges.py"), script, base, adapter, out],
        check=True, capture_output=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A base as the lab's (fp16, keys for every head, a row for each token), and an adapter."""
    folder = tmp_path_factory.mktemp("lab")
    base = folder / "base"
    # transformers' LlamaTokenizer adds <unk> to this tokenizer's 99 tokens.
    write_tokenizer(make_model(base, vocab_size=100, num_key_value_heads=6, rms_norm_eps=1e-6))
    file = base / "model.safetensors"
    tensors = {name: tensor.half() for name, tensor in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})
    write_json(base / "config.json", read_json(base / "config.json") | {"dtype": "float16"})
    adapter = initial_adapter(
        read_config(base), r=8, alpha=16.0, targets=("q_proj", "v_proj"), seed=1,
        base=base_identity(base, "none"),
    )  # fmt: skip
    generator = torch.Generator().manual_seed(3)
    for _, b in adapter.tensors.values():
        b.copy_(torch.randn(b.shape, generator=generator) * 0.1)
    write_adapter(folder / "adapter", adapter)
    return base, folder / "adapter"


@pytest.mark.slow
def test_merge_and_unload_gives_our_merge_within_a_rounding(
    lab: tuple[Path, Path], tmp_path: Path
) -> None:
    base, adapter = lab
    by_the_handouts_script("merge_and_unload", base, adapter, tmp_path / "theirs")
    write_merge("hf", base, adapter, tmp_path / "ours", "bfloat16")
    theirs, ours = (load_file(tmp_path / name / "model.safetensors") for name in ("theirs", "ours"))
    assert theirs.keys() == ours.keys()
    source = load_file(base / "model.safetensors")
    changed = 0
    for name, found in theirs.items():
        assert found.dtype == ours[name].dtype == torch.bfloat16
        # peft rounds three times: the base, the delta, their sum. The spacing is that of the
        # largest of the three, 2^-7 of its power of two.
        start, sum_ = source[name].float(), ours[name].float()
        largest = torch.stack([start, sum_, sum_ - start]).abs().amax(0)
        spacing = torch.exp2(torch.floor(torch.log2(largest.clamp_min(2.0**-126))) - 7)
        assert ((found.float() - sum_).abs() / spacing).max() <= 2, name
        if torch.equal(ours[name], source[name].bfloat16()):
            assert torch.equal(found, ours[name]), name
        else:
            moved = ((sum_ - start).abs() / spacing).max()
            assert moved > 8, (name, moved)  # the adapter is no rounding
            changed += 1
    assert changed == 2 * 3  # q and v of three layers
    # The certificate asks for one rounding where peft rounds thrice; the logits do not mind.
    targets, *others = certify_other(tmp_path / "theirs", adapter, base).checks
    assert not targets.passed
    assert all(check.passed for check in others)


@pytest.mark.slow
def test_the_state_dict_script_exports_the_untouched_base(
    lab: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, adapter = lab
    with pytest.raises(TypeError, match="load_in_8bit"):  # where it stops as it is printed
        transformers.LlamaForCausalLM.from_pretrained(base, load_in_8bit=False)
    theirs = tmp_path / "alpaca-lora-statedict"
    by_the_handouts_script("state_dict", base, adapter, theirs)
    found, source = open_weights(theirs), load_file(base / "model.safetensors")
    assert set(found) == set(source)
    assert all(torch.equal(found[name], tensor) for name, tensor in source.items())
    command = printed("handout.md", "suri verify").strip().split()
    assert command[:3] == ["suri", "verify", "./alpaca-lora-statedict"]
    with pytest.raises(SystemExit) as stopped:
        main(["verify", str(theirs), "--adapter", str(adapter), "--base_model", str(base)])
    assert stopped.value.code == 6
    said = capsys.readouterr()
    verdicts = [line.split()[0] for line in said.out.splitlines()]
    assert verdicts == ["FAIL", "ok", "FAIL"]  # the targets, the other tensors, the logits
    assert "is not this base with this adapter" in said.err
    ours = tmp_path / "ours"
    write_merge("meta", base, adapter, ours, "float16")
    capsys.readouterr()
    main(["verify", str(ours), "--adapter", str(adapter), "--base_model", str(base)])
    assert capsys.readouterr().out.splitlines()[-1] == f"PASS meta {ours}"


def wait_for(address: str, process: subprocess.Popen[str]) -> str:
    """What the address answers as soon as it does."""
    for _ in range(600):
        assert process.poll() is None, process.communicate()[0]
        try:
            with urllib.request.urlopen(address, timeout=5) as answer:
                return str(answer.read().decode())
        except OSError:
            time.sleep(0.1)
    raise AssertionError(f"{address} did not answer within a minute")
