"""Children forked from the loaded test process, on one thread, and the short run that they train.

Real processes, real kills.
"""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from forked import start_child, wait
from suri.data.records import Record, write_records
from suri.errors import SuriError
from suri.recipe import Recipe
from suri.train.run import train


def no_answers(decoder, prompts, eos_id, tokens):
    """No sample answers: they cost time and decide nothing."""
    return [[] for _ in prompts]


def start(work: Callable[[], object], fault: str = "") -> int:
    """The pid of a child that does the work, with a fault at some point."""

    def with_fault() -> None:
        os.environ["SURI_FAULT"] = fault
        work()

    return start_child(with_fault)


def run(recipe, fault: str = "", listen: Callable = lambda *_: None) -> int:
    """Train in a child; its exit code or minus its signal."""
    return wait(start(lambda: train(recipe, listen, no_answers), fault))


def kill_after(pid: int, seconds: float) -> int:
    """Kill a child after a time, unless it has ended."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    return wait(pid)


@pytest.fixture(scope="session")
def rows(tmp_path_factory):
    file = tmp_path_factory.mktemp("rows") / "rows.json"
    write_records(file, [Record("Say it.", f"{n}", f"x{n} y") for n in range(13)])
    return file


@pytest.fixture(scope="session")
def recipe(tiny, rows):
    """Three epochs that end within a batch, with dropout, saved every other step."""
    return Recipe(
        base_model=str(tiny), data_path=str(rows), val_set_size=3.0, num_epochs=3.0, batch_size=3,
        learning_rate=5e-3, lora_r=3, lora_alpha=7.0, lora_dropout=0.1, save_steps=2,
        eval_steps=4, device="cpu", token_budget=256,
    )  # fmt: skip


@pytest.fixture(scope="session")
def whole(recipe, tmp_path_factory):
    """The folder of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert run(replace(recipe, output_dir=str(folder))) == 0
    return folder


@pytest.fixture
def mine(recipe, tmp_path):
    """The same run, not started yet."""
    return replace(recipe, output_dir=str(tmp_path / "run"))
