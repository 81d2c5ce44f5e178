"""A study's plan: which trials, on which rows, what each is called, and that it is fair."""

import difflib
import hashlib
import itertools
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np

from suri.data.records import Record, write_records
from suri.data.split import load_rows
from suri.errors import UsageError
from suri.manifest import sha256
from suri.reading import read_toml
from suri.recipe import Quantize, Recipe, settings_of, with_settings
from suri.train.runs import WHERE

DATA, HELD_OUT = "data", "held_out.json"
METHODS = tuple(name for name in get_args(Quantize) if name != "fp8")
"""How a study stores the base; fp8 is left out, since few GPUs train with it."""
VARIED: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "quantize": (" and ".join(METHODS), lambda value: value in METHODS),
    "rows": ("whole numbers", lambda value: type(value) is int and value > 0),
    "seeds": ("whole numbers", lambda value: type(value) is int and value >= 0),
}
"""What every plan has lists of: what they hold, and whether a value belongs there."""
FIXED = (
    "token_budget", "micro_batch_size", "device", "seed", "data_path", "columns", "val_set_size",
    "val_set_path", "output_dir", "resume", "resume_from_checkpoint", "overwrite", "report_to",
    "wandb_project", "wandb_run_name",
)  # fmt: skip
"""Settings that a study does not vary: trials of unequal micro-batches, machines or rows say
nothing about methods, and the rest says nothing about learning."""


@dataclass(frozen=True)
class Plan:
    """Every method on every number of rows with every seed; all else is the recipe's.

    `vary` holds more settings by their names, each with the values to try.
    """

    recipe: Recipe
    quantize: tuple[Quantize, ...] = ("none", "nf4")
    rows: tuple[int, ...] = (64, 128)
    seeds: tuple[int, ...] = (0,)
    vary: dict[str, tuple[Any, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Trial:
    """One training run of a study."""

    recipe: Recipe
    rows: int
    name: str
    """Tells the trial to people, and ends in a hash of its settings and of its rows."""
    settings: dict[str, Any] = field(default_factory=dict)
    """What the plan varies beside method, rows and seed."""

    @property
    def place(self) -> Path:
        """Its folder, in which the run, what was judged of it and its terminals lie."""
        return Path(self.recipe.output_dir).parent


def read_plan(path: Path) -> Plan:
    """Read [recipe] and [study] of a TOML file.

    Raises UsageError for no such file, an unknown name, a wrong type, or an empty list.
    """
    table = read_toml(path, "plan", "recipe", "study")
    refuse_unknown(table, ("recipe", "study"), path)
    recipe = with_settings(Recipe(), table.get("recipe", {}), str(path))
    study = table.get("study", {})
    settings = tuple(item.name for item in fields(Recipe))
    refuse_unknown(study, (*VARIED, *settings), path)
    chosen = {}
    for name, (kind, belongs) in VARIED.items():
        if name not in study:
            continue
        values = study[name]
        if not isinstance(values, list) or not values or not all(map(belongs, values)):
            raise UsageError(f"{path}: {name} = {values!r} must be a list of {kind}")
        chosen[name] = tuple(dict.fromkeys(values))
    return Plan(recipe, **chosen, vary=_vary(study, recipe, path))


def _vary(study: dict[str, Any], recipe: Recipe, path: Path) -> dict[str, tuple[Any, ...]]:
    """The further settings of [study], each value checked as the recipe checks it."""
    vary = {}
    for name, values in study.items():
        if name in VARIED:
            continue
        if name in FIXED:
            raise UsageError(
                f"{path}: a study does not vary {name}",
                found="its trials would not be equal in all but what is compared",
                do="set it once, under [recipe]",
            )
        if not isinstance(values, list) or not values:
            raise UsageError(f"{path}: {name} = {values!r} must be a list of values to try")
        made = [getattr(with_settings(recipe, {name: value}, str(path)), name) for value in values]
        vary[name] = tuple(dict.fromkeys(made))
    return vary


def refuse_unknown(table: dict[str, Any], known: tuple[str, ...], path: Path) -> None:
    """Raise UsageError for a name of a TOML table that is not known, with what was meant."""
    for name in table:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise UsageError(
                f"{path}: there is no {name} in a plan",
                do=f"did you mean {near[0]}?" if near else f"it has {' and '.join(known[:3])}",
            )


def what_it_is(settings: dict[str, Any]) -> dict[str, Any]:
    """A recipe's settings without those that only say where its run lies."""
    return {name: value for name, value in settings.items() if name not in WHERE}


def write_rows(plan: Plan, folder: Path) -> list[Record]:
    """Write the row files under folder/data; returns the held-out rows.

    One seeded order of the training rows serves all sizes, so that a smaller set is the start of
    a larger one; held-out rows are the same for all trials. Raises UsageError for too few rows.
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
    write_records(folder / DATA / HELD_OUT, rows.held_out)
    for size in plan.rows:
        write_records(_rows_file(folder, size), [train[rank] for rank in range(size)])
    return rows.held_out


def trials_of(plan: Plan, folder: Path) -> Iterator[Trial]:
    """The trials in their order, over the row files of `write_rows`.

    Methods of one size and seed stand next to each other: a drifting machine harms none.
    """
    held_out = folder / DATA / HELD_OUT
    combinations = [
        dict(zip(plan.vary, values, strict=True))
        for values in itertools.product(*plan.vary.values())
    ]
    for size, settings, seed, quantize in itertools.product(
        plan.rows, combinations, plan.seeds, plan.quantize
    ):
        data = _rows_file(folder, size)
        recipe = replace(plan.recipe, quantize=quantize, seed=seed, **settings)
        varied = "".join(f"-{name}={value}" for name, value in settings.items())
        told = re.sub(r"[^\w.=-]+", "_", f"{quantize}-rows{size}-seed{seed}{varied}")[:120]
        name = f"{told}-{_hash(recipe, [data, held_out])}"
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
            settings,
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
