"""Before a study's first trial: does every method fit, and which token budget suits them all?"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import tomli_w

from suri.files import write_json, write_text
from suri.reading import read_object
from suri.recipe import recipe_from_toml, settings_of
from suri.study.plan import DATA, Plan, Trial
from suri.study.process import as_program, run_module
from suri.wording import counted

BUDGET = "budget.json"


def common_budget(trials: Sequence[Trial], folder: Path) -> dict[str, Any]:
    """The smallest token budget that any method needs at its largest size, and each one's memory.

    Reckoned once, in a process of its own, and kept: a study that goes on keeps its trials.
    Raises what the process raised, such as a method that does not fit.
    """
    largest = {(trial.recipe.quantize, str(trial.settings)): trial for trial in trials}
    recipes = folder / DATA / "recipes"
    paths = []
    for number, trial in enumerate(largest.values()):
        paths.append(recipes / f"{number}.toml")
        write_text(paths[-1], tomli_w.dumps(settings_of(trial.recipe)))
    known = folder / DATA / BUDGET
    asked = [path.read_text(encoding="utf-8") for path in paths]
    if known.is_file() and (found := read_object(known)).get("asked") == asked:
        return found
    run_module(
        "suri.study.preflight",
        [str(folder / DATA / "found.json"), *map(str, paths)],
        what="the check before the first trial",
        terminal=folder / DATA / "preflight.txt",
        results=folder,
    )
    found = read_object(folder / DATA / "found.json") | {"asked": asked}
    write_json(known, found)
    return found


def held_equal(plan: Plan, held_out: int) -> dict[str, str]:
    """What all methods of one size and seed have alike, for people to read."""
    recipe = plan.recipe
    rows = "row|rows"
    cap = f", {counted(recipe.micro_batch_size, rows)} at most" if recipe.micro_batch_size else ""
    return {
        "rows": "the first rows of one seeded order: a smaller set is the start of a larger one",
        "held-out rows": f"the same {held_out} for every trial",
        "order of the rows": "drawn from the seed alone",
        "optimizer steps": f"{counted(recipe.batch_size, rows)} each, as many for every method",
        "micro-batches": f"up to {recipe.token_budget} tokens{cap}, cut alike",
        "adapter": "fp32, from the same numbers, drawn from the seed alone",
        "all other settings": "one recipe",
    }


def main(out: str, *recipes: str) -> None:
    """Hold every recipe against this machine; write the common budget, or say what does not fit."""
    from suri.train.fit import fit_here
    from suri.train.prepare import prepare

    fits = [fit_here(prepare(recipe_from_toml(Path(path)))) for path in recipes]
    budget = min(fit.made.recipe.token_budget for fit in fits)
    memory = {fit.made.recipe.quantize: fit.estimate.total for fit in fits}
    write_json(Path(out), {"token_budget": budget, "memory": memory})


def with_budget(plan: Plan, budget: int) -> Plan:
    """The plan with its token budget settled."""
    return replace(plan, recipe=replace(plan.recipe, token_budget=budget))


if __name__ == "__main__":
    sys.exit(as_program(main, sys.argv[1:]))
