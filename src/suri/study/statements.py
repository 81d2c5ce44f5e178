"""Sentences that say of the numbers what their intervals carry, and no more."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from suri.recipe import EMBEDDED
from suri.study.intervals import FEWEST_RUNS, Interval, interval_of
from suri.study.measures import ADAPTER, MEASURES, SPEEDS, Measure

HELD_OUT = {
    "loss_difference": replace(MEASURES["loss"], label="Held-out loss"),
    "exact_match_difference": replace(MEASURES["exact_match"], label="Held-out exact match"),
}
SPEED_UPS = {
    "speed_up": ("a step", "paired steps"),
    "speed_up_to_adapter": ("the whole run, from command to adapter,", "paired runs"),
}
TIMING = 0.01
"""Times whose ratio surely lies within this of 1 are called equal: no machine times better."""
BUSY = 1.5
"""Load per core above which times are called unreliable; our own process is about 1."""


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


def quality_statements(summary: Mapping[str, Any], ours: Sequence[str]) -> list[Statement]:
    """How each way in `ours` differs from the one that it is held against.

    Measures in which two ways are equal on every row share one sentence.
    """
    statements = []
    for way in ours:
        mine = [found for found in summary["differences"] if found["ours"] == way]
        same = [found for found in mine if not found["low"] and not found["high"]]
        if len(same) > 1 and interval_of(same[0]).is_enough:
            statements.append(_equal(summary, same))
            mine = [found for found in mine if found not in same]
        statements += [_difference(summary, found) for found in mine]
    return statements


def _difference(summary: Mapping[str, Any], found: Mapping[str, Any]) -> Statement:
    ours, theirs = (summary["ways"][found[side]]["label"] for side in ("ours", "theirs"))
    return difference(MEASURES[found["measure"]], ours, theirs, interval_of(found))


def _equal(summary: Mapping[str, Any], found: Sequence[Mapping[str, Any]]) -> Statement:
    ours, theirs = (summary["ways"][found[0][side]]["label"] for side in ("ours", "theirs"))
    labels = ", ".join(MEASURES[one["measure"]].label for one in found)
    size = interval_of(found[0]).size
    text = f"{labels}: {ours} and {theirs} are equal on every row ({size})."
    return Statement(text, is_claim=True)


def difference(measure: Measure, ours: str, theirs: str, found: Interval) -> Statement:
    """One measured difference in words: changed, equal, not found, or too few rows to say."""
    unit = "points" if measure.unit == "%" else measure.unit
    value, low, high = (
        number(end * measure.scale, measure.digits) for end in (found.value, found.low, found.high)
    )
    interval = f"{value} {unit}; 95 % interval {low} to {high}, {found.size}".replace(" ;", ";")
    largest = max(abs(found.low), abs(found.high))
    if not found.is_enough:
        text = f"{found.rows} rows are too few to tell {ours} from {theirs}."
    elif not largest:
        text = f"{ours} and {theirs} are equal on every row ({found.size})."
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


def agreement_statements(summary: Mapping[str, Any], ours: Sequence[str]) -> list[Statement]:
    """How far each way gives what the adapter gives, and how good it is against it."""
    same = [
        Statement(_agreement(summary["ways"][way]["label"], agreement), is_claim=True)
        for way in ours
        if (agreement := summary["ways"][way]["agreement"])
    ]
    return same + quality_statements(summary, ours)


def _agreement(label: str, agreement: dict[str, Any]) -> str:
    probe = agreement["probe"]
    return (
        f"{label} gives the adapter’s answer, token by token, "
        f"on {agreement['identical']} of {agreement['rows']} rows; at {probe['tokens']} response "
        f"tokens both like the same next token best in {100 * probe['top1_agreement']:.1f} %, and "
        f"the largest KL divergence is {probe['max_kl']:.1e} nats."
    )


def speed_statements(summary: Mapping[str, Any], ours: Sequence[str]) -> list[Statement]:
    """Decoding speed and memory of each way against the adapter's."""
    ways = summary["ways"]
    return [
        _speed(SPEEDS[name], name, ways[way], ways[ADAPTER])
        for name in ("tokens_per_second", "batch_tokens_per_second", "peak_memory_bytes")
        for way in ours
        if ADAPTER in ways
    ]


def _speed(
    measure: Measure, name: str, way: Mapping[str, Any], adapter: Mapping[str, Any]
) -> Statement:
    """A ratio of two measurements; only repeated ones whose ranges lie apart make a claim."""
    ours, theirs = way["speed"][name], adapter["speed"][name]
    labels = f"{way['label']} against {adapter['label']}"
    ratio = ours["median"] / theirs["median"]
    shown = f"{quantity(measure, ours['median'])} against {quantity(measure, theirs['median'])}"
    apart = ours["low"] > theirs["high"] or ours["high"] < theirs["low"]
    text = f"{measure.label}, {labels}: {shown}, {ratio:.2f} times as much"
    if ours["repeats"] < FEWEST_RUNS:
        return Statement(f"{text} (measured {_times(ours['repeats'])}).", is_claim=False)
    if not apart:
        text = f"{measure.label}, {labels}: no difference found"
        return Statement(f"{text} ({shown}; ranges of {ours['repeats']} overlap).", is_claim=False)
    return Statement(
        f"{text} (medians of {ours['repeats']} processes each; the ranges lie apart).",
        is_claim=True,
    )


