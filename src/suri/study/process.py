"""Run this program's own modules as processes, so that what they load and hold ends with them."""

import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from suri.errors import SuriError
from suri.files import append_json_line, write_json
from suri.reading import read_object

RECORD = "captures.jsonl"
"""One line for every process: command, where its output is, how long it took, its exit code."""
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
    module: str,
    arguments: Sequence[str],
    *,
    what: str,
    terminal: Path,
    results: Path,
    do: str = "",
) -> None:
    """Run `python -m module arguments`, everything it prints going to the file `terminal`.

    That it ran is noted in the folder `results`, which `terminal` lies below. Raises Failed with
    the error it printed, and with `do` as what helps.
    """
    terminal.parent.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
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
    place = str(results.absolute())
    entry = {
        "command": " ".join([module, *arguments]).replace(place, "."),
        "terminal": str(terminal.absolute().relative_to(place)),
        "seconds": round(time.perf_counter() - started, 1),
        "exit_code": done.returncode,
    }
    append_json_line(results / RECORD, entry)
    if done.returncode:
        raise Failed(what, terminal, done.returncode, f"{do}; " if do else "")


def measure(spec: dict[str, Any], work: Path, *, what: str, results: Path) -> dict[str, Any]:
    """What `suri.study.measure` finds for a spec; its files lie in the folder `work`."""
    work.mkdir(parents=True, exist_ok=True)
    write_json(work / "spec.json", spec)
    out = work / "measured.json"
    run_module(
        "suri.study.measure",
        [str(work / "spec.json"), str(out)],
        what=what,
        terminal=work / "terminal.txt",
        results=results,
    )
    return read_object(out)


def busiest(environments: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Of the environments of several measurements the one with the most other work beside it."""
    return max(environments, key=lambda environment: environment.get("load_average", 0.0))
