"""Writing so that a reader sees the old file or the new one, never half of it."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from suri.errors import Corrupt, DoesNotFit, SuriError, UsageError

MANIFEST, LOCK = "manifest.json", ".lock"


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
    """Read a JSON file that a program wrote; raises Corrupt when it is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file") from None
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as problem:
        raise Corrupt(f"{path}: not readable as JSON", found=str(problem)) from None


def append_json_line(path: Path, value: dict[str, Any]) -> None:
    """Append one record to a JSON-lines file and hand it to the system at once."""
    with path.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n")


@contextmanager
def publishing(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `folder`; it takes that name when the block ends well.

    An existing `folder` is an error: nothing of a user's is ever replaced.
    """
    if folder.exists():
        raise UsageError(
            f"{folder} exists already",
            do="choose another --output_dir, or remove that folder first",
        )
    make_folder(folder.parent)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        yield temporary
        temporary.chmod(0o777 & ~_umask())
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


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


@contextmanager
def holding(folder: Path, wait: Callable[[], None]) -> Iterator[None]:
    """Hold the folder against other processes that ask for it; `wait` is called before waiting.

    The lock is a file descriptor that child processes inherit: after a kill it is held until the
    last of them has ended, so that nobody starts the same work beside it. Without fcntl (Windows)
    nothing is held.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    with (folder / LOCK).open("w") as stream:
        os.set_inheritable(stream.fileno(), True)
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            wait()
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield


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


def write_manifest(folder: Path) -> None:
    """Record size and sha256 of every file in `folder`, subfolders apart, as the last file."""
    names = sorted(p.name for p in folder.iterdir() if p.is_file() and p.name != MANIFEST)
    files = {
        name: {"bytes": (folder / name).stat().st_size, "sha256": sha256(folder / name)}
        for name in names
        if not name.startswith(".")
    }
    write_json(folder / MANIFEST, {"files": files})


def check_manifest(folder: Path) -> None:
    """Raise Corrupt naming every file of the manifest that is missing or has changed."""
    recorded = read_json(folder / MANIFEST)["files"]
    wrong = []
    for name, entry in recorded.items():
        path = folder / name
        if not path.is_file():
            wrong.append(f"{name} is missing")
        elif sha256(path) != entry["sha256"]:
            wrong.append(f"{name} has changed")
    if wrong:
        raise Corrupt(f"{folder} is not what was written", found=", ".join(wrong))


def sha256(path: Path) -> str:
    """The sha256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


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
        if isinstance(problem, FileNotFoundError):
            raise
        raise SuriError(
            f"writing below {place} failed",
            found=problem.strerror or str(problem),
            do="free space or choose another folder; what was complete before is untouched",
        ) from problem


def _sync(path: Path) -> None:
    with path.open("rb") as stream:
        os.fsync(stream.fileno())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
