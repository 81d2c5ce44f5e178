"""What the measured ways come to: quality, agreement and speed, as plain values for JSON."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from statistics import fmean, median
from typing import Any

from suri.study.forms import Way
from suri.study.intervals import Interval, difference_interval, mean_interval, share_interval
from suri.study.measures import ADAPTER, BASE, MEASURES, SPEEDS, spread
from suri.study.scores import first_difference, shared_prefix

Entry = dict[str, Any]
"""One held-out row of answers.jsonl."""
COMPARED = ("exact_match", "rouge_l", "chrf", "bleu", "loss")
SHARES = ("exact_match", "stop_rate")


def summarise_ways(
    entries: Sequence[Entry], ways: Sequence[Way], measured: dict[str, list[dict[str, Any]]]
) -> dict[str, Any]:
    """Quality, agreement and speed of every way, and the differences that statements rest on.

    `entries` are the lines of answers.jsonl, `measured` what each way's processes found.
    """
    found = {
        way.name: {
            **asdict(way),
            "quality": _quality(entries, way.name),
            "agreement": _agreement(entries, way.name, measured[way.name][0].get("probe")),
            "speed": {
                name: spread([one["speed"][name] for one in measured[way.name]]) for name in SPEEDS
            },
        }
        for way in ways
    }
    differences = [
        {"measure": measure, "ours": ours, "theirs": theirs, **asdict(difference)}
        for ours, theirs in pairs(ways)
        for measure in COMPARED
        if (difference := _difference(entries, measure, ours, theirs))
    ]
    return {"ways": found, "differences": differences, "prefixes": _prefixes(entries, list(found))}


def pairs(ways: Sequence[Way]) -> list[tuple[str, str]]:
    """Which ways are held against which: the adapter against the base, other forms against the
    adapter, and what differs in engine or number format against the same form.
    """
    names = [way.name for way in ways]
    held = [
        (way.name, (BASE if way.form == ADAPTER else ADAPTER) if way.is_main else way.form)
        for way in ways
        if way.name != BASE
    ]
    return [(ours, theirs) for ours, theirs in held if theirs in names]


def row_scores(entries: Iterable[Entry], measure: str, way: str) -> list[tuple[float, float]]:
    """(total, weight) of every row that has this measure: loss weighs tokens, the others rows."""
    answers = [entry["answers"][way] for entry in entries]
    if measure == "loss":
        return [
            (answer["loss_sum"], answer["learned_tokens"])
            for answer in answers
            if answer.get("learned_tokens")
        ]
    field = {"exact_match": "correct", "stop_rate": "stopped", "answer_tokens": "tokens"}
    values = (answer[field.get(measure, measure)] for answer in answers)
    return [(float(value), 1.0) for value in values if value is not None]


def _quality(entries: Sequence[Entry], way: str) -> dict[str, Any]:
    quality = {}
    for measure in MEASURES:
        if measure == "perplexity":
            continue
        scores = row_scores(entries, measure, way)
        if not scores:
            continue
        totals, weights = zip(*scores, strict=True)
        if measure in SHARES:
            found = share_interval(round(sum(totals)), len(totals))
        else:
            found = mean_interval(totals, weights)
        quality[measure] = asdict(found)
        if measure == "loss":
            quality["perplexity"] = asdict(_exponential(found))
    return quality


def _exponential(loss: Interval) -> Interval:
    value, low, high = (math.exp(min(x, 700.0)) for x in (loss.value, loss.low, loss.high))
    return replace(loss, value=value, low=low, high=high)


def _difference(entries: Sequence[Entry], measure: str, ours: str, theirs: str) -> Interval | None:
    our, their = (row_scores(entries, measure, way) for way in (ours, theirs))
    if not our or not their:
        return None
    weights = [weight for _, weight in our]
    most = math.inf if measure == "loss" else 1.0
    return difference_interval([x for x, _ in our], [x for x, _ in their], weights, most=most)


def _agreement(entries: Sequence[Entry], way: str, probe: dict[str, Any] | None) -> dict[str, Any]:
    """How near the answers are to the adapter's; empty where the adapter was not measured."""
    if ADAPTER not in entries[0]["answers"]:
        return {}
    both = [[entry["answers"][name]["ids"] for name in (way, ADAPTER)] for entry in entries]
    parted = [first_difference(*ids) for ids in both if ids[0] != ids[1]]
    return {
        "identical": len(both) - len(parted),
        "rows": len(both),
        "shared_prefix": fmean(shared_prefix(*ids) for ids in both),
        "first_difference": median(parted) if parted else None,
        "probe": probe,
    }


def _prefixes(entries: Sequence[Entry], ways: Sequence[str]) -> list[list[float]]:
    """For every two ways the mean share of tokens before their answers part, 1 where they never do.

    Rows and columns are in the order of the ways.
    """
    ids = {way: [entry["answers"][way]["ids"] for entry in entries] for way in ways}
    return [[fmean(map(shared_prefix, ids[one], ids[other])) for other in ways] for one in ways]
