"""Trials under way, as far as the files in their folders tell."""

import math
from dataclasses import dataclass

from suri.errors import SuriError
from suri.reading import read_json_lines
from suri.study.claims import holder
from suri.study.plan import Trial
from suri.study.process import attempts_of


@dataclass(frozen=True)
class Row:
    """One trial: where it runs ("": it waits), how far it is, how often it was begun."""

    name: str
    where: str
    step: int
    steps: int
    """Of the whole run; fewer where rows are left out or it stops early."""
    attempts: int


def row_of(trial: Trial) -> Row:
    """What its folder tells of a trial."""
    recipe, place = trial.recipe, trial.place
    steps = math.ceil(recipe.num_epochs * math.ceil(trial.rows / recipe.batch_size))
    try:
        lines = read_json_lines(place / "run" / "metrics.jsonl")
        step = max((int(line["step"]) for line in lines), default=0)
    except (SuriError, OSError, KeyError, TypeError, ValueError):
        step = 0  # it is being written anew
    return Row(
        name=trial.name,
        where=str(holder(place).get("host", "")),
        step=step,
        steps=min(steps, recipe.max_steps) if recipe.max_steps else steps,
        attempts=attempts_of(place),
    )
