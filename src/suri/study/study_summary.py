"""What a study's trials come to: groups, methods held against each other, what more rows bring."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

from suri.study.intervals import (
    Interval,
    difference_interval,
    mean_interval,
    ratio_interval,
    share_interval,
)
from suri.study.measures import COSTS, spread

Entry = dict[str, Any]
"""One trial."""
Cell = tuple[int, str, str]
"""Rows, other settings as text, method."""


def summarise_trials(trials: Sequence[Entry]) -> dict[str, Any]:
    """Groups of equal size and method, methods against the plain one, and sizes against smaller.

    A trial holds what summary.json says of it: its plan, the numbers of result.json, the seconds
    per token of each step and loss and answer of every held-out row. Only finished ones count.
    """
    cells: dict[Cell, list[Entry]] = {}
    for trial in trials:
        if trial["status"] == "finished":
            cell = trial["rows"], str(trial["settings"]), trial["quantize"]
            cells.setdefault(cell, []).append(trial)
    sizes = sorted({rows for rows, _, _ in cells})
    smaller = {large: small for small, large in itertools.pairwise(sizes)}
    first: dict[tuple[int, str], str] = {}
    for rows, settings, method in cells:
        first.setdefault((rows, method), settings)
    growing = dict(sorted(cells.items(), key=lambda item: item[0][0]))
    return {
        "groups": [_group(cell) for cell in cells.values()],
        "methods": [
            _methods(*pair)
            for pair in _pairs(cells, lambda rows, settings, _: (rows, settings, "none"))
        ],
        "sizes": [
            _held_against(*pair, equal=())
            for pair in _pairs(growing, lambda rows, *same: (smaller.get(rows, 0), *same))
        ],
        "settings": [
            _held_against(*pair, equal=("steps", "rows_seen"))
            for pair in _pairs(cells, lambda rows, _, method: (rows, first[rows, method], method))
        ],
    }


def _pairs(
    cells: dict[Cell, list[Entry]], other: Callable[[int, str, str], Cell]
) -> Iterator[tuple[list[Entry], list[Entry]]]:
    """The trials of every cell, and of the other one that it is held against, if there is one."""
    for cell, ours in cells.items():
        theirs = cells.get(other(*cell))
        if theirs and theirs is not ours:
            yield ours, theirs


def _group(trials: Sequence[Entry]) -> dict[str, Any]:
    totals, weights = _losses_by_row(trials)
    right = _right(trials)
    # The whole time of a trial that was cut and went on is None.
    known = {name: [trial[name] for trial in trials if trial[name] is not None] for name in COSTS}
    return {
        "rows": trials[0]["rows"],
        "quantize": trials[0]["quantize"],
        "settings": trials[0]["settings"],
        "seeds": [trial["seed"] for trial in trials],
        "steps": trials[0]["steps"],
        "base_loss": median(trial["base_loss"] for trial in trials),
        "loss": asdict(mean_interval(totals, weights)),
        "exact_match": asdict(_share(right)) if right else None,
        **{name: spread(values) if values else None for name, values in known.items()},
    }


def _methods(ours: Sequence[Entry], theirs: Sequence[Entry]) -> dict[str, Any]:
    """One method against the plain one; a speed-up above 1 means that ours is faster.

    Step k of both learned from the same tokens, so their seconds per token pair. The first step
    warms up and is left out. What was not equal is named, and then nothing is compared.
    """
    found = _held_against(ours, theirs)
    ours, theirs = _same_seeds(ours, theirs)
    if not ours or found["unequal"]:
        return found
    steps = [[trial["token_seconds"][1:] for trial in trials] for trials in (theirs, ours)]
    whole = [[[trial["total_seconds"] or 0.0] for trial in trials] for trials in (theirs, ours)]
    peaks = [[[trial["peak_memory_bytes"]] for trial in trials] for trials in (ours, theirs)]
    has_whole = all(all(one) for trials in whole for one in trials)
    memory = ratio_interval(*peaks)
    return found | {
        "speed_up": asdict(ratio_interval(*steps)) if steps[0][0] else None,
        "speed_up_to_adapter": asdict(ratio_interval(*whole)) if has_whole else None,
        "memory_saved": asdict(
            Interval(1 - memory.value, 1 - memory.high, 1 - memory.low, 1, memory.seeds)
        ),
    }


EQUAL = (
    "steps",
    "rows_seen",
    "micro_batches",
    "initial_adapter",
    "adapter_dtype",
    "learned_tokens",
)
"""What two methods of one size and seed must have alike: measured by each trial, not assumed.
`rows_seen` and `initial_adapter` are checksums, over the rows of every step and the numbers."""


def _held_against(
    ours: Sequence[Entry], theirs: Sequence[Entry], equal: Sequence[str] = EQUAL
) -> dict[str, Any]:
    """Quality of ours less theirs, paired by seed and held-out row."""
    names = {
        side: {name: trials[0][name] for name in ("rows", "quantize", "settings")}
        for side, trials in (("ours", ours), ("theirs", theirs))
    }
    ours, theirs = _same_seeds(ours, theirs)
    unequal = [
        name
        for name in equal
        if any(
            one["facts"].get(name) != other["facts"].get(name)
            for one, other in zip(ours, theirs, strict=True)
        )
    ]
    found: dict[str, Any] = {
        **names, "seeds": [trial["seed"] for trial in ours], "unequal": unequal,
        "speed_up": None, "speed_up_to_adapter": None, "memory_saved": None,
        "loss_difference": None, "exact_match_difference": None,
    }  # fmt: skip
    if not ours or unequal:
        return found
    (our, weights), (their, _) = _losses_by_row(ours), _losses_by_row(theirs)
    right, others = _right(ours), _right(theirs)
    exact = difference_interval(right, others, most=1) if right and others else None
    return found | {
        "loss_difference": asdict(difference_interval(our, their, weights)),
        "exact_match_difference": asdict(exact) if exact else None,
    }


def _same_seeds(ours: Sequence[Entry], theirs: Sequence[Entry]) -> tuple[list[Entry], list[Entry]]:
    """The trials whose seed both have, in pairs."""
    others = {trial["seed"]: trial for trial in theirs}
    both = [trial for trial in ours if trial["seed"] in others]
    return both, [others[trial["seed"]] for trial in both]


def _losses_by_row(trials: Sequence[Entry]) -> tuple[list[list[float]], list[float]]:
    """Summed loss of every held-out row, for each trial, and the rows' learned tokens."""
    totals = [[row["loss_sum"] for row in trial["losses"]] for trial in trials]
    return totals, [row["learned_tokens"] for row in trials[0]["losses"]]


def _right(trials: Sequence[Entry]) -> list[list[float]]:
    """1 for every held-out row that was answered exactly, else 0, for each trial; of those that
    a rule can check.
    """
    return [
        rows
        for trial in trials
        if (rows := [float(right) for right in trial["correct"] if right is not None])
    ]


def _share(right: Sequence[Sequence[float]]) -> Interval:
    """The share of right answers over rows and seeds; as wide as Wilson's over the rows, which is
    honest where all are right or none.
    """
    found, rows = mean_interval(right), len(right[0])
    wilson = share_interval(round(found.value * rows), rows)
    low, high = max(0.0, min(found.low, wilson.low)), min(1.0, max(found.high, wilson.high))
    return Interval(found.value, low, high, rows, found.seeds)
