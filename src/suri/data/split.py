"""Which rows are trained on and which are held out."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from suri.data.records import Record, read_records
from suri.data.skills import LICENCE, make_rows
from suri.errors import UsageError
from suri.files import sha256
from suri.recipe import BUNDLED

BUNDLED_ROWS = 400


@dataclass(frozen=True)
class Rows:
    """Training rows, held-out rows, and the facts of where they come from and how they were split.

    facts: source, sha256, rows, train_rows, held_out_rows, seed, split (a sentence) and, of
    bundled rows, licence.
    """

    train: list[Record]
    held_out: list[Record]
    facts: dict[str, Any]


def load_rows(data_path: str, val_set_size: float, seed: int, val_set_path: str = "") -> Rows:
    """Read a file of rows, or make `bundled` or `bundled:ROWS`, and hold some out for evaluation.

    `val_set_size` is a number of rows, or below 1 a share of them. A file's held-out rows are
    drawn from it and at least one row is left to train; bundled ones are made beside it. A
    `val_set_path` names the file of the held-out rows instead.

    Raises what `read_records` does, and UsageError when ROWS is not a number or bundled rows are
    given other held-out rows than their own.
    """
    if data_path.partition(":")[0] == BUNDLED:
        if val_set_path:
            raise UsageError(
                f"{data_path} has held-out rows of its own",
                found=f"val_set_path {val_set_path}",
                do="leave val_set_path out, or write the rows to a file with `suri data make`",
            )
        return _bundled_rows(data_path, val_set_size, seed)
    path = Path(data_path)
    records = read_records(path)
    if val_set_path:
        return _named_rows(path, records, Path(val_set_path), seed)
    asked = _count(val_set_size, len(records))
    count = min(asked, len(records) - 1)
    drawn = np.random.default_rng(seed).permutation(len(records))[:count]
    chosen = {int(i) for i in drawn}
    train = [record for i, record in enumerate(records) if i not in chosen]
    held_out = [record for i, record in enumerate(records) if i in chosen]
    split = f"{count} of {len(records)} rows drawn with seed {seed}"
    if count < asked:
        split += f"; {asked} were asked for, and at least one row must train"
    facts = {"source": str(path), "sha256": sha256(path)}
    return Rows(train, held_out, facts | _counts(train, held_out, seed, split))


def _named_rows(path: Path, train: list[Record], held_out_path: Path, seed: int) -> Rows:
    held_out = read_records(held_out_path)
    facts = {
        "source": str(path),
        "sha256": sha256(path),
        "held_out_source": str(held_out_path),
        "held_out_sha256": sha256(held_out_path),
    }
    split = f"all {len(held_out)} rows of {held_out_path.name}"
    return Rows(train, held_out, facts | _counts(train, held_out, seed, split))


def _bundled_rows(data_path: str, val_set_size: float, seed: int) -> Rows:
    number = data_path.partition(":")[2] or str(BUNDLED_ROWS)
    if not (number.isascii() and number.isdigit() and int(number)):
        raise UsageError(f"{data_path}: {number!r} is not a number of rows", do="say bundled:400")
    train = make_rows(int(number), seed)
    held_out = make_rows(_count(val_set_size, len(train)), seed, held_out=True)
    text = json.dumps([asdict(record) for record in train + held_out])
    split = f"{len(held_out)} rows made from other words and wordings than the {len(train)} others"
    facts = {
        "source": f"{BUNDLED}:{len(train)}",
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
        "licence": LICENCE,
    }
    return Rows(train, held_out, facts | _counts(train, held_out, seed, split))


def _count(val_set_size: float, rows: int) -> int:
    """The number of rows that is asked for; a share above 0 is at least one row."""
    if val_set_size >= 1 or val_set_size == 0:
        return int(val_set_size)
    return max(1, round(val_set_size * rows))


def _counts(train: list[Record], held_out: list[Record], seed: int, split: str) -> dict[str, Any]:
    return {
        "rows": len(train) + len(held_out),
        "train_rows": len(train),
        "held_out_rows": len(held_out),
        "seed": seed,
        "split": split,
    }
