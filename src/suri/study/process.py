"""Run this program's own modules as processes, so that what they load and hold ends with them."""

import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from suri.errors import SuriError
from suri.files import read_json, write_json

SHOWN_LINES = 12


class Failed(SuriError):
    """A process ended with an error; its exit code is passed on."""

    def __init__(self, what: str, terminal: Path, code: int, do: str) -> None:
        lines = terminal.read_text(encoding="utf-8", errors="replace").splitlines()
        errors = [place for place, line in enumerate(lines) if line.startswith("error: ")]
        shown = lines[errors[-1] :][:SHOWN_LINES] if errors else lines[-SHOWN_LINES:]
        if code < 0:
            shown = [f"killed by signal {-code}; by 9 most often because memory ran out", *shown]
        found = "\n         ".join(line.strip() for line in shown)
        super().__init__(f"{what} failed", found=found, do=f"{do}all it printed is in {terminal}")
        self.exit_code = code if code > 0 else 1


def run_module(
    module: str, arguments: Sequence[str], *, what: str, terminal: Path, do: str = ""
) -> None:
    """Run `python -m module arguments`, everything it prints going to the file `terminal`.

    Raises Failed with the error it printed, and with `do` as what helps.
    """
    terminal.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", module, *arguments]
    with terminal.open("w", encoding="utf-8") as stream:
        # Inherited descriptors: the lock on a folder is held as long as somebody works in it.
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            check=False,
            close_fds=False,
        )
    if done.returncode:
        raise Failed(what, terminal, done.returncode, f"{do}; " if do else "")


def measure(spec: dict[str, Any], work: Path, *, what: str) -> dict[str, Any]:
    """What `suri.study.measure` finds for a spec; its files lie in the folder `work`."""
    work.mkdir(parents=True, exist_ok=True)
    write_json(work / "spec.json", spec)
    out = work / "measured.json"
    run_module(
        "suri.study.measure",
        [str(work / "spec.json"), str(out)],
        what=what,
        terminal=work / "terminal.txt",
    )
    measured: dict[str, Any] = read_json(out)
    return measured


def busiest(environments: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Of the environments of several measurements the one with the most other work beside it."""
    return max(environments, key=lambda environment: environment.get("load_average", 0.0))
