"""Children forked from the loaded test process, on one thread, and the short run that they train.

Real processes, real kills.
"""

import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from suri.data.records import Record, write_records
from suri.errors import SuriError
from suri.recipe import Recipe
from suri.train.run import train


def no_answers(decoder, prompts, eos_id, tokens):
    """No sample answers: they cost time and decide nothing."""
    return [[] for _ in prompts]


def start(work: Callable[[], object], fault: str = "") -> int:
    """The pid of a child that does the work and exits as the command line would."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside other threads
        pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.environ["SURI_FAULT"] = fault
        torch.set_num_threads(1)
        work()
        code = 0
    except SuriError as problem:
        print("\n".join(problem.lines()))
        code = problem.exit_code
    except KeyboardInterrupt:
        code = 130
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait(pid: int) -> int:
    """The exit code, or minus the number of the signal that ended the child."""
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


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
