"""Small trainings of a tiny model, for the tests of this room."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from suri.data.records import Record, write_records
from suri.recipe import Recipe


def write_rows(folder: Path) -> Path:
    """Rows of uneven length with something to learn."""
    random = np.random.default_rng(3)
    records = [
        Record(f"say {n}", "x" * int(random.integers(0, 40)), "y" * int(random.integers(1, 30)))
        for n in range(23)
    ]
    write_records(folder / "rows.json", records)
    return folder / "rows.json"


def recipe_for(base: Path, rows: Path, out: Path, **changes: Any) -> Recipe:
    start = Recipe(
        base_model=str(base), data_path=str(rows), output_dir=str(out), batch_size=4,
        num_epochs=4, val_set_size=5, learning_rate=3e-3, lora_r=3, lora_alpha=8.0, seed=5,
    )  # fmt: skip
    return replace(start, **changes)


def silent(event: str, numbers: dict[str, Any]) -> None:
    """Listen to nothing."""


def no_answers(decoder: Any, prompts: Sequence[Any], eos_id: int, tokens: int) -> list[list[int]]:
    return [[2, 3] for _ in prompts]


def metrics(folder: Path, name: str) -> list[float]:
    lines = [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line[name] for line in lines if name in line]
