"""Folders that one process holds alone, or together with its children."""

import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TextIO

from suri.errors import UsageError
from suri.files import LOCK, make_folder


@contextmanager
def holding(folder: Path, wait: Callable[[], None]) -> Iterator[None]:
    """Hold the folder against other processes that ask for it; `wait` is called before waiting.

    Child processes inherit the lock: after a kill it is held until the last of them has ended, so
    that nobody starts the same work beside it.
    """
    with (folder / LOCK).open("w") as stream:
        os.set_inheritable(stream.fileno(), True)
        try:
            hold_while_open(stream)
        except BlockingIOError:
            wait()
            hold_while_open(stream, wait=True)
        yield


@contextmanager
def claiming(folder: Path) -> Iterator[None]:
    """Hold the folder alone while something is written into it; raises UsageError where it is held.

    Who holds it stands in its lock file: process, machine, and the machine's boot. A killed
    process leaves that behind; the lock itself goes with it, so the next one takes it over. Only a
    folder that another machine left so is refused, because locks do not reach over every network.
    """
    is_new = not folder.exists()
    make_folder(folder)
    me = {"pid": os.getpid(), "host": socket.gethostname(), "boot": boot()}
    with (folder / LOCK).open("a+", encoding="utf-8") as stream:
        held = _holder(stream)
        who = f"process {held.get('pid', '?')} on {held.get('host', '?')}"
        try:
            hold_while_open(stream)
        except BlockingIOError:
            raise UsageError(
                f"something else is writing into {folder}",
                found=who,
                do="wait until it has ended, or choose another --output_dir",
            ) from None
        if held and held.get("host") != me["host"]:
            raise UsageError(
                f"another machine was writing into {folder}, and may be still",
                found=who,
                do=f"if it is not, remove {folder / LOCK}",
            )
        stream.truncate(0)
        stream.write(json.dumps(me))
        stream.flush()
        try:
            yield
        finally:
            stream.truncate(0)
            left = [path.name for path in folder.iterdir()] if folder.is_dir() else []
            if is_new and left == [LOCK]:
                shutil.rmtree(folder)  # nothing came of it


def hold_while_open(stream: IO[str], *, wait: bool = False) -> None:
    """Lock an open file until the last process that inherits it has ended.

    Raises BlockingIOError where it is held already, unless it shall `wait` for that. Without fcntl
    (Windows) nothing is held.
    """
    try:
        import fcntl
    except ImportError:
        return
    fcntl.flock(stream, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))


def is_held(path: Path) -> bool:
    """Whether a process holds that file; no where there is none."""
    try:
        with path.open() as stream:
            hold_while_open(stream)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _holder(stream: TextIO) -> dict[str, Any]:
    """What the last holder wrote of itself; nothing where that is not readable."""
    stream.seek(0)
    try:
        found = json.loads(stream.read(4096) or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def boot() -> str:
    """What tells one start of this machine from the next, where the system says it."""
    place = Path("/proc/sys/kernel/random/boot_id")
    return place.read_text(encoding="ascii").strip() if place.is_file() else ""
