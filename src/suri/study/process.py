"""Run this program's own modules as processes, so that what they load and hold ends with them."""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

import tomli_w

from suri.errors import Preempted, SuriError, UsageError
from suri.files import append_json_line, make_folder, write_json, write_text
from suri.reading import read_object
from suri.recipe import Recipe, settings_of

Part = Literal["speed", "answers", "losses"]
Say = Callable[[str], None]
"""Is told what is being done."""
RECORD = "captures.jsonl"
"""One line for every process: command, where its output is, how long it took, its exit code."""
SHOWN_LINES = 12
PROGRAM = "suri"


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
        "command": _as_typed(module, arguments, results),
        "terminal": str(terminal.absolute().relative_to(place)),
        "seconds": round(time.perf_counter() - started, 1),
        "exit_code": code,
    }
    note_process(results, entry)
    if _tie is not None and _tie.told:
        raise Preempted(f"{what} was told to stop")
    if code:
        raise _failure(what, terminal, code, f"{do}; " if do else "")


def _as_typed(module: str, arguments: Sequence[str], results: Path) -> str:
    """The command as a person types it; in paths a dot stands for the folder of the results."""
    folders = [f"{folder}/" for folder in (results.absolute(), results)]
    words = [module] if module == PROGRAM else ["python", "-m", module]
    for argument in arguments:
        inside = next((folder for folder in folders if argument.startswith(folder)), None)
        words.append(f"./{argument.removeprefix(inside)}" if inside else argument)
    return shlex.join(words)


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


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What to measure. Everything is a plain value, so that it travels as JSON."""

    run: str
    """The run folder: its prompt, its base and, for the way `adapter`, its adapter."""
    way: str
    """What it is called."""
    model: str = ""
    """Folder of a merged model; "" for the base."""
    with_adapter: bool = False
    """Whether the run's adapter is laid over it."""
    quantize: str = "none"
    """How the base is stored."""
    engine: str = "suri"
    dtype: str = "float32"
    device: str = "auto"
    rows: str = ""
    """File of the held-out rows."""
    max_new_tokens: int = 32
    cutoff_len: int = 512
    parts: tuple[Part, ...] = ("speed", "answers", "losses")
    reference: str = ""
    """File of the adapter's next-token log-probabilities; made where it is not there yet."""


def train(recipe: Recipe, place: Path, *, what: str, results: Path) -> None:
    """Start a training, or let it go on where it has a saved state; a finished one is left alone.

    The folder `place` gets the recipe, and the terminal of every attempt.
    """
    run = Path(recipe.output_dir)
    if (run / "result.json").is_file():
        return
    asked = place / "recipe.toml"
    write_text(asked, tomli_w.dumps(settings_of(recipe) | {"overwrite": True}))
    arguments = ["train", "--recipe", str(asked)]
    if any((run / "checkpoints").glob("step-*")):
        arguments = ["train", "--resume", "True", "--output_dir", str(run)]
    terminal = place / f"terminal-{attempts_of(place) + 1}.txt"
    run_module(PROGRAM, arguments, what=what, terminal=terminal, results=results)


def attempts_of(place: Path) -> int:
    """How often the training of the recipe in this folder was started."""
    return len(list(place.glob("terminal-*.txt")))


def measure(spec: Spec, work: Path, *, what: str, results: Path) -> dict[str, Any]:
    """What `suri.study.measure` finds for a spec; its files lie in the folder `work`."""
    work.mkdir(parents=True, exist_ok=True)
    write_json(work / "spec.json", asdict(spec))
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
