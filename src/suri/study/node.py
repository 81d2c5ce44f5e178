"""What a node of a cluster does for a study: look around, reckon the budget, carry out a trial."""

import os
import signal
import socket
import threading
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from suri.errors import Preempted, SuriError, UsageError
from suri.files import make_folder
from suri.study.claims import claimed, forget_lock
from suri.study.plan import Trial
from suri.study.preflight import common_budget
from suri.study.process import Tie, tied
from suri.study.trials import run_trial

SIGN = ".cluster"
"""File in a study's folder with the key of the driver that is at work: another key, or none, tells
every trial to save its state and stop."""

Report = dict[str, Any]
"""What a node hands back: `problem`, a SuriError, or what was found, in plain values."""


def look(folder: Path) -> Report:
    """Whether this node sees the study's folder and may write there, and which Suri it has."""
    return _told(lambda: {"suri": _check(folder), "where": socket.gethostname()})


def reckon(trials: Sequence[Trial], folder: Path, cwd: Path) -> Report:
    """`common_budget`, with the node's memory."""
    tie = Tie(_here(cwd))
    with tied(tie):
        return _told(lambda: {"found": common_budget(trials, folder)}) | {"records": tie.records}


def carry_out(trial: Trial, folder: Path, key: str, cwd: Path) -> Report:
    """`run_trial`, once nobody else is at it; `found` is None where it was told to stop.

    `again` says that it was stopped because another machine had taken the trial over.
    """
    tie = Tie(_here(cwd))
    notes: list[Report] = []
    where, taken = socket.gethostname(), threading.Event()

    def beat(is_ours: bool) -> None:
        if not is_ours:
            taken.set()
            tie.stop(signal.SIGKILL)  # somebody else goes on with it already
        elif not tie.told and not is_wanted(folder, key):
            tie.stop()

    def work() -> Report:
        _check(folder)
        with claimed(trial.place, beat), tied(tie):
            forget_lock(trial.place / "run")
            if not is_wanted(folder, key):
                return {"found": None}
            return {"found": run_trial(trial, folder, lambda _: None, notes.append)}

    report = _told(work)
    return report | {
        "notes": [note | {"where": where} for note in notes],
        "records": tie.records,
        "again": taken.is_set(),
        "where": where,
    }


def is_wanted(folder: Path, key: str) -> bool:
    """Whether the driver with this key is at work and has not told its trials to stop."""
    try:
        return (folder / SIGN).read_text(encoding="utf-8") == key
    except FileNotFoundError:
        return False
    except OSError:
        return True  # a network disk that is away for a moment says nothing


def _check(folder: Path) -> str:
    """The version of Suri here; raises UsageError where the study's folder is not the driver's."""
    if not (folder / SIGN).is_file():
        raise UsageError(
            f"{socket.gethostname()} does not see the study's folder",
            found=f"no {folder / SIGN} there, which the driver has written",
            do="put the study on a disk that all nodes share under the same path: --output_dir",
        )
    make_folder(folder)
    return version("suri")


def _told(work: Callable[[], Report]) -> Report:
    """What `work` finds, or what went wrong: Ray would wrap an error that is raised."""
    try:
        return work()
    except Preempted:
        return {"found": None}
    except SuriError as problem:
        return {"problem": problem}


def _here(cwd: Path) -> Path | None:
    """The driver's folder, which relative paths of a plan start from, where it is here too."""
    return cwd if os.access(cwd, os.X_OK) else None
