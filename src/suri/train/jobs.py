"""The folder of runs: what names lead to in it, and commands as processes that outlive the page."""

import filecmp
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from threading import Lock
from urllib.parse import quote

from suri.errors import UsageError
from suri.files import LOCK, make_folder, write_text
from suri.locks import hold_while_open, is_held
from suri.train.run_folder import can_go_on
from suri.train.runs import RunEntry, folders_below, read_run

NAME = re.compile(r"\w[\w. -]{0,63}")
SURI = (sys.executable, "-m", "suri")
ASK_SECONDS = 300
OURS = ".page"
"""Where the commands' output is kept, in the folder of runs."""
DEEPEST = 3


class Runs:
    """Names are relative to `root`; no name and no link leads out of it, or to hidden files."""

    def __init__(self, root: Path) -> None:
        self.root = root.expanduser().resolve()
        make_folder(self.root)
        self.starting = Lock()
        self.children: dict[str, subprocess.Popen[bytes]] = {}

    def place(self, name: str | None) -> Path:
        """The path of a name, links followed; raises UsageError where it leads out."""
        if not name:
            raise UsageError("nothing is chosen", do="choose one of the list first")
        try:
            path = (self.root / name).resolve()
            below = path.relative_to(self.root).parts
        except (OSError, ValueError, RuntimeError):
            below = ()
        if not below or any(part.startswith(".") for part in below):
            raise UsageError(f"{name[:80]!r} is not in the folder of runs")
        return path

    def new(self, name: str, folder: str = "") -> Path:
        """The path of something new in `folder`; raises UsageError for odd or taken names."""
        if not NAME.fullmatch(name.strip()):
            raise UsageError(f"{name[:80]!r}: please take a name of letters, digits, - and _")
        path = self.place(f"{folder or '.'}/{name.strip()}")
        if path.exists() or path.is_symlink():
            raise UsageError(f"{name.strip()} is there already; please take another name")
        return path

    def files(self, name: str | None, *patterns: str) -> list[Path]:
        """Files in a folder, by patterns; raises UsageError for a link that leads out."""
        folder = self.place(name)
        found = [file for pattern in patterns for file in sorted(folder.glob(pattern))]
        return [self.place(str(file)) for file in found if file.is_file()]

    def keep(self, file: Path, folder: str) -> str:
        """Copy a file into a folder here, where it is not there yet; gives the copy's name."""
        make_folder(self.root / folder)
        there = self.root / folder / file.name
        if not (there.is_file() and filecmp.cmp(file, there, shallow=False)):
            shutil.copyfile(file, self.new(file.name, folder))
        return f"{folder}/{file.name}"

    def holding(self, *files: str) -> list[str]:
        """Folders that hold one of these files, the newest first."""
        found = []
        for folder, names in folders_below(self.root, DEEPEST):
            there = [file for file in files if file in names]
            if there and folder != self.root:
                name = folder.relative_to(self.root).as_posix()
                with suppress(OSError):  # gone meanwhile
                    found.append(((folder / there[0]).stat().st_mtime, name))
        return [name for _, name in sorted(found, reverse=True)]

    def start(self, job: str, words: Sequence[str]) -> None:
        """Run `suri WORDS` in a session of its own; raises UsageError while this job runs.

        Its output is a file that it holds: so it is known to run whoever started it.
        """
        if self.is_running(job):
            raise UsageError(f"{job} is running already")
        file = self._file(job)
        make_folder(file.parent)
        with self.starting, file.open("a") as stream:
            hold_while_open(stream)
            stream.truncate(0)
            process = self.children[job] = subprocess.Popen(
                [*SURI, *words],
                stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, start_new_session=True,
            )  # fmt: skip
            write_text(file.with_suffix(".pid"), str(process.pid))

    def ask(self, words: Sequence[str]) -> str:
        """What a command says that only looks; raises UsageError where that is a mistake alone."""
        try:
            ended = subprocess.run(
                [*SURI, *words], capture_output=True, text=True, timeout=ASK_SECONDS
            )
        except subprocess.TimeoutExpired:
            raise UsageError("this takes too long; the machine may be busy") from None
        if not ended.stdout.strip():
            raise UsageError(ended.stderr.strip().removeprefix("error: "))
        return ended.stdout + ended.stderr

    def is_running(self, job: str) -> bool:
        """Whether the job was started here, by whatever page, and has not ended."""
        with self.starting:
            held = is_held(self._file(job))
            if not held and (child := self.children.pop(job, None)):
                child.wait()  # it has let the file go: it is at its end
            return held

    def stop(self, job: str) -> None:
        """Ask a running job to save and end; raises UsageError where none is chosen."""
        self.place(job)
        if self.is_running(job):
            pid = self._file(job).with_suffix(".pid").read_text(encoding="utf-8")
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGTERM)

    def state(self, name: str) -> tuple[str, RunEntry | None]:
        """A run as its files tell it, if it has begun, and how it stands."""
        folder = self.place(name)
        # Runs that somebody started in a terminal hold their folder alone.
        running = self.is_running(name) or is_held(folder / LOCK)
        try:
            run = read_run(folder)
        except UsageError:
            return ("begins" if running else "did_not_start"), None
        state = "running" if running else "resumable" if can_go_on(folder) else "ended"
        return ("finished" if run.result else state), run

    def said(self, job: str) -> str:
        """The last lines of the job's output."""
        with suppress(FileNotFoundError):
            text = self._file(job).read_text(encoding="utf-8", errors="replace")
            return "\n".join(text.splitlines()[-12:])[-3000:]
        return ""

    def _file(self, job: str) -> Path:
        return self.root / OURS / f"{quote(job, safe=' ')[:200]}.log"
