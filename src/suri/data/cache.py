"""Encoded rows on disk: made once, mapped by every run that has the same rows, prompt and rules."""

import hashlib
import json
import shutil
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from suri.data.encode import Encoder, Rules
from suri.data.examples import ARRAYS, Encoded, Examples
from suri.data.prompt import Prompt
from suri.data.split import Table
from suri.data.tokenizer import Tokenizer
from suri.errors import SuriError
from suri.files import cache_folder, publishing, write_json
from suri.manifest import check_manifest, write_manifest
from suri.reading import read_json

FORMAT = 1
KEPT = 12
"""Data sets that stay; those not used for longest are removed."""


def encode_table(table: Table, tokenizer: Tokenizer, prompt: Prompt, rules: Rules) -> Encoded:
    """Encode rows of any number within bounded memory, or map what was encoded before.

    Kept under a hash of everything that decides about the ids. What does not have its checksum
    any more is made again. Several processes may do so at once: the first to finish stays.
    """
    folder = cache_folder() / "rows" / _key(table, tokenizer, prompt, rules)
    if not _is_whole(folder):
        shutil.rmtree(folder, ignore_errors=True)
        _make(folder, table, Encoder(tokenizer, prompt, rules))
        _forget_oldest(folder.parent)
    (folder / "manifest.json").touch()
    counts = read_json(folder / "counts.json")
    return Encoded(Examples(*(_mapped(folder, name) for name in ARRAYS)), **counts)


def _key(table: Table, tokenizer: Tokenizer, prompt: Prompt, rules: Rules) -> str:
    how = [type(prompt).__name__, asdict(prompt), asdict(rules)]
    parts = [FORMAT, table.digest, tokenizer.fingerprint, *how]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _is_whole(folder: Path) -> bool:
    try:
        check_manifest(folder)
    except (SuriError, OSError):
        return False
    return True


def _make(folder: Path, table: Table, encoder: Encoder) -> None:
    try:
        with publishing(folder) as temporary:
            _write(temporary, table, encoder)
    except (SuriError, OSError):
        # Another process that made the same meanwhile has the name now.
        if not _is_whole(folder):
            raise


def _write(folder: Path, table: Table, encoder: Encoder) -> None:
    with ExitStack() as stack:
        files = {name: stack.enter_context((folder / f"{name}.bin").open("wb")) for name in ARRAYS}
        for block in encoder.blocks(table):
            for name, kind in ARRAYS.items():
                files[name].write(getattr(block, name).astype(kind).tobytes())
    counts = {"counts": dict(encoder.counts), "left_out": encoder.left_out}
    write_json(folder / "counts.json", counts)
    write_manifest(folder)


def _mapped(folder: Path, name: str) -> NDArray[Any]:
    path = folder / f"{name}.bin"
    if not path.stat().st_size:  # an empty file cannot be mapped
        return np.zeros(0, dtype=ARRAYS[name])
    return np.memmap(path, dtype=ARRAYS[name], mode="r")


def _forget_oldest(folder: Path) -> None:
    used = {path.parent: path.stat().st_mtime for path in folder.glob("*/manifest.json")}
    for old in sorted(used, key=lambda each: used[each])[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)
