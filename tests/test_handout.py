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

from suri.model.adapter import read_adapter
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


def test_finetune_as_printed(finetuned: Path) -> None:
    recipe = recipe_from_toml(finetuned / "recipe.toml")
    assert (recipe.batch_size, recipe.micro_batch_size, recipe.val_set_size) == (2, 1, 2)
    assert (recipe.lora_dropout, recipe.train_on_inputs) == (0.05, True)
    assert recipe.lora_target_modules == ("q_proj", "v_proj")
    adapter = read_adapter(finetuned)
    assert any(bool(b.any()) for _, b in adapter.tensors.values())
    assert len((finetuned / "held_out.jsonl").read_text().splitlines()) == 2


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


def test_merges_as_printed(finetuned: Path, desk: Path, tiny: Path) -> None:
    commands = printed("handout.md", "suri merge").strip().splitlines()
    assert [("--to hf" in c, "--to meta" in c) for c in commands] == [(True, False), (False, True)]
    process = shell(commands[0], desk, tiny)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert output.rstrip().splitlines()[-1] == "PASS hf alpaca-lora-hf"


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
