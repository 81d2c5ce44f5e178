"""Writing so that a reader sees the old file or the new one, never half of it."""

import errno
import hashlib
import json
import math
import os
import shutil
import signal
import tempfile
import tomllib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from suri.errors import Corrupt, DoesNotFit, SuriError, UsageError

LOCK = ".lock"
HASHED_BYTES = 16_000_000
"""Bytes of a large file that are read at once to be hashed."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; it takes the name `path` when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        _sync(temporary)
        temporary.chmod(0o666 & ~_umask())
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


def read_json(path: Path) -> Any:
    """Read a JSON file that a program wrote; raises Corrupt when it is not JSON.

    Not-a-number, infinity and halves of a character are refused: they could not be written again.
    """
    try:
        return _parsed(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file") from None
    except (ValueError, RecursionError) as problem:
        raise Corrupt(f"{path}: not readable as JSON", found=str(problem)) from None


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds one object; raises Corrupt when it holds anything else."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise Corrupt(f"{path} does not hold one JSON object", found=type(value).__name__)
    return value


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a JSON-lines file that this program wrote; none where there is no file.

    A last line without its end was cut while it was written, and counts as not written.
    """
    lines = path.read_bytes().split(b"\n")[:-1] if path.is_file() else []
    with well_formed(path):
        return [dict(_parsed(line.decode())) for line in lines if line]


def read_toml(path: Path, what: str, *tables: str) -> dict[str, Any]:
    """Read a TOML file that a person wrote, in which `tables` are tables where they are there.

    Raises UsageError, naming the file as `what` it should be.
    """
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{path}: no such {what}") from None
    except (ValueError, RecursionError) as problem:
        raise UsageError(f"{path}: not a TOML file", found=str(problem)) from None
    for name in tables:
        if not isinstance(found.get(name, {}), dict):
            raise UsageError(f"{path}: {name} must be a table, [{name}]")
    return found


@contextmanager
def well_formed(path: Path, what: str = "what was written") -> Iterator[None]:
    """Turn what fails over missing or odd values that were read from `path` into one Corrupt."""
    odd = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError)
    try:
        yield
    except odd as problem:
        raise Corrupt(f"{path} is not {what}", found=repr(problem)[:200]) from problem


def _parsed(text: str) -> Any:
    value = json.loads(text, parse_float=_finite, parse_constant=_finite)
    if "\\ud" in text.lower():  # an escaped half of a character, if it has no other half
        json.dumps(value, ensure_ascii=False).encode()
    return value


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is no number")
    return number


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
    temporary = _begun(folder, key) if key else _new_beside(folder)
    try:
        yield temporary
        for ours in temporary.glob(".*"):
            ours.unlink()
        for written in temporary.rglob("*"):
            if written.is_file():
                _sync(written)
        temporary.chmod(0o777 & ~_umask())
        fault("rename")
        temporary.rename(folder)
        _sync_folder(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _new_beside(folder: Path) -> Path:
    return Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))


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


def need_space(folder: Path, needed_bytes: int, purpose: str) -> None:
    """Raise DoesNotFit when the disk under `folder` has less than `needed_bytes` free."""
    existing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    free = shutil.disk_usage(existing).free
    if free < needed_bytes:
        raise DoesNotFit(
            f"{purpose} needs {readable_bytes(needed_bytes)} on the disk of {folder}",
            found=f"{readable_bytes(free)} free",
            do="free some space, or choose an --output_dir on another disk",
        )


def is_file(path: Path) -> bool:
    """Whether there is such a file; a name that no file can have is none's."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def sha256(path: Path) -> str:
    """The sha256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def fingerprint(path: Path) -> str:
    """The BLAKE3 hash of a file's bytes, as blake3:HEX; on all cores, for files of any size."""
    from blake3 import blake3

    digest, buffer = blake3(max_threads=blake3.AUTO), bytearray(HASHED_BYTES)
    with path.open("rb", buffering=0) as stream:
        while count := stream.readinto(buffer):
            digest.update(memoryview(buffer)[:count])
    return f"blake3:{digest.hexdigest()}"


def size_bytes(path: Path) -> int:
    """Bytes of a file, or of every file below a folder."""
    if path.is_file():
        return path.stat().st_size
    return sum(part.stat().st_size for part in path.rglob("*") if part.is_file())


def readable_bytes(count: float) -> str:
    """A number of bytes in the unit a person would choose (1 GB = 10^9 bytes)."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count:.0f} bytes"


def readable_seconds(seconds: float) -> str:
    """A duration in the units a person would choose."""
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


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


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
