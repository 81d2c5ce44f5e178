"""Sentences that say of the numbers what their intervals carry, and no more."""

from collections.abc import Container, Iterator
from dataclasses import dataclass, replace
from typing import Any

from suri.study.scores import Interval
from suri.study.summary import (
    ADAPTER,
    HF,
    MEASURES,
    META,
    METHODS,
    SPEEDS,
    WAYS,
    Measure,
    interval_of,
)

FEWEST_REPEATS = 3
HELD_OUT_LOSS = replace(MEASURES["loss"], label="Held-out loss")


@dataclass(frozen=True)
class Statement:
    """One sentence; `is_claim` where an interval carries it, otherwise it is an observation."""

    text: str
    is_claim: bool


def number(value: float, digits: int) -> str:
    """A number with that many decimals, or in powers of ten where these would show only zeros."""
    is_tiny = value and not round(abs(value), digits)
    text = f"{value:.1e}" if is_tiny else f"{value:,.{digits}f}"
    return f"−{text[1:]}" if text.startswith("-") else text


def quantity(measure: Measure, value: float) -> str:
    """A number with its unit, as tables show it."""
    return f"{number(value * measure.scale, measure.digits)} {measure.unit}".rstrip()


def with_interval(measure: Measure, summary: dict[str, Any]) -> str:
    """A number and below it its 95 % interval; the unit is left to the head of the column."""
    value, low, high = (
        number(summary[end] * measure.scale, measure.digits) for end in ("value", "low", "high")
    )
    return f"{value}\n{low}\u00a0to\u00a0{high}"


def headed(measure: Measure) -> str:
    """What stands at the head of a column: the name and its unit."""
    return f"{measure.label}, {measure.unit}" if measure.unit else measure.label


def quality_statements(summary: dict[str, Any], ours: Container[str]) -> list[Statement]:
    """How the ways in `ours` differ: the adapter from the base, a merged model from the adapter."""
    return [
        difference(
            MEASURES[found["measure"]],
            WAYS[found["ours"]],
            WAYS[found["theirs"]],
            interval_of(found),
        )
        for found in summary["differences"]
        if found["ours"] in ours
    ]


def difference(measure: Measure, ours: str, theirs: str, found: Interval) -> Statement:
    """One measured difference in words: changed, equal, not found, or too few rows to say."""
    unit = "points" if measure.unit == "%" else measure.unit
    value, low, high = (
        number(end * measure.scale, measure.digits) for end in (found.value, found.low, found.high)
    )
    interval = f"{value} {unit}; 95 % interval {low} to {high}, n = {found.rows}".replace(" ;", ";")
    largest = max(abs(found.low), abs(found.high))
    if not found.is_enough:
        text = f"{found.rows} rows are too few to tell {ours} from {theirs}."
    elif not largest:
        text = f"{ours} and {theirs} are equal on every row (n = {found.rows})."
    elif largest < measure.matters:
        text = (
            f"{ours} equals {theirs} to within {quantity(measure, measure.matters)} ({interval})."
        )
    elif found.is_difference:
        change = "higher" if found.value > 0 else "lower"
        text = f"{change} with {ours} than with {theirs} ({interval})."
    else:
        text = f"no difference found between {theirs} and {ours} ({interval})."
    is_claim = found.is_enough and (found.is_difference or largest <= measure.matters)
    return Statement(f"{measure.label}: {text}", is_claim)


def agreement_statements(summary: dict[str, Any]) -> list[Statement]:
    """How far each merged model gives what the adapter gives, and how good it is against it."""
    same = [
        Statement(_agreement(WAYS[way], agreement), is_claim=True)
        for way in (HF, META)
        if (agreement := summary["ways"].get(way, {}).get("agreement"))
    ]
    return same + quality_statements(summary, (HF, META))


