"""One command from a plan to a comparison: train what it says, then compare."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from suri.errors import UsageError
from suri.reading import read_toml
from suri.recipe import Recipe, recipe_from_toml, settings_of, with_settings
from suri.study.compare import Comparison, compare
from suri.study.forms import WORK, ways_of
from suri.study.plan import refuse_unknown, what_it_is
from suri.study.process import Say, open_results, train

SETTLED = ("token_budget", "micro_batch_size", "shard_base")
"""Settings that a run settles by the memory there is; none changes its result."""


def compare_plan(asked: Comparison, say: Say) -> Path:
    """Train what [recipe] of a TOML file says, then compare as [compare] says; see `compare`.

    Flags win over the file. A run that is finished is not trained again, and one that was stopped
    goes on. Raises UsageError for an unknown name, a wrong type, or a run with other settings.
    """
    path = asked.run
    table = read_toml(path, "plan", "recipe", "compare")
    refuse_unknown(table, ("recipe", "compare"), path)
    settings = _settings(table.get("compare", {}), path)
    flags = {
        item.name: getattr(asked, item.name)
        for item in fields(Comparison)
        if item.name != "run" and getattr(asked, item.name) != item.default
    }
    run = asked.folder / "run"
    recipe = with_settings(Recipe(), table.get("recipe", {}), str(path))
    recipe = replace(recipe, output_dir=str(run.absolute()))
    comparison = Comparison(run=run, **settings | {"output_dir": str(asked.folder)} | flags)
    ways_of(comparison.ways, comparison.engines, comparison.dtypes, recipe.quantize)
    _refuse_other_settings(recipe, run)
    open_results(asked.folder, WORK)
    say(f"{run} is trained already" if (run / "result.json").is_file() else f"training into {run}")
    train(recipe, asked.folder / WORK, what="the training", results=asked.folder)
    return compare(comparison, say)


def _settings(table: dict[str, Any], path: Path) -> dict[str, Any]:
    known = {item.name: item.default for item in fields(Comparison) if item.name != "run"}
    refuse_unknown(table, tuple(known), path)
    for name, value in table.items():
        if type(value) is not type(known[name]):
            raise UsageError(f"{path}: {name} = {value!r} is not of the form {known[name]!r}")
    return {name: each.strip() if isinstance(each, str) else each for name, each in table.items()}


def _refuse_other_settings(recipe: Recipe, run: Path) -> None:
    """Raise UsageError where the plan was changed since its run was begun."""
    if not (run / "recipe.toml").is_file():
        return
    recorded = settings_of(recipe_from_toml(run / "recipe.toml"))
    differing = [
        f"{name} is {value} in the plan, was {recorded[name]}"
        for name, value in what_it_is(settings_of(recipe)).items()
        if name not in SETTLED and value != recorded[name]
    ]
    if differing:
        raise UsageError(
            f"{run} was trained with other settings",
            found="; ".join(differing),
            do="choose another --output_dir, or remove that folder",
        )
