"""Task 1's results: the forms of a run's weights, from compare.json and answers.jsonl."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from suri.study import way_tables
from suri.study.blocks import (
    Figure,
    Sample,
    Samples,
    Section,
    Statements,
    Table,
    Text,
    Tile,
    Tiles,
    Verdict,
)
from suri.study.figures import Line, heat_figure, line_figure
from suri.study.forms import MERGED
from suri.study.language import joined, qualified, tr
from suri.study.measures import ADAPTER, BASE, MEASURES, RESULT, way_label
from suri.study.sections import (
    analysis_section,
    settings_section,
    task_section,
)
from suri.study.statements import (
    Statement,
    agreement_statements,
    quality_statements,
    speed_statements,
    threats,
)

STORED = {"nf4": "adapter_on_nf4", "int8": "adapter_on_int8", "fp8": "adapter_on_fp8"}
SHOWN = 6
"""Answers in sight; the others are folded away."""
Summary = Mapping[str, Any]
Lines = Sequence[dict[str, Any]]


def compare_part(folder: Path, summary: Summary, entries: Lines, training: Lines) -> Section:
    """The whole task."""
    results = [
        _overview(summary),
        _quality(summary),
        _agreement(summary),
        _speed(summary),
        *_factors(summary),
        _samples(summary, entries),
        _training(summary, training),
    ]
    dangers = threats(summary["recipe"], len(entries), summary["measured_in"], seeds=1)
    dangers.append(tr("answers_are_greedy"))
    last = [
        analysis_section(compare_findings(summary), _statements(summary), dangers),
        settings_section(summary["recipe"], _environments(summary)),
    ]
    return task_section(title_of(summary), "compare", folder, results, last)


def title_of(summary: Summary) -> str:
    """What was compared; an adapter on a base in fewer bits is an adapter too."""
    forms = [way["form"] for way in _main_ways(summary).values()]
    merged = [form for form in forms if form in MERGED]
    named = [tr("base")] if BASE in forms else []
    if any(form != BASE and form not in MERGED for form in forms):
        named.append(tr("adapter"))
    if merged:
        named.append(tr("merged models" if len(merged) > 1 else "merged model"))
    return tr("Task 1: {forms}", forms=joined(named))


def _statements(summary: Summary) -> list[Statement]:
    """Every sentence on the results, in their order."""
    others = [name for name, way in summary["ways"].items() if not way["is_main"]]
    return [
        *quality_statements(summary, (ADAPTER,)),
        *agreement_statements(summary, _other_ways(summary)),
        *speed_statements(summary, _other_ways(summary)),
        *quality_statements(summary, others),
    ]


def compare_findings(summary: Summary) -> list[Statement]:
    """The few of them that a summary rests on: what was learned, and whether merging kept it."""
    merged = [name for name in _other_ways(summary) if summary["ways"][name]["form"] in MERGED]
    adapter = quality_statements(summary, (ADAPTER,))
    return [*adapter, *agreement_statements(summary, merged)]


def _main_ways(summary: Summary) -> way_tables.Ways:
    """The ways of the one engine and number format in which forms are compared."""
    return {name: way for name, way in summary["ways"].items() if way["is_main"]}


def _other_ways(summary: Summary) -> list[str]:
    """Those of them that are neither base nor adapter."""
    return [name for name in _main_ways(summary) if name not in (BASE, ADAPTER)]


def _environments(summary: Summary) -> dict[str, Any]:
    return {
        tr("Environment of the training"): summary["environment"],
        tr("Environment of the measurements, where it differs"): {
            name: value
            for name, value in summary["measured_in"].items()
            if summary["environment"].get(name) != value
        },
        tr("Settings of the comparison"): summary["settings"],
    }


def _overview(summary: Summary) -> Section:
    ways = summary["ways"]
    first = next(iter(ways.values()))
    text = tr(
        "compare_overview",
        rows=summary["rows"],
        tokens=summary["settings"]["max_new_tokens"],
        engine=first["engine"],
        dtype=first["dtype"],
    )
    stored = STORED.get(summary["recipe"]["quantize"])
    texts = [Text(text), Text(tr(stored))] if stored else [Text(text)]
    tiles = _changes(ways[BASE], ways[ADAPTER]) if BASE in ways and ADAPTER in ways else []
    for way in _other_ways(summary):
        if agreement := ways[way]["agreement"]:
            same = tr("{count} of {all}", count=agreement["identical"], all=agreement["rows"])
            label = tr("{way} = adapter", way=way_label(ways[way]))
            tiles.append(Tile(label, same, tr("answers equal, token by token")))
    return Section(tr("At a glance"), [*texts, Tiles(tiles)])


def _changes(base: Summary, adapter: Summary) -> list[Tile]:
    """What training changed, of what was measured of both."""
    tiles = []
    for name in ("exact_match", "loss"):
        found = [way["quality"].get(name) for way in (base, adapter)]
        if all(found):
            measure = MEASURES[name]
            values = " → ".join(measure.text(one["value"]) for one in found)
            note = qualified(tr("base → adapter"), tr(measure.unit))
            tiles.append(Tile(tr(measure.label), values, note))
    return tiles


def _quality(summary: Summary) -> Section:
    ways = _main_ways(summary)
    return Section(
        tr("How good the answers are"),
        [
            Statements(quality_statements(summary, (ADAPTER,))),
            way_tables.quality_figure(ways),
            way_tables.quality_table(ways),
        ],
    )


def _agreement(summary: Summary) -> Section:
    """Equal answers, where they part, distributions, certificates."""
    ways = _main_ways(summary)
    labels = [way_label(way) for way in summary["ways"].values()]
    prefixes = heat_figure("prefixes", labels, summary["prefixes"])
    others = _other_ways(summary)
    return Section(
        tr("What merging and storing change" if others else "How far the answers agree"),
        [
            Statements(agreement_statements(summary, others)),
            *way_tables.agreement_figure(ways),
            Figure("prefixes", prefixes, tr("shared_prefixes")),
            *way_tables.agreement_table(ways),
            *way_tables.certificates(summary),
        ],
    )


def _speed(summary: Summary) -> Section:
    """Time, memory and disk of every form."""
    ways, repeats = _main_ways(summary), summary["settings"]["repeats"]
    return Section(
        tr("Speed, memory, disk"),
        [
            Text(tr("how_speed_is_measured")),
            Statements(speed_statements(summary, _other_ways(summary))),
            *way_tables.speed_figures(ways, repeats),
            way_tables.speed_table(ways, repeats),
        ],
    )


def _factors(summary: Summary) -> list[Section]:
    """Engines and number formats beside those of the comparison."""
    others = [name for name, way in summary["ways"].items() if not way["is_main"]]
    if not others:
        return []
    forms = {summary["ways"][name]["form"] for name in others}
    ways = {name: way for name, way in summary["ways"].items() if way["form"] in forms}
    return [
        Section(
            tr("Other engines and number formats"),
            [
                Text(tr("other_engines")),
                Statements(quality_statements(summary, others)),
                way_tables.quality_table(ways),
                *way_tables.agreement_table(ways),
                way_tables.speed_table(ways, summary["settings"]["repeats"]),
            ],
        )
    ]


def _samples(summary: Summary, entries: Lines) -> Section:
    """The first answers in full, the others folded away."""
    samples = [
        Sample(entry["instruction"], entry["input"], entry["expected"], _verdicts(summary, entry))
        for entry in entries
    ]
    text = Text(tr("samples_in_order"))
    return Section(tr("Answers side by side"), [text, Samples(samples, SHOWN)])


def _verdicts(summary: Summary, entry: dict[str, Any]) -> list[Verdict]:
    """The different answers to one row, each with the ways that gave it."""
    ways: dict[str, list[str]] = {}
    for name, answer in entry["answers"].items():
        ways.setdefault(answer["text"], []).append(name)
    return [
        Verdict(
            tr("; ").join(way_label(summary["ways"][name]) for name in names),
            text,
            entry["answers"][names[0]]["correct"],
        )
        for text, names in ways.items()
    ]


def _training(summary: Summary, training: Lines) -> Section:
    """How the adapter came about: losses over the steps, and result.json."""
    lines = []
    for series, (label, name) in enumerate((("training", "train/loss"), ("held out", "eval/loss"))):
        found = [one for one in training if name in one]
        steps, losses = [one["step"] for one in found], [one[name] for one in found]
        if found:
            lines.append(Line(tr(label), steps, losses, series, faint=name == "train/loss"))
    figures = []
    if lines:
        drawing = line_figure("training", lines, tr("step"), tr("nats per token"))
        caption = tr("Loss per learned token; step 0 is the base.")
        figures.append(Figure("training", drawing, caption))
    return Section(tr("The training run"), [*figures, _outcome(summary["result"])])


def _outcome(result: Summary) -> Table:
    """What the training came to, as far as it was measured."""
    found = {**result, "reckoned_bytes": (result.get("memory_estimate") or {}).get("total")}
    if found.get("held_out_loss") is None:
        found["best_step"] = None
    rows = [
        (tr(measure.label), measure.with_unit(found[name]))
        for name, measure in RESULT.items()
        if found.get(name) is not None
    ]
    return Table((), rows, tr("What the training came to"))
