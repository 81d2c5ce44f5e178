"""Sentences that say of the numbers what their intervals carry, and no more."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from suri.recipe import EMBEDDED
from suri.study.intervals import FEWEST_ROWS, FEWEST_RUNS, Interval, interval_of
from suri.study.language import listed, tr
from suri.study.measures import (
    ADAPTER,
    MEASURES,
    SPEEDS,
    Measure,
    method_label,
    number,
    size_of,
    way_label,
)

HELD_OUT = {
    "loss_difference": replace(MEASURES["loss"], label="Held-out loss"),
    "exact_match_difference": replace(MEASURES["exact_match"], label="Held-out exact match"),
}
SPEED_UPS = {
    "speed_up": ("a step", "{count:paired step|paired steps}"),
    "speed_up_to_adapter": (
        "the whole run, from command to adapter,",
        "{count:paired run|paired runs}",
    ),
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
        for found in mine:
            measure, labels = MEASURES[found["measure"]], _labels(summary, found)
            statements.append(difference(measure, *labels, interval_of(found)))
    return statements


def _equal(summary: Mapping[str, Any], found: Sequence[Mapping[str, Any]]) -> Statement:
    """The measures in which two ways are equal on every row."""
    ours, theirs = _labels(summary, found[0])
    measures = listed(tr(MEASURES[one["measure"]].label) for one in found)
    size = size_of(interval_of(found[0]))
    text = tr("equal_on_every_row", measure=measures, ours=ours, theirs=theirs, size=size)
    return Statement(text, is_claim=True)


def _labels(summary: Mapping[str, Any], found: Mapping[str, Any]) -> tuple[str, str]:
    ours, theirs = (way_label(summary["ways"][found[side]]) for side in ("ours", "theirs"))
    return ours, theirs


def difference(measure: Measure, ours: str, theirs: str, found: Interval) -> Statement:
    """One measured difference in words: changed, equal, not found, or too few rows to say."""
    largest = max(abs(found.low), abs(found.high))
    is_enough = found.rows >= FEWEST_ROWS  # seeds make no more rows of one
    if not is_enough:
        text = "too_few_rows"
    elif not largest:
        text = "equal_on_every_row"
    elif largest < measure.matters:
        text = "equal_within"
    elif found.is_difference:
        text = "higher" if found.value > 0 else "lower"
    else:
        text = "no_difference"
    size = size_of(found)
    unit = tr("points" if measure.unit == "%" else measure.unit)
    value, low, high = (measure.text(end) for end in (found.value, found.low, found.high))
    ends = {"value": f"{value} {unit}".rstrip(), "low": low, "high": high}
    said = tr(
        text,
        measure=tr(measure.label),
        ours=ours,
        theirs=theirs,
        rows=found.rows,
        size=size,
        within=measure.with_unit(measure.matters),
        interval=tr("on_every_row" if found.is_point else "interval", size=size, **ends),
    )
    is_claim = is_enough and (found.is_difference or largest <= measure.matters)
    return Statement(said, is_claim)


def agreement_statements(summary: Mapping[str, Any], ours: Sequence[str]) -> list[Statement]:
    """How far each way gives what the adapter gives, and how good it is against it."""
    same = [
        Statement(_agreement(way_label(summary["ways"][way]), agreement), is_claim=True)
        for way in ours
        if (agreement := summary["ways"][way]["agreement"])
    ]
    return same + quality_statements(summary, ours)


def _agreement(label: str, agreement: Mapping[str, Any]) -> str:
    probe = agreement["probe"]
    return tr(
        "agreement",
        way=label,
        same=agreement["identical"],
        rows=agreement["rows"],
        tokens=probe["tokens"],
        share=f"{100 * probe['top1_agreement']:.1f}",
        kl=f"{probe['max_kl']:.1e}",
    )


def speed_statements(summary: Mapping[str, Any], ours: Sequence[str]) -> list[Statement]:
    """Decoding speed and memory of each way against the adapter's."""
    ways = summary["ways"]
    return [
        _speed(name, ways[way], ways[ADAPTER])
        for name in ("tokens_per_second", "batch_tokens_per_second", "peak_memory_bytes")
        for way in ours
        if ADAPTER in ways
    ]


