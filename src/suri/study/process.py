"""Run this program's own modules as processes, so that what they load and hold ends with them."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from suri.errors import Preempted, SuriError, UsageError
from suri.files import append_json_line, make_folder, write_json
from suri.reading import read_object

Say = Callable[[str], None]
"""Is told what is being done."""
RECORD = "captures.jsonl"
"""One line for every process: command, where its output is, how long it took, its exit code."""
SHOWN_LINES = 12


def open_results(folder: Path, mark: str) -> None:
    """Make a folder of results; in one that exists the folder `mark` says that it is ours."""
    if folder.is_dir() and any(folder.iterdir()) and not (folder / mark).is_dir():
        raise UsageError(
            f"{folder} exists and holds something else", do="choose another --output_dir"
        )
    make_folder(folder / mark)


class Failed(SuriError):
    """A process ended with an error; its exit code is passed on."""


def _failure(what: str, terminal: Path, code: int, do: str) -> Failed:
    """What a process printed last, or from its last error on."""
    lines = terminal.read_text(encoding="utf-8", errors="replace").splitlines()
    errors = [place for place, line in enumerate(lines) if line.startswith("error: ")]
    shown = lines[errors[-1] :][:SHOWN_LINES] if errors else lines[-SHOWN_LINES:]
    if code < 0:
        shown = [f"killed by signal {-code}; by 9 most often because memory ran out", *shown]
    found = "\n         ".join(line.strip() for line in shown)
    failed = Failed(f"{what} failed", found=found, do=f"{do}all it printed is in {terminal}")
    failed.exit_code = code if code > 0 else 1
    return failed


@dataclass
class Tie:
    """What holds processes to the one that starts them, on a machine that is not the user's own.

    They end with it, can be told to stop, and what ran is kept in `records` for whoever gathers it.
    """

    cwd: Path | None = None
    records: list[dict[str, Any]] = field(default_factory=list)
    process: subprocess.Popen[bytes] | None = None
    told: bool = False

    def stop(self, number: int = signal.SIGTERM) -> None:
        """Tell the process under way, and all that would follow, to stop; for any thread."""
        self.told = True
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)


_tie: Tie | None = None


@contextmanager
def tied(tie: Tie) -> Iterator[None]:
    """Within this, `run_module` starts processes that are tied to this one."""
    global _tie
    _tie = tie
    try:
        yield
    finally:
        _tie = None


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
    the error it printed, and with `do` as what helps; Preempted where a tie was told to stop.
    """
    terminal.parent.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    with terminal.open("w", encoding="utf-8") as stream:
        code = _run([module, *arguments], stream)
    place = str(results.absolute())
    entry = {
        "command": " ".join([module, *arguments]).replace(place, "."),
        "terminal": str(terminal.absolute().relative_to(place)),
        "seconds": round(time.perf_counter() - started, 1),
        "exit_code": code,
    }
    note_process(results, entry)
    if _tie is not None and _tie.told:
        raise Preempted(f"{what} was told to stop")
    if code:
        raise _failure(what, terminal, code, f"{do}; " if do else "")


def note_process(results: Path, entry: dict[str, Any]) -> None:
    """Note that a process ran; a tie keeps it, because appending over a network loses lines."""
    if _tie is not None:
        _tie.records.append(entry)
    else:
        append_json_line(results / RECORD, entry)


def _run(words: list[str], stream: IO[str]) -> int:
    """The exit code of `python -m words`, which prints into `stream`."""
    tie = _tie
    if tie is None:
        # Inherited descriptors: the lock on a folder is held as long as somebody works in it.
        return subprocess.run(
            [sys.executable, "-m", *words],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            check=False,
            close_fds=False,
        ).returncode
    if tie.told:
        return Preempted.exit_code
    command = [sys.executable, "-m", "suri.study.tied", str(os.getpid()), *words]
    tie.process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, cwd=tie.cwd
    )
    if tie.told:  # in the meantime, by another thread
        tie.stop()
    return tie.process.wait()


def as_program(work: Callable[..., None], words: Sequence[str]) -> int:
    """The exit code of a module that runs as a program; a user's mistake is printed."""
    try:
        work(*words)
    except SuriError as problem:
        print("\n".join(problem.lines()), file=sys.stderr)
        return problem.exit_code
    return 0


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
