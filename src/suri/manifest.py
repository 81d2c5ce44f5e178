"""Checksums: of files, and of a folder's files in a manifest that is checked before their use."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

from suri.errors import Corrupt
from suri.files import write_json
from suri.reading import is_file, read_object, well_formed

MANIFEST = "manifest.json"
HASHED_BYTES = 16_000_000
"""Bytes of a large file that are read at once to be hashed."""


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


def write_manifest(folder: Path) -> None:
    """Record size and sha256 of every file in `folder`, subfolders apart, as the last file."""
    files = {
        name: {"bytes": (folder / name).stat().st_size, "sha256": sha256(folder / name)}
        for name in _recordable(folder)
    }
    write_json(folder / MANIFEST, {"files": files})


def _recordable(folder: Path) -> list[str]:
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    return [name for name in names if name != MANIFEST and not name.startswith(".")]


def check_manifest(folder: Path, *names: str) -> None:
    """Raise Corrupt naming every file, or of `names`, that is missing, changed or not recorded."""
    with well_formed(folder / MANIFEST):
        files = read_object(folder / MANIFEST)["files"]
        recorded = {name: str(entry["sha256"]) for name, entry in files.items()}
    wrong = changed_files(folder, recorded, *(names or recorded))
    wrong += [
        f"{name} is not recorded" for name in names or _recordable(folder) if name not in recorded
    ]
    if wrong:
        raise Corrupt(
            f"{folder} is not what was written",
            found=", ".join(wrong),
            do=f"bring it back; or, if you changed it yourself, remove {folder / MANIFEST}",
        )


def changed_files(folder: Path, recorded: Mapping[str, str], *names: str) -> list[str]:
    """Which of `names` are missing or have another checksum than recorded, each as one clause.

    Checksums are sha256, or `fingerprint`'s where they say so.
    """
    wrong = []
    for name in names:
        if not is_file(folder / name):
            wrong.append(f"{name} is missing")
        elif name in recorded and _checksum(folder / name, recorded[name]) != recorded[name]:
            wrong.append(f"{name} has changed")
    return wrong


def _checksum(path: Path, like: str) -> str:
    return fingerprint(path) if str(like).startswith("blake3:") else sha256(path)