def _speed(name: str, way: Mapping[str, Any], adapter: Mapping[str, Any]) -> Statement:
    """A ratio of two measurements; only repeated ones whose ranges lie apart make a claim."""
    measure, ours, theirs = SPEEDS[name], way["speed"][name], adapter["speed"][name]
    apart = ours["low"] > theirs["high"] or ours["high"] < theirs["low"]
    is_enough = ours["repeats"] >= FEWEST_RUNS
    text = "ratio" if apart else "ratio_undecided"
    said = tr(
        text if is_enough else "ratio_measured_seldom",
        measure=tr(measure.label),
        way=way_label(way),
        adapter=way_label(adapter),
        ours=measure.with_unit(ours["median"]),
        theirs=measure.with_unit(theirs["median"]),
        ratio=f"{ours['median'] / theirs['median']:.2f}",
        repeats=ours["repeats"],
    )
    return Statement(said, is_claim=is_enough and apart)


def cost_statements(summary: Mapping[str, Any]) -> list[Statement]:
    """Time and memory of every quantised method against the plain one, at every size."""
    return [text for found in summary["methods"] for text in _costs(found)]


def _costs(found: Mapping[str, Any]) -> Iterator[Statement]:
    """Steps of one run share its minutes: only several runs can tell method from machine."""
    runs = len(found["seeds"])
    names = {
        "rows": f"{found['ours']['rows']:,}",
        "ours": method_label(found["ours"]),
        "theirs": method_label(found["theirs"]),
        "runs": tr("{count} runs each", count=runs) if runs > 1 else tr("one run each"),
    }
    if found["unequal"]:
        text = tr("not_compared", what=listed(map(tr, found["unequal"])), **names)
        yield Statement(text, is_claim=False)
        return
    for name, (what, pairs) in SPEED_UPS.items():
        if found[name]:
            yield _speed_up(interval_of(found[name]), tr(what), pairs, names)
    yield _memory(interval_of(found["memory_saved"]), names)


def _speed_up(found: Interval, what: str, pairs: str, names: Mapping[str, str]) -> Statement:
    apart = found.low > 1 + TIMING or found.high < 1 - TIMING
    is_claim = found.seeds >= FEWEST_RUNS and apart
    count = found.rows * found.seeds
    if count == 1:
        text = "speed_up_of_one_pair"
    elif found.is_point:
        text = "speed_up_alike"
    elif is_claim or found.seeds < FEWEST_RUNS:
        text = "speed_up"
    else:
        text = "speed_up_undecided"
    ends = {"ratio": found.value, "low": found.low, "high": found.high}
    shown = {name: f"{end:.2f}" for name, end in ends.items()}
    said = tr(text, what=what, pairs=tr(pairs, count=count), **shown, **names)
    return Statement(said, is_claim)


def _memory(saved: Interval, names: Mapping[str, str]) -> Statement:
    is_enough = saved.seeds >= FEWEST_RUNS
    is_claim = is_enough and saved.is_difference
    is_equal = saved.is_point and not saved.value
    shown = abs(saved.value)
    if is_equal:
        text = "memory_equal"
    elif is_enough and not is_claim:
        text, shown = "memory_undecided", saved.value
    else:
        text = "memory_less" if saved.value > 0 else "memory_more"
    value, low, high = (number(100 * end, 0) for end in (shown, saved.low, saved.high))
    rest = ""
    if is_claim:
        rest = tr("memory_alike" if saved.is_point else "memory_interval", low=low, high=high)
    return Statement(tr(text, value=value, low=low, high=high, rest=rest, **names), is_claim)


def loss_statements(summary: Mapping[str, Any]) -> list[Statement]:
    """Held-out quality: methods at every size, then growing sizes, then other settings."""
    return [
        difference(measure, _on_rows(found["ours"]), _on_rows(found["theirs"]), interval)
        for kind in ("methods", "sizes", "settings")
        for found in summary[kind]
        for name, measure in HELD_OUT.items()
        if found[name]
        for interval in [interval_of(found[name])]
    ]


def _on_rows(group: Mapping[str, Any]) -> str:
    return tr("{method} on {rows:row|rows}", method=method_label(group), rows=f"{group['rows']:,}")


def threats(
    recipe: Mapping[str, Any], rows: int, environment: Mapping[str, Any], *, seeds: int,
    on_a_cluster: bool = False,
) -> list[str]:  # fmt: skip
    """Why these numbers may not hold elsewhere, from what this run was."""
    text = "one_row" if rows == 1 else "several_seeds" if seeds > 1 else "one_seed"
    found = [tr(text, rows=rows, seeds=seeds)]
    if recipe.get("base_model") == EMBEDDED:
        found.append(tr("embedded_base"))
    if str(environment.get("device", "")).startswith("cpu"):
        found.append(tr("measured_on_cpu"))
    load, cores = environment.get("load_average", 0), environment.get("cores", 1)
    if load > BUSY * cores:
        found.append(tr("machine_was_busy", load=load, cores=cores))
    if on_a_cluster:
        found.append(tr("trials_on_a_cluster"))
    return found
