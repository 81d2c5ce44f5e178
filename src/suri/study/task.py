"""One command from a plan to a comparison: train what it says, then compare."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import tomli_w

from suri.errors import UsageError
from suri.files import write_text
from suri.reading import read_toml
from suri.recipe import Recipe, settings_of, with_settings
from suri.study.compare import Comparison, compare
from suri.study.forms import WORK, ways_of
from suri.study.plan import refuse_unknown
from suri.study.process import Say, open_results, run_module


def compare_plan(asked: Comparison, say: Say) -> Path:
    """Train what [recipe] of a TOML file says, then compare as [compare] says; see `compare`.

    Flags win over the file. A run that is finished is not trained again. Raises UsageError for
    an unknown name or a wrong type.
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
    open_results(asked.folder, WORK)
    train(recipe, asked.folder / WORK / "train.txt", say)
    return compare(comparison, say)


def _settings(table: dict[str, Any], path: Path) -> dict[str, Any]:
    known = {item.name: item.default for item in fields(Comparison) if item.name != "run"}
    refuse_unknown(table, tuple(known), path)
    for name, value in table.items():
        if type(value) is not type(known[name]):
            raise UsageError(f"{path}: {name} = {value!r} is not of the form {known[name]!r}")
    return table


def train(recipe: Recipe, terminal: Path, say: Say) -> None:
    """Train into the recipe's folder, in a process of its own, unless that is done already."""
    run = Path(recipe.output_dir)
    if (run / "result.json").is_file():
        say(f"training: {run} is finished already")
        return
    say(f"training into {run}")
    asked = terminal.with_name("recipe.toml")
    write_text(asked, tomli_w.dumps(settings_of(replace(recipe, overwrite=True))))
    run_module(
        "suri",
        ["train", "--recipe", str(asked)],
        what="the training",
        terminal=terminal,
        results=terminal.parents[1],
    )
