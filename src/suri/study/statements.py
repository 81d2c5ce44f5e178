"""Sentences that say of the numbers what their intervals carry, and no more."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from suri.recipe import EMBEDDED
from suri.study.intervals import FEWEST_RUNS, Interval, interval_of
from suri.study.language import tr
from suri.study.measures import ADAPTER, MEASURES, SPEEDS, Measure, method_label, way_label
from suri.study.wording import ends_of, number, quantity, size_of

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
    ours, theirs = (way_label(summary["ways"][found[side]]) for side in ("ours", "theirs"))
    return difference(MEASURES[found["measure"]], ours, theirs, interval_of(found))


def _equal(summary: Mapping[str, Any], found: Sequence[Mapping[str, Any]]) -> Statement:
    text = tr(
        "{measures}: {ours} and {theirs} are equal on every row ({size}).",
        measures=", ".join(tr(MEASURES[one["measure"]].label) for one in found),
        ours=way_label(summary["ways"][found[0]["ours"]]),
        theirs=way_label(summary["ways"][found[0]["theirs"]]),
        size=size_of(interval_of(found[0])),
    )
    return Statement(text, is_claim=True)


def difference(measure: Measure, ours: str, theirs: str, found: Interval) -> Statement:
    """One measured difference in words: changed, equal, not found, or too few rows to say."""
    value, low, high = ends_of(measure, found)
    unit = tr("points") if measure.unit == "%" else tr(measure.unit)
    largest = max(abs(found.low), abs(found.high))
    if not found.is_enough:
        text = "{measure}: {rows} rows are too few to tell {ours} from {theirs}."
    elif not largest:
        text = "{measure}: {ours} and {theirs} are equal on every row ({size})."
    elif largest < measure.matters:
        text = "{measure}: {ours} equals {theirs} to within {within} ({interval})."
    elif found.is_difference and found.value > 0:
        text = "{measure}: higher with {ours} than with {theirs} ({interval})."
    elif found.is_difference:
        text = "{measure}: lower with {ours} than with {theirs} ({interval})."
    else:
        text = "{measure}: no difference found between {theirs} and {ours} ({interval})."
    said = tr(
        text,
        measure=tr(measure.label),
        ours=ours,
        theirs=theirs,
        rows=found.rows,
        size=size_of(found),
        within=quantity(measure, measure.matters),
        interval=tr(
            "{value}; 95 % interval {low} to {high}, {size}",
            value=f"{value} {unit}".rstrip(),
            low=low,
            high=high,
            size=size_of(found),
        ),
    )
    is_claim = found.is_enough and (found.is_difference or largest <= measure.matters)
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
        "{way} gives the adapter’s answer, token by token, on {same} of {rows} rows; at {tokens} "
        "response tokens both like the same next token best in {share} %, and the largest KL "
        "divergence is {kl} nats.",
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
    if not is_enough:
        text = (
            "{measure}, {way} against {adapter}: {ours} against {theirs}, {ratio} times as much "
            "(measured {repeats} × each, too seldom for a claim)."
        )
    elif apart:
        text = (
            "{measure}, {way} against {adapter}: {ours} against {theirs}, {ratio} times as much "
            "(medians of {repeats} processes each; the ranges lie apart)."
        )
    else:
        text = (
            "{measure}, {way} against {adapter}: no difference found ({ours} against {theirs}; "
            "ranges of {repeats} overlap)."
        )
    said = tr(
        text,
        measure=tr(measure.label),
        way=way_label(way),
        adapter=way_label(adapter),
        ours=quantity(measure, ours["median"]),
        theirs=quantity(measure, theirs["median"]),
        ratio=f"{ours['median'] / theirs['median']:.2f}",
        repeats=ours["repeats"],
    )
    return Statement(said, is_claim=is_enough and apart)


def cost_statements(summary: Mapping[str, Any]) -> list[Statement]:
    """Time and memory of every quantised method against the plain one, at every size."""
    return [text for found in summary["methods"] for text in _costs(found)]


def _costs(found: Mapping[str, Any]) -> Iterator[Statement]:
    """Steps of one run share its minutes: only several runs can tell method from machine."""
    names = {
        "rows": f"{found['ours']['rows']:,}",
        "ours": method_label(found["ours"]),
        "theirs": method_label(found["theirs"]),
        "runs": tr("{count} runs each", count=len(found["seeds"]))
        if len(found["seeds"]) > 1
        else tr("one run each"),
    }
    if found["unequal"]:
        text = "At {rows} rows {ours} and {theirs} are not compared, their runs differ in: {what}."
        yield Statement(tr(text, what=", ".join(found["unequal"]), **names), is_claim=False)
        return
    for name, (what, pairs) in SPEED_UPS.items():
        if found[name]:
            yield _speed_up(interval_of(found[name]), tr(what), tr(pairs), names)
    yield _memory(interval_of(found["memory_saved"]), names)


def _speed_up(found: Interval, what: str, pairs: str, names: Mapping[str, str]) -> Statement:
    apart = found.low > 1 + TIMING or found.high < 1 - TIMING
    is_claim = found.seeds >= FEWEST_RUNS and apart
    if found.seeds * found.rows == 1:
        text = (
            "At {rows} rows {what} is {ratio} times as fast with {ours} as with {theirs} ({runs})."
        )
    elif is_claim or found.seeds < FEWEST_RUNS:
        text = (
            "At {rows} rows {what} is {ratio} times as fast with {ours} as with {theirs} "
            "(95 % interval {low} to {high}, {count} {pairs}, {runs})."
        )
    else:
        text = (
            "At {rows} rows {what} shows no difference between {ours} and {theirs}: {ratio} times "
            "(95 % interval {low} to {high}, {count} {pairs}, {runs})."
        )
    ends = {"ratio": found.value, "low": found.low, "high": found.high}
    shown = {name: f"{end:.2f}" for name, end in ends.items()}
    count = found.rows * found.seeds
    return Statement(tr(text, what=what, pairs=pairs, count=count, **shown, **names), is_claim)


def _memory(saved: Interval, names: Mapping[str, str]) -> Statement:
    is_claim = saved.seeds >= FEWEST_RUNS and saved.is_difference
    if saved.seeds >= FEWEST_RUNS and not is_claim:
        text = (
            "At {rows} rows {ours} peaks at as much memory as {theirs}, as far as can be told "
            "(saved: {value} %, 95 % interval {low} to {high} %, {runs})."
        )
    elif saved.value > 0:
        text = "At {rows} rows {ours} peaks at {value} % less memory than {theirs} ({rest}{runs})."
    else:
        text = "At {rows} rows {ours} peaks at {value} % more memory than {theirs} ({rest}{runs})."
    low, high = (number(100 * end, 0) for end in (saved.low, saved.high))
    rest = tr("saved: 95 % interval {low} to {high} %, ", low=low, high=high) if is_claim else ""
    told = saved.value if saved.seeds >= FEWEST_RUNS and not is_claim else abs(saved.value)
    value = number(100 * told, 0)
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
    return tr("{method} on {rows} rows", method=method_label(group), rows=f"{group['rows']:,}")


def threats(
    recipe: Mapping[str, Any], rows: int, environment: Mapping[str, Any], *, seeds: int,
    on_a_cluster: bool = False,
) -> list[str]:  # fmt: skip
    """Why these numbers may not hold elsewhere, from what this run was."""
    covers = (
        "{rows} held-out rows and {seeds} seeds: differences smaller than the intervals cannot be "
        "seen with them, and the intervals cover the choice of rows and of seed."
        if seeds > 1
        else "{rows} held-out rows and one seed: differences smaller than the intervals cannot be "
        "seen with them, and the intervals cover the choice of rows, not that of seed."
    )
    found = [tr(covers, rows=rows, seeds=seeds)]
    if recipe.get("base_model") == EMBEDDED:
        found.append(
            tr(
                "The embedded base has been through 4 bits before (Q4_1), so it already lies near "
                "a 4-bit grid: what nf4 costs it says little about what nf4 costs other models."
            )
        )
    if str(environment.get("device", "")).startswith("cpu"):
        found.append(
            tr(
                "Measured on a CPU: which way is faster, and by how much, can be the other way "
                "round on a GPU; other programs on the machine disturb the times."
            )
        )
    load, cores = environment.get("load_average", 0), environment.get("cores", 1)
    if load > BUSY * cores:
        text = (
            "The machine was busy with other work (load average {load} on {cores} cores): its "
            "times are too long, and their ratios unreliable."
        )
        found.append(tr(text, load=load, cores=cores))
    if on_a_cluster:
        found.append(
            tr(
                "The trials ran on a cluster, some at the same time: their times can be compared "
                "as far as its machines and GPUs are alike."
            )
        )
    return found
