"""Task 1's results: the forms of a run's weights, from compare.json and answers.jsonl."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from suri.study.blocks import Figure, Section, Statements, Table, Text, Tile, Tiles
from suri.study.figures import Panel, bar_figure
from suri.study.forms import MERGED
from suri.study.language import tr
from suri.study.measures import ADAPTER, BASE, MEASURES, Measure, way_label
from suri.study.sections import (
    analysis_section,
    captures_section,
    code_section,
    idea_section,
    samples_section,
    settings_section,
    training_section,
)
from suri.study.statements import (
    Statement,
    agreement_statements,
    quality_statements,
    speed_statements,
    threats,
)
from suri.study.way_sections import (
    agreement_section,
    agreement_table,
    interval_bar,
    main_ways,
    other_ways,
    rows_of,
    speed_section,
    speed_table,
)
from suri.study.wording import headed, number, with_interval

TITLE = "Task 1: base, adapter and merged models"
STORED = {
    "nf4": "The adapter’s base is stored as nf4, as in its training.",
    "int8": "The adapter was trained with its base in int8 and is used with the base as given.",
}
Summary = Mapping[str, Any]
Lines = Sequence[dict[str, Any]]


def compare_part(folder: Path, summary: Summary, entries: Lines, training: Lines) -> Section:
    """The whole task, in the order of the handout."""
    results = Section(
        tr("Results"),
        parts=[
            _overview(summary),
            _quality(summary),
            agreement_section(summary),
            speed_section(summary),
            *_factors(summary),
            samples_section(summary, entries),
            training_section(summary, training),
        ],
    )
    dangers = threats(summary["recipe"], len(entries), summary["measured_in"], seeds=1)
    dangers.append(tr("Answers are greedy; sampled answers vary more."))
    return Section(
        tr(TITLE),
        parts=[
            idea_section("compare"),
            code_section("compare"),
            captures_section(folder),
            results,
            analysis_section(compare_findings(summary), compare_statements(summary), dangers),
            settings_section(summary["recipe"], _environments(summary)),
        ],
    )


def compare_statements(summary: Summary) -> list[Statement]:
    """Every sentence on the results, in their order."""
    others = [name for name, way in summary["ways"].items() if not way["is_main"]]
    return [
        *quality_statements(summary, (ADAPTER,)),
        *agreement_statements(summary, other_ways(summary)),
        *speed_statements(summary, other_ways(summary)),
        *quality_statements(summary, others),
    ]


def compare_findings(summary: Summary) -> list[Statement]:
    """The few of them that a summary rests on: what was learned, and whether merging kept it."""
    merged = [name for name in other_ways(summary) if summary["ways"][name]["form"] in MERGED]
    adapter = quality_statements(summary, (ADAPTER,))
    return [*adapter, *agreement_statements(summary, merged)]


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
    first = next(iter(summary["ways"].values()))
    text = tr(
        "{rows} held-out rows, none of them trained on, were answered greedily with at most "
        "{tokens} tokens by every form of the weights. Each ran in a process of its own, in the "
        "same engine ({engine}) at {dtype}, so that nothing but the weights differs; other engines "
        "and number formats stand apart.",
        rows=summary["rows"],
        tokens=summary["settings"]["max_new_tokens"],
        engine=first["engine"],
        dtype=first["dtype"],
    )
    stored = STORED.get(summary["recipe"]["quantize"])
    blocks = [Text(text), *([Text(tr(stored))] if stored else [])]
    ways, tiles = summary["ways"], []
    if BASE in ways and ADAPTER in ways:
        for name in ("exact_match", "loss"):
            before, after = (ways[way]["quality"].get(name) for way in (BASE, ADAPTER))
            if before and after:
                tiles.append(_change(MEASURES[name], before, after))
    for way in other_ways(summary):
        if agreement := ways[way]["agreement"]:
            same = tr("{count} of {all}", count=agreement["identical"], all=agreement["rows"])
            label = tr("{way} = adapter", way=way_label(ways[way]))
            tiles.append(Tile(label, same, tr("answers equal, token by token")))
    return Section(tr("At a glance"), [*blocks, Tiles(tiles)])


def _change(measure: Measure, before: Summary, after: Summary) -> Tile:
    values = [number(one["value"] * measure.scale, measure.digits) for one in (before, after)]
    unit = f", {tr(measure.unit)}" if measure.unit else ""
    return Tile(tr(measure.label), " → ".join(values), tr("base → adapter") + unit)


def _quality(summary: Summary) -> Section:
    ways = main_ways(summary)
    measures = _measured(ways)
    panels = [
        Panel(
            headed(MEASURES[name]),
            [interval_bar(MEASURES[name], way["quality"].get(name)) for way in ways.values()],
            MEASURES[name].digits,
        )
        for name in ("exact_match", "rouge_l", "loss")
        if name in measures
    ]
    caption = tr("Bars are means over the held-out rows, lines their 95 % intervals.")
    return Section(
        tr("How good the answers are"),
        [
            Statements(quality_statements(summary, (ADAPTER,))),
            Figure("quality", bar_figure("quality", rows_of(ways), panels), caption),
            _quality_table(ways, measures),
        ],
    )


def _measured(ways: Summary) -> list[str]:
    return [name for name in MEASURES if any(name in way["quality"] for way in ways.values())]


def _quality_table(ways: Summary, measures: Sequence[str]) -> Table:
    rows = [
        [
            way_label(way),
            *(
                with_interval(MEASURES[name], way["quality"][name])
                if name in way["quality"]
                else "–"
                for name in measures
            ),
        ]
        for way in ways.values()
    ]
    head = [tr("Way"), *(headed(MEASURES[name]) for name in measures)]
    return Table(head, rows, tr("Mean over the rows and its 95 % interval"))


def _factors(summary: Summary) -> list[Section]:
    """Engines and number formats beside those of the comparison."""
    ways = {name: way for name, way in summary["ways"].items() if not way["is_main"]}
    if not ways:
        return []
    forms = {way["form"] for way in ways.values()}
    shown = {
        name: way for name, way in summary["ways"].items() if name in ways or way["form"] in forms
    }
    text = tr(
        "The same weights run by another engine, or at another number format; each is held against "
        "the same form in the comparison above."
    )
    return [
        Section(
            tr("Other engines and number formats"),
            [
                Text(text),
                Statements(quality_statements(summary, list(ways))),
                _quality_table(shown, _measured(shown)),
                *agreement_table(shown),
                speed_table(summary, shown),
            ],
        )
    ]
