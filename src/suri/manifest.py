"""Checksums of a folder's files: written as its last file, checked before the others are used."""

from collections.abc import Mapping
from pathlib import Path

from suri.errors import Corrupt
from suri.files import fingerprint, is_file, read_object, sha256, well_formed, write_json

MANIFEST = "manifest.json"


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