def _agreement(label: str, agreement: dict[str, Any]) -> str:
    probe = agreement["probe"]
    return (
        f"{label} gives the adapter’s answer, token by token, "
        f"on {agreement['identical']} of {agreement['rows']} rows; at {probe['tokens']} response "
        f"tokens both like the same next token best in {100 * probe['top1_agreement']:.1f} %, and "
        f"the largest KL divergence is {probe['max_kl']:.1e} nats."
    )


def speed_statements(summary: dict[str, Any]) -> list[Statement]:
    """Decoding speed and memory of the merged models against the adapter."""
    ways = summary["ways"]
    return [
        _speed(SPEEDS[name], way, ways[way]["speed"][name], ways[ADAPTER]["speed"][name])
        for name in ("tokens_per_second", "batch_tokens_per_second", "peak_memory_bytes")
        for way in (HF, META)
        if way in ways and ADAPTER in ways
    ]


def _speed(measure: Measure, way: str, ours: dict[str, Any], theirs: dict[str, Any]) -> Statement:
    """A ratio of two measurements; only repeated ones whose ranges lie apart make a claim."""
    ratio = ours["median"] / theirs["median"]
    shown = f"{quantity(measure, ours['median'])} against {quantity(measure, theirs['median'])}"
    apart = ours["low"] > theirs["high"] or ours["high"] < theirs["low"]
    text = (
        f"{measure.label}, {WAYS[way]} against {WAYS[ADAPTER]}: {shown}, {ratio:.2f} times as much"
    )
    if ours["repeats"] < FEWEST_REPEATS:
        return Statement(f"{text} (measured {_times(ours['repeats'])}).", is_claim=False)
    if not apart:
        text = f"{measure.label}: no difference found between {WAYS[way]} and {WAYS[ADAPTER]}"
        return Statement(f"{text} ({shown}; ranges of {ours['repeats']} overlap).", is_claim=False)
    return Statement(
        f"{text} (medians of {ours['repeats']} processes each; the ranges lie apart).",
        is_claim=True,
    )


def _times(count: int) -> str:
    return "once each" if count == 1 else f"{count} times each"


def cost_statements(summary: dict[str, Any]) -> list[Statement]:
    """Time and memory of QLoRA against LoRA at every size."""
    return [text for found in summary["methods"] for text in _costs(found)]


def _costs(found: dict[str, Any]) -> Iterator[Statement]:
    """Steps of one run share its minutes: only several runs can tell method from machine."""
    at, plain, quantized = f"At {found['rows']} rows", METHODS["none"], METHODS["nf4"]
    runs = "one run each" if len(found["seeds"]) == 1 else f"{len(found['seeds'])} runs each"
    if found["speed_up"]:
        speed_up = interval_of(found["speed_up"])
        interval = f"{speed_up.low:.2f} to {speed_up.high:.2f} over {speed_up.rows} paired steps"
        yield Statement(
            f"{at} a {quantized} step is {speed_up.value:.2f} times as fast as a {plain} step "
            f"(95 % interval {interval} of {runs}).",
            is_claim=len(found["seeds"]) >= FEWEST_REPEATS
            and speed_up.is_enough
            and not speed_up.low <= 1 <= speed_up.high,
        )
    saved = 100 * found["memory_saved"]
    yield Statement(
        f"{at} {quantized} peaks at {abs(saved):.0f} % {'less' if saved > 0 else 'more'} memory "
        f"than {plain} ({runs}).",
        is_claim=False,
    )


def loss_statements(summary: dict[str, Any]) -> list[Statement]:
    """Held-out loss of QLoRA against LoRA at every size, then of each method at growing sizes."""
    methods = [
        difference(
            HELD_OUT_LOSS,
            f"{METHODS['nf4']} on {found['rows']} rows",
            f"{METHODS['none']} on {found['rows']} rows",
            interval_of(found["loss_difference"]),
        )
        for found in summary["methods"]
    ]
    return methods + [
        difference(
            HELD_OUT_LOSS,
            f"{METHODS[found['quantize']]} on {found['to']} rows",
            f"{METHODS[found['quantize']]} on {found['from']} rows",
            interval_of(found["loss_difference"]),
        )
        for found in summary["sizes"]
    ]
