"""A study's plan: which trials, on which rows, and what each is called."""

import difflib
import hashlib
import json
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np

from suri.data.records import Record, write_records
from suri.data.split import load_rows
from suri.errors import UsageError
from suri.files import sha256
from suri.recipe import Quantize, Recipe, settings_of, with_settings

DATA = "data"


@dataclass(frozen=True)
class Plan:
    """Every method on every number of rows with every seed; all else is the recipe's."""

    recipe: Recipe
    quantize: tuple[Quantize, ...] = ("none", "nf4")
    rows: tuple[int, ...] = (64, 128)
    seeds: tuple[int, ...] = (0,)


@dataclass(frozen=True)
class Trial:
    """One training run of a study."""

    recipe: Recipe
    rows: int
    name: str
    """Tells the trial to people, and ends in a hash of its settings and of its rows."""


def read_plan(path: Path) -> Plan:
    """Read [recipe] and [study] of a TOML file.

    Raises UsageError for no such file, an unknown name, a wrong type, or an empty list.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{path}: no such plan") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as problem:
        raise UsageError(f"{path}: not a TOML file", found=str(problem)) from None
    _refuse_unknown(table, ("recipe", "study"), path)
    recipe = with_settings(Recipe(), table.get("recipe", {}), str(path))
    study = table.get("study", {})
    kinds: dict[str, Any] = {"quantize": get_args(Quantize), "rows": int, "seeds": int}
    _refuse_unknown(study, tuple(kinds), path)
    for name, values in study.items():
        if not _is_list_of(values, kinds[name], least=0 if name == "seeds" else 1):
            kind = " and ".join(kinds[name]) if name == "quantize" else "whole numbers"
            raise UsageError(f"{path}: {name} = {values!r} must be a list of {kind}")
    return Plan(recipe, **{name: tuple(dict.fromkeys(values)) for name, values in study.items()})


def _refuse_unknown(table: dict[str, Any], known: tuple[str, ...], path: Path) -> None:
    for name in table:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise UsageError(
                f"{path}: there is no {name} in a plan",
                do=f"did you mean {near[0]}?" if near else f"it has {' and '.join(known)}",
            )


def _is_list_of(values: Any, kind: Any, least: int) -> bool:
    if not isinstance(values, list) or not values:
        return False
    if kind is int:
        return all(type(value) is int and value >= least for value in values)
    return all(value in kind for value in values)


def prepare(plan: Plan, folder: Path) -> tuple[list[Trial], list[Record]]:
    """Write the row files under folder/data; returns the trials in their order, and held-out rows.

    One seeded order of the training rows serves all sizes, so that a smaller set is the start of
    a larger one; held-out rows are the same for all trials. Methods of one size and seed stand
    next to each other, so that they share the machine's mood.
    """
    recipe = plan.recipe
    rows = load_rows(recipe)
    most = max(plan.rows)
    if most > len(rows.train):
        raise UsageError(
            f"the plan asks for {most} training rows",
            found=f"{len(rows.train)} in {recipe.data_path}, {len(rows.held_out)} held out",
            do="ask for fewer rows or give more data",
        )
    if not rows.held_out:
        raise UsageError("a study needs held-out rows", do="set val_set_size or val_set_path")
    order = np.random.default_rng(recipe.seed).permutation(len(rows.train))[:most]
    wanted = {int(place): rank for rank, place in enumerate(order)}
    train = {wanted[i]: record for i, (_, record) in enumerate(rows.train) if i in wanted}
    held_out = folder / DATA / "held_out.json"
    write_records(held_out, rows.held_out)
    for size in plan.rows:
        write_records(_rows_file(folder, size), [train[rank] for rank in range(size)])
    return list(_trials(plan, folder, held_out)), rows.held_out


def _trials(plan: Plan, folder: Path, held_out: Path) -> Iterator[Trial]:
    for size in plan.rows:
        data = _rows_file(folder, size)
        for seed in plan.seeds:
            for quantize in plan.quantize:
                recipe = replace(plan.recipe, quantize=quantize, seed=seed)
                name = f"{quantize}-rows{size}-seed{seed}-{_hash(recipe, [data, held_out])}"
                place = folder / "trials" / name / "run"
                yield Trial(
                    replace(
                        recipe,
                        data_path=str(data.absolute()),
                        val_set_path=str(held_out.absolute()),
                        output_dir=str(place.absolute()),
                    ),
                    size,
                    name,
                )


def _rows_file(folder: Path, rows: int) -> Path:
    return folder / DATA / f"rows-{rows}.json"


def _hash(recipe: Recipe, files: list[Path]) -> str:
    """Ten digits over everything that decides a trial's outcome, wherever it is stored."""
    settings = settings_of(recipe)
    for name in ("output_dir", "data_path", "val_set_path", "val_set_size", "overwrite"):
        del settings[name]
    decisive = [settings, *(sha256(file) for file in files)]
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:10]
