"""Writing so that a reader sees the old file or the new one, never half of it."""

import errno
import json
import os
import secrets
import shutil
import signal
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from suri.errors import DoesNotFit, SuriError, UsageError
from suri.wording import readable_bytes

LOCK = ".lock"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; it takes the name `path` when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path)
    temporary.touch(exist_ok=False)
    try:
        yield temporary
        _sync(temporary)
        temporary.replace(path)
        _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text in one atomic step."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_bytes(path: Path, content: bytes) -> None:
    """Write bytes in one atomic step."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: Path, value: Any) -> None:
    """Write JSON in one atomic step; not-a-number is refused because JSON has no such value."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def append_json_line(path: Path, value: dict[str, Any]) -> None:
    """Append one record to a JSON-lines file and hand it to the system at once."""
    with path.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n")
    fault("append")


@contextmanager
def publishing(folder: Path, key: str = "") -> Iterator[Path]:
    """Yield a temporary folder beside `folder`; it takes that name when the block ends well.

    An existing `folder` is an error: nothing of a user's is ever replaced. With a `key` the
    temporary folder still has its files where a process with the same key was killed.
    """
    if folder.exists():
        raise UsageError(
            f"{folder} exists already",
            do="choose another --output_dir, or remove that folder first",
        )
    make_folder(folder.parent)
    temporary = _begun(folder, key) if key else _beside(folder)
    temporary.mkdir(exist_ok=True)
    try:
        yield temporary
        for ours in temporary.glob(".*"):
            ours.unlink()
        for written in temporary.rglob("*"):
            if written.is_file():
                _sync(written)
        fault("rename")
        temporary.rename(folder)
        _sync_folder(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _beside(path: Path) -> Path:
    """A new hidden name in the same folder, which `sweep` knows."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}")


def _begun(folder: Path, key: str) -> Path:
    """What a killed process left of `folder` under this key, or an empty folder for it."""
    place = folder.parent / f".{folder.name}.partial"
    kept = place / ".key"
    if not (kept.is_file() and kept.read_text(encoding="utf-8") == key):
        for left in place.iterdir() if place.is_dir() else ():
            if left.name != LOCK:
                left.unlink()
        write_text(kept, key)
    return place


def sweep(folder: Path) -> None:
    """Remove what a killed process of ours left half written in a folder that nobody writes in."""
    for left in folder.glob(".*.????????"):
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def make_folder(folder: Path) -> None:
    """Make a folder and check that it can be written to, before any long work starts."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (FileExistsError, NotADirectoryError):
        raise UsageError(f"{folder} is a file, and a folder is needed") from None
    except OSError as problem:
        raise UsageError(
            f"cannot write in {folder}",
            found=problem.strerror or str(problem),
            do="choose a folder that you may write to with --output_dir",
        ) from None


def cache_folder() -> Path:
    """Where what can be made again is kept: SURI_CACHE, or suri in the user's cache folder."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("SURI_CACHE") or Path(home) / "suri")


def free_space(folder: Path) -> int:
    """Bytes free on the disk on which `folder` lies, or would lie."""
    existing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    return shutil.disk_usage(existing).free


def need_space(folder: Path, needed_bytes: int, purpose: str) -> None:
    """Raise DoesNotFit when the disk under `folder` has less than `needed_bytes` free."""
    free = free_space(folder)
    if free < needed_bytes:
        raise DoesNotFit(
            f"{purpose} needs {readable_bytes(needed_bytes)} on the disk of {folder}",
            found=f"{readable_bytes(free)} free",
            do="free some space, or choose an --output_dir on another disk",
        )


def size_bytes(path: Path) -> int:
    """Bytes of a file, or of every file below a folder."""
    if path.is_file():
        return path.stat().st_size
    return sum(part.stat().st_size for part in path.rglob("*") if part.is_file())


@contextmanager
def disk_errors_explained(place: Path) -> Iterator[None]:
    """Turn a full disk or a refused write under `place` into one message with the remedy."""
    try:
        yield
    except OSError as problem:
        gone = isinstance(problem, FileNotFoundError)
        if gone and place.is_dir():
            raise
        raise SuriError(
            f"writing below {place} failed",
            found="the folder is gone" if gone else problem.strerror or str(problem),
            do="free space or choose another folder; what was complete before is untouched",
        ) from problem


def _sync(path: Path) -> None:
    with path.open("rb") as stream:
        os.fsync(stream.fileno())


def _sync_folder(folder: Path) -> None:
    """Make a rename in the folder last; where a system cannot (Windows), it is left to it."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)


def fault(place: str) -> None:
    """Do what a test asked for at this place, and nothing otherwise.

    SURI_FAULT is `PLACE=kill` or `PLACE=full`, or `PLACE*N=...` for the N-th time: the process is
    killed as by `kill -9`, or the write fails as on a full disk.
    """
    asked = os.environ.get("SURI_FAULT")
    if not asked:
        return
    where, _, what = asked.partition("=")
    name, _, count = where.partition("*")
    if name != place:
        return
    _met[place] += 1
    if _met[place] == int(count or 1):
        if what == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), place)


_met: Counter[str] = Counter()