def _times(count: int) -> str:
    return "once each" if count == 1 else f"{count} times each"


def cost_statements(summary: Mapping[str, Any]) -> list[Statement]:
    """Time and memory of every quantised method against the plain one, at every size."""
    return [text for found in summary["methods"] for text in _costs(found)]


def _costs(found: Mapping[str, Any]) -> Iterator[Statement]:
    """Steps of one run share its minutes: only several runs can tell method from machine."""
    ours, theirs = (found[side]["label"] for side in ("ours", "theirs"))
    at = f"At {found['ours']['rows']} rows"
    if found["unequal"]:
        text = f"{at} {ours} and {theirs} are not compared: not equal in their runs are "
        yield Statement(text + ", ".join(found["unequal"]) + ".", is_claim=False)
        return
    runs = "one run each" if len(found["seeds"]) == 1 else f"{len(found['seeds'])} runs each"
    for name, (what, pairs) in SPEED_UPS.items():
        if not found[name]:
            continue
        speed_up = interval_of(found[name])
        apart = speed_up.low > 1 + TIMING or speed_up.high < 1 - TIMING
        is_claim = speed_up.seeds >= FEWEST_RUNS and apart
        verdict = f"is {speed_up.value:.2f} times as fast with {ours} as with {theirs}"
        if speed_up.seeds >= FEWEST_RUNS and not is_claim:
            verdict = f"shows no difference between {ours} and {theirs}: {speed_up.value:.2f} times"
        count = f"{speed_up.rows} {pairs} of {runs}" if speed_up.rows > 1 else f"{runs}"
        interval = f"95 % interval {speed_up.low:.2f} to {speed_up.high:.2f}"
        shown = f"{interval}, {count}" if speed_up.seeds * speed_up.rows > 1 else count
        yield Statement(f"{at} {what} {verdict} ({shown}).", is_claim)
    yield _memory(found, f"{at} {ours} peaks at", theirs, runs)


def _memory(found: Mapping[str, Any], start: str, theirs: str, runs: str) -> Statement:
    saved = interval_of(found["memory_saved"])
    amount = f"{abs(100 * saved.value):.0f} % {'less' if saved.value > 0 else 'more'} memory"
    if saved.seeds < FEWEST_RUNS:
        return Statement(f"{start} {amount} than {theirs} ({runs}).", is_claim=False)
    ends = " to ".join(number(100 * end, 0) for end in (saved.low, saved.high))
    interval = f"saved: 95 % interval {ends} %, {runs}"
    if not saved.is_difference:
        return Statement(
            f"{start} as much memory as {theirs}, as far as can be told ({interval}).", False
        )
    return Statement(f"{start} {amount} than {theirs} ({interval}).", is_claim=True)


def loss_statements(summary: Mapping[str, Any]) -> list[Statement]:
    """Held-out quality: methods at every size, then growing sizes, then other settings."""
    return [
        difference(
            measure,
            _on_rows(found["ours"]),
            _on_rows(found["theirs"]),
            interval_of(found[name]),
        )
        for kind in ("methods", "sizes", "settings")
        for found in summary[kind]
        for name, measure in HELD_OUT.items()
        if found[name]
    ]


def _on_rows(group: Mapping[str, Any]) -> str:
    return f"{group['label']} on {group['rows']:,} rows"


def threats(
    recipe: Mapping[str, Any], rows: int, environment: Mapping[str, Any], *, seeds: int
) -> list[str]:
    """Why these numbers may not hold elsewhere, from what this run was."""
    covered = (
        "the choice of rows and of seed" if seeds > 1 else "the choice of rows, not that of seed"
    )
    found = [
        f"{rows} held-out rows and {seeds} seed{'s' * (seeds > 1)}: differences smaller than the "
        f"intervals cannot be seen with them, and the intervals cover {covered}.",
    ]
    if recipe.get("base_model") == EMBEDDED:
        found.append(
            "The embedded base has been through 4 bits before (Q4_1), so it already lies near a "
            "4-bit grid: what nf4 costs it says little about what nf4 costs other models."
        )
    if str(environment.get("device", "")).startswith("cpu"):
        found.append(
            "Measured on a CPU: which way is faster, and by how much, can be the other way round "
            "on a GPU; other programs on the machine disturb the times."
        )
    if environment.get("load_average", 0) > BUSY * environment.get("cores", 1):
        found.append(
            f"The machine was busy with other work (load average {environment['load_average']} on "
            f"{environment['cores']} cores): its times are too long, and their ratios unreliable."
        )
    return found
