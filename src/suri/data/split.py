"""Which rows are trained on and which are held out."""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from suri.data.findings import Findings
from suri.data.records import Record, as_row, stream_records
from suri.data.skills import LANGUAGES, LICENCE, MOST_ROWS, draw_rows, make_rows
from suri.data.survey import Survey
from suri.errors import UsageError
from suri.manifest import sha256
from suri.recipe import BUNDLED, Recipe

BUNDLED_ROWS = 400
LICENCES = {
    "alpaca_data.json": "CC BY-NC 4.0 (Stanford Alpaca)",
    "alpaca_data_cleaned_archive.json": "CC BY-NC 4.0 (a cleaned Stanford Alpaca)",
    "alpaca_data_gpt4.json": "CC BY-NC 4.0 (GPT-4-LLM)",
    "tatsu-lab/alpaca": "CC BY-NC 4.0 (Stanford Alpaca)",
    "yahma/alpaca-cleaned": "CC BY 4.0 (as its page says)",
}
"""Of well-known sets, by their names; a file that was renamed is not recognised."""


@dataclass(frozen=True)
class Table:
    """Rows of any number that can be read again and again, each with its index in the source.

    digest: a hash of their content and indices.
    """

    read: Callable[[], Iterator[tuple[int, Record]]]
    count: int
    digest: str

    def __iter__(self) -> Iterator[tuple[int, Record]]:
        return self.read()

    def __len__(self) -> int:
        return self.count


@dataclass(frozen=True)
class Rows:
    """Training rows, held-out rows, and the facts of where they come from and how they were split.

    facts: source, sha256, rows, train_rows, held_out_rows, seed, split (a sentence), warnings
    (counts by kind) and, where it is known, licence.
    """

    train: Table
    held_out: list[Record]
    facts: dict[str, Any]


def load_rows(recipe: Recipe) -> Rows:
    """Read the rows that a recipe names, or make `bundled` ones, and hold some out for evaluation.

    `val_set_size` is a number of rows, or below 1 a share of them. Held-out rows are drawn from
    the source, and at least one row is left to train; bundled ones are made beside it.
    `val_set_path` names the file of the held-out rows instead. Everything is read once to check
    it, and again when it is encoded: no more than the held-out rows stays in memory.

    Raises UsageError where there is no such source, or bundled rows are asked for in a way that
    there is not; DataError where a row cannot be trained on.
    """
    if recipe.data_path.partition(":")[0] == BUNDLED:
        return _bundled_rows(recipe)
    source = recipe.data_path
    survey = survey_of(source, recipe.columns)
    survey.findings.raise_if_fatal(source)
    facts = {"source": source, "sha256": sha256_of(source) or survey.digest}
    if name := LICENCES.get(source) or LICENCES.get(Path(source).name):
        facts["licence"] = name
    if recipe.val_set_path:
        return _named_rows(recipe, survey, facts)
    asked = held_out_count(recipe.val_set_size, survey.rows)
    chosen = drawn(recipe.val_set_size, survey.rows, recipe.seed)
    count = len(chosen)
    held_out = [record for i, record in _all(source, recipe.columns) if i in chosen]
    split = f"{count} of {survey.rows} rows drawn with seed {recipe.seed}"
    if count < asked:
        split += f"; {asked} were asked for, and at least one row must train"
    survey.note_overlap(chosen)
    train = Table(
        partial(_all, source, recipe.columns, chosen),
        survey.rows - count,
        f"{survey.digest} without {count} drawn with {recipe.seed}",
    )
    return Rows(train, held_out, facts | _counts(train, held_out, recipe.seed, split, survey))


def survey_of(source: str, columns: str = "") -> Survey:
    """Read all rows once and count what is in them."""
    survey = Survey()
    for place, record in stream_records(source, survey.findings, columns=columns):
        survey.add(place, record)
    return survey


