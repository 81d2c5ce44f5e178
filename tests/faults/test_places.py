"""Disks that fill, vanish or turn read-only, secrets in the environment, and no network."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from children import mine, no_answers, recipe, rows, run, start, wait, whole

from conftest import missing
from suri.model.adapter_file import WEIGHTS_FILE
from suri.recipe import Recipe
from suri.train.run import train

SECRET = "canary-5f1e9c"
SECRETS = (
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "WANDB_API_KEY",
    "OPENAI_API_KEY",
    "AWS_SECRET_KEY",
)


def mount(*words: object) -> None:
    """A real mount; only root may make one."""
    done = subprocess.run(["mount", *map(str, words)], capture_output=True, text=True, check=False)
    if done.returncode:
        missing(f"needs the right to mount: {done.stderr.strip()}")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own that a test may fill or take away."""
    place = tmp_path / "disk"
    place.mkdir()
    mount("-t", "tmpfs", "-o", "size=2m", "tmpfs", place)
    yield place
    subprocess.run(["umount", "-l", str(place)], capture_output=True, check=False)


def states(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").glob("step-*"))


def at_step(number: int, do):
    """A listener that does something once a step is done."""

    def listen(event, numbers):
        if event == "step" and numbers["step"] == number:
            do()

    return listen


def told(recipe: Recipe, tmp_path: Path, listen=lambda *_: None) -> tuple[int, str]:
    """Train in a child; its exit code and what it printed."""
    log = tmp_path / "log"

    def work():
        sys.stdout = sys.stderr = log.open("w")
        train(recipe, listen, no_answers)

    return wait(start(work)), log.read_text()


@pytest.mark.slow
def test_a_full_disk_ends_the_run_with_what_was_saved_intact(
    mine: Recipe, whole: Path, disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real disk that fills up: something else writes on it until nothing is left."""
    monkeypatch.setattr("suri.train.run_folder.SPACE_BYTES", 0)
    mine = replace(mine, output_dir=str(disk / "run"))

    def fill():
        with (disk / "other").open("wb") as stream:
            try:
                while True:
                    stream.write(b"x" * 4096)
                    stream.flush()
            except OSError:
                return

    code, said = told(mine, tmp_path, at_step(5, fill))
    assert code == 2
    assert "No space left" in said
    assert "Traceback" not in said
    assert states(disk / "run") == ["step-000002", "step-000004"]
    (disk / "other").unlink()
    assert run(Recipe(output_dir=str(disk / "run"), resume=True)) == 0
    assert (disk / "run" / WEIGHTS_FILE).read_bytes() == (whole / WEIGHTS_FILE).read_bytes()


def test_too_little_space_is_said_before_the_run(mine: Recipe, disk: Path, tmp_path: Path) -> None:
    code, said = told(replace(mine, output_dir=str(disk / "run")), tmp_path)
    assert code == 4
    assert "free" in said
    assert list(disk.iterdir()) == [], "nothing came of it"


@pytest.mark.slow
@pytest.mark.usefixtures("disk")  # where no disk can be mounted, none turns read-only
def test_a_disk_that_turns_read_only_ends_the_run(
    mine: Recipe, whole: Path, tmp_path: Path
) -> None:
    folder = Path(mine.output_dir)

    def turn():
        mount("--bind", folder, folder)
        mount("-o", "remount,ro,bind", folder)

    try:
        code, said = told(mine, tmp_path, at_step(5, turn))
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)
    assert code == 2
    assert "Read-only file system" in said
    assert "Traceback" not in said
    assert states(folder) == ["step-000002", "step-000004"]
    assert run(Recipe(output_dir=str(folder), resume=True)) == 0
    assert (folder / WEIGHTS_FILE).read_bytes() == (whole / WEIGHTS_FILE).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("how", ["unmounted", "removed"])
def test_a_folder_that_is_gone_ends_the_run_and_is_not_made_again(
    mine: Recipe, disk: Path, tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("suri.train.run_folder.SPACE_BYTES", 0)
    folder = disk / "run"

    def take_away():
        if how == "removed":
            shutil.rmtree(folder)
        else:
            subprocess.run(["umount", "-l", str(disk)], check=True)

    code, said = told(replace(mine, output_dir=str(folder)), tmp_path, at_step(5, take_away))
    assert code == 2
    assert "the folder is gone" in said
    assert "Traceback" not in said
    assert list(disk.iterdir()) == [], "nothing is written where the disk was"


GUARD = """
import socket, sys

def guarded(method):
    def call(own, address, *rest):
        if isinstance(address, tuple) and address[0] not in ("127.0.0.1", "localhost", "::1"):
            sys.stderr.write(f"CONNECTED TO {address}")
        return method(own, address, *rest)
    return call

def resolve(host, *rest, _resolve=socket.getaddrinfo, **more):
    if host not in ("127.0.0.1", "localhost", "::1", None):
        sys.stderr.write(f"CONNECTED TO {host}")
    return _resolve(host, *rest, **more)

socket.socket.connect = guarded(socket.socket.connect)
socket.socket.connect_ex = guarded(socket.socket.connect_ex)
socket.getaddrinfo = resolve
"""
"""Python reads it at its start as sitecustomize, in the processes of a comparison too."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def suri(home: Path, tmp_path_factory: pytest.TempPathFactory):
    """`suri` with secrets in its environment and the hub allowed, telling what it connects to."""
    guard = tmp_path_factory.mktemp("guard")
    (guard / "sitecustomize.py").write_text(GUARD)
    env = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    env |= dict.fromkeys(SECRETS, SECRET) | {"HOME": str(home), "XDG_CACHE_HOME": ""}
    env |= {"SURI_CACHE": str(home / "cache"), "PYTHONPATH": str(guard)}
    env["PATH"] = ""  # no browser, which would draw the page with its own connections

    def run(words: list[str]) -> subprocess.CompletedProcess[bytes]:
        command = [sys.executable, "-m", "suri", *words]
        return subprocess.run(command, env=env, capture_output=True, check=False)

    return run


@pytest.fixture(scope="module")
def traces(
    suri, home: Path, tiny: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[bytes]:
    """What a training with a dashboard, a failure, a merge and a comparison print and write."""
    place = tmp_path_factory.mktemp("traces")
    at, out = str(place / "run"), str(place / "merged")
    train_words = ["train", "--base_model", str(tiny), "--data_path", str(rows), "--max_steps", "2",
                   "--val_set_size", "2", "--output_dir", at, "--device", "cpu"]  # fmt: skip
    done = [
        suri([*train_words, "--report_to", "tensorboard"]),
        suri([*train_words, "--data_path", str(place / "nowhere.json"), "--overwrite"]),
        suri(["merge", at, "--to", "hf", "--output_dir", out]),
        suri(["verify", out]),
        suri(["compare", at, "--ways", "base,adapter", "--output_dir", str(place / "compared")]),
        suri(["runs", str(place)]),
    ]
    codes = [process.returncode for process in done]
    assert codes == [0, 2, 0, 0, 0, 0], [p.stderr.decode()[-500:] for p in done]
    written = [content for folder in (place, home) for content in everything_under(folder)]
    assert len(written) > 30
    return [process.stdout + process.stderr for process in done] + written


def everything_under(folder: Path) -> Iterator[bytes]:
    return (path.read_bytes() for path in folder.rglob("*") if path.is_file())


@pytest.mark.slow
def test_no_secret_of_the_environment_is_in_a_file_or_on_the_screen(traces: list[bytes]) -> None:
    assert [each for each in traces if SECRET.encode() in each] == []


@pytest.mark.slow
def test_nothing_is_connected_to(suri, traces: list[bytes], tmp_path: Path) -> None:
    """Even where the hub may be asked: a local model needs no network, and nothing reports home."""
    assert [each for each in traces if b"CONNECTED TO" in each] == []
    asked = suri(["train", "--base_model", "nobody/nothing", "--max_steps", "1",
                  "--output_dir", str(tmp_path / "other")])  # fmt: skip
    assert b"CONNECTED TO huggingface.co" in asked.stderr, "the guard sees what is connected to"