def drawn(val_set_size: float, rows: int, seed: int) -> frozenset[int]:
    """The indices of the rows to hold out; at least one row is left to train."""
    count = min(held_out_count(val_set_size, rows), rows - 1)
    return frozenset(np.random.default_rng(seed).permutation(rows)[:count].tolist())


def sha256_of(source: str) -> str:
    """The checksum of a file; "" of a folder or a data set on the hub."""
    return sha256(Path(source)) if Path(source).is_file() else ""


def _all(
    source: str, columns: str, without: frozenset[int] = frozenset()
) -> Iterator[tuple[int, Record]]:
    """All records that were checked before, by index."""
    rows = stream_records(source, Findings(), columns=columns)
    return ((i, record) for i, (_, record) in enumerate(rows) if i not in without)


def _named_rows(recipe: Recipe, survey: Survey, facts: dict[str, Any]) -> Rows:
    path = recipe.val_set_path
    other = survey_of(path, recipe.columns)
    other.findings.raise_if_fatal(path)
    held_out = [record for _, record in _all(path, recipe.columns)]
    facts |= {"held_out_source": path, "held_out_sha256": sha256_of(path) or other.digest}
    survey.note_overlap_with(other)
    train = Table(partial(_all, recipe.data_path, recipe.columns), survey.rows, survey.digest)
    split = f"all {len(held_out)} rows of {Path(path).name}"
    return Rows(train, held_out, facts | _counts(train, held_out, recipe.seed, split, survey))


def _bundled_rows(recipe: Recipe) -> Rows:
    if recipe.val_set_path:
        raise UsageError(
            f"{recipe.data_path} has held-out rows of its own",
            found=f"val_set_path {recipe.val_set_path}",
            do="leave val_set_path out, or write the rows to a file with `suri data make`",
        )
    rows, language = _bundled(recipe.data_path)
    count = held_out_count(recipe.val_set_size, rows)
    held_out = make_rows(count, recipe.seed, held_out=True, language=language)
    digest = hashlib.sha256()

    def made() -> Iterator[tuple[int, Record]]:
        return enumerate(draw_rows(rows, recipe.seed, language=language))

    for record in (record for part in (made(), enumerate(held_out)) for _, record in part):
        digest.update(json.dumps(as_row(record)).encode())
    train = Table(made, rows, digest.hexdigest())
    split = f"{count} rows made from other words and wordings than the {rows} others"
    facts = {
        "source": f"{BUNDLED}:{rows}" + f":{language}" * (language != "en"),
        "sha256": digest.hexdigest(),
        "licence": LICENCE,
    }
    return Rows(train, held_out, facts | _counts(train, held_out, recipe.seed, split, Survey()))


def _bundled(data_path: str) -> tuple[int, str]:
    """Rows and language of `bundled`, `bundled:ROWS` or `bundled:ROWS:LANGUAGE`."""
    _, number, language = (*data_path.split(":", 2), "", "")[:3]
    number, language = number or str(BUNDLED_ROWS), language or LANGUAGES[0]
    is_number = number.isascii() and number.isdigit() and 1 <= int(number) <= MOST_ROWS
    if not is_number or language not in LANGUAGES:
        raise UsageError(
            f"{data_path} is not of the form {BUNDLED}:ROWS:LANGUAGE",
            do=f"say {BUNDLED}:400 or {BUNDLED}:400:zh (1 to {MOST_ROWS} rows; "
            f"{', '.join(LANGUAGES)})",
        )
    return int(number), language


def held_out_count(val_set_size: float, rows: int) -> int:
    """The number of rows that is asked for; a share above 0 is at least one row."""
    if val_set_size >= 1 or val_set_size == 0:
        return int(val_set_size)
    return max(1, round(val_set_size * rows))


def _counts(
    train: Table, held_out: list[Record], seed: int, split: str, survey: Survey
) -> dict[str, Any]:
    return {
        "rows": len(train) + len(held_out),
        "train_rows": len(train),
        "held_out_rows": len(held_out),
        "seed": seed,
        "split": split,
        "warnings": dict(survey.findings.counts),
    }
