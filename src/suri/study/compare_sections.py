"""Task 1's results: the forms of a run's weights, from compare.json and answers.jsonl."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from suri.study.blocks import Figure, Section, Statements, Table, Text, Tile, Tiles
from suri.study.figures import Bar, Panel, bar_figure, heat_figure
from suri.study.forms import MERGED
from suri.study.language import tr
from suri.study.measures import ADAPTER, BASE, MEASURES, SPEEDS, WAYS, Measure, way_label
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
    headed,
    number,
    quality_statements,
    quantity,
    speed_statements,
    threats,
    with_interval,
)

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
            _merging(summary),
            _speed(summary),
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
            analysis_section(compare_statements(summary), dangers),
            settings_section(summary["recipe"], _environments(summary)),
        ],
    )


def compare_statements(summary: Summary) -> list[Statement]:
    """Every sentence on the results, in their order."""
    others = [name for name, way in summary["ways"].items() if not way["is_main"]]
    return [
        *quality_statements(summary, (ADAPTER,)),
        *agreement_statements(summary, _others(summary)),
        *speed_statements(summary, _others(summary)),
        *quality_statements(summary, others),
    ]


def compare_findings(summary: Summary) -> list[Statement]:
    """The few of them that a summary rests on: what was learned, and whether merging kept it."""
    merged = [name for name in _others(summary) if summary["ways"][name]["form"] in MERGED]
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
    for way in _others(summary):
        if agreement := ways[way]["agreement"]:
            same = tr("{count} of {all}", count=agreement["identical"], all=agreement["rows"])
            label = tr("{way} = adapter", way=way_label(ways[way]))
            tiles.append(Tile(label, same, tr("answers equal, token by token")))
    return Section(tr("At a glance"), [*blocks, Tiles(tiles)])


def _main(summary: Summary) -> dict[str, Any]:
    """The ways of the one engine and number format in which forms are compared."""
    return {name: way for name, way in summary["ways"].items() if way["is_main"]}


def _others(summary: Summary) -> list[str]:
    """Those of them that are neither base nor adapter."""
    return [name for name in _main(summary) if name not in (BASE, ADAPTER)]


def _change(measure: Measure, before: Summary, after: Summary) -> Tile:
    values = [number(one["value"] * measure.scale, measure.digits) for one in (before, after)]
    unit = f", {tr(measure.unit)}" if measure.unit else ""
    return Tile(tr(measure.label), " → ".join(values), tr("base → adapter") + unit)


def _quality(summary: Summary) -> Section:
    ways = _main(summary)
    measures = _measured(ways)
    panels = [
        Panel(
            headed(MEASURES[name]),
            [_interval_bar(MEASURES[name], way["quality"].get(name)) for way in ways.values()],
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
            Figure("quality", bar_figure("quality", _rows(ways), panels), caption),
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


def _merging(summary: Summary) -> Section:
    ways = {name: way for name, way in _main(summary).items() if way["agreement"]}
    columns: dict[str, Callable[[dict[str, Any]], float]] = {
        "Same answer (%)": lambda found: 100 * found["identical"] / found["rows"],
        "Tokens until they part (%)": lambda found: 100 * found["shared_prefix"],
        "Same likeliest token (%)": lambda found: 100 * found["probe"]["top1_agreement"],
    }
    panels = [
        Panel(tr(title), [Bar(value(way["agreement"])) for way in ways.values()])
        for title, value in columns.items()
    ]
    figures = []
    if ways:
        drawing = bar_figure("agreement", _rows(ways), panels)
        caption = tr("Agreement of every way with the adapter: whole answers, tokens, next tokens.")
        figures.append(Figure("agreement", drawing, caption))
    labels = [way_label(way) for way in summary["ways"].values()]
    prefixes = heat_figure("prefixes", labels, summary["prefixes"])
    caption = tr("How much of the answers of every two ways is the same before they part, in %.")
    return Section(
        tr("What merging and storing change"),
        [
            Statements(agreement_statements(summary, _others(summary))),
            *figures,
            Figure("prefixes", prefixes, caption),
            *_agreement_table(ways),
            *_certificates(summary),
        ],
    )


def _agreement_table(ways: Summary) -> list[Table]:
    names = (
        "Way", "Same answer", "Tokens until they part", "Part at token", "KL mean, nats",
        "KL largest, nats",
    )  # fmt: skip
    rows = [
        [
            way_label(way),
            tr("{count} of {all}", count=found["identical"], all=found["rows"]),
            f"{100 * found['shared_prefix']:.1f} %",
            "–" if found["first_difference"] is None else f"{found['first_difference'] + 1:g}",
            f"{found['probe']['mean_kl']:.1e}",
            f"{found['probe']['max_kl']:.1e}",
        ]
        for way in ways.values()
        for found in [way["agreement"]]
    ]
    caption = tr("Every way against the adapter")
    return [Table([tr(name) for name in names], rows, caption)] if ways else []


def _certificates(summary: Summary) -> list[Table]:
    return [
        Table(
            [tr(name) for name in ("Check", "Found", "Limit", "Result")],
            [
                (
                    check["name"],
                    f"{check['figure']:.3g}",
                    f"{'≥' if check['at_least'] else '≤'} {check['limit']:g}",
                    "PASS" if check["passed"] else "FAIL",
                )
                for check in certificate["checks"]
            ],
            tr(
                "Certificate, {way}: {verdict}",
                way=way_label(summary["ways"][way]),
                verdict="PASS" if certificate["passed"] else "FAIL",
            ),
        )
        for way, certificate in summary["certificates"].items()
    ]


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
                *_agreement_table(shown),
                _speed_table(summary, shown),
            ],
        )
    ]


def _speed(summary: Summary) -> Section:
    ways, how = _main(summary), _how(summary)

    def figure(name: str, names: Sequence[str], caption: str) -> Figure:
        panels = [
            Panel(
                headed(SPEEDS[one]),
                [_range_bar(SPEEDS[one], way["speed"][one]) for way in ways.values()],
                SPEEDS[one].digits,
            )
            for one in names
        ]
        return Figure(name, bar_figure(name, _rows(ways), panels), f"{tr(caption)}, {how}.")

    text = tr(
        "Every way decodes the same prompts and equally many tokens, however long its answers are, "
        "after a warm-up that is not counted. Peak memory is that of the whole process before its "
        "losses are measured; memory-mapped weights count where they were read. A way with an "
        "adapter needs the base on disk as well; 8 and 4 bits are made of it while it is loaded."
    )
    waiting = ["load_seconds", "first_token_seconds", "prefill_tokens_per_second"]
    return Section(
        tr("Speed, memory, disk"),
        [
            Text(text),
            Statements(speed_statements(summary, _others(summary))),
            figure("speed", ["tokens_per_second", "batch_tokens_per_second"], "Speed"),
            figure("waiting", waiting, "Waiting"),
            figure("size", ["peak_memory_bytes", "bytes_on_disk"], "Memory and disk"),
            _speed_table(summary, ways),
        ],
    )


def _speed_table(summary: Summary, ways: Summary) -> Table:
    rows = [
        [
            way_label(way),
            *(quantity(SPEEDS[name], way["speed"][name]["median"]) for name in SPEEDS),
        ]
        for way in ways.values()
    ]
    head = [tr("Way"), *(tr(measure.label) for measure in SPEEDS.values())]
    return Table(head, rows, f"{tr('Speed, memory, disk')}, {_how(summary)}")


def _how(summary: Summary) -> str:
    repeats = summary["settings"]["repeats"]
    if repeats == 1:
        return tr("one process each")
    return tr("medians of {repeats} processes each, in turns", repeats=repeats)


def _rows(ways: Summary) -> list[tuple[str, int]]:
    order = list(WAYS)
    return [(way_label(way), order.index(way["form"])) for way in ways.values()]


def _interval_bar(measure: Measure, found: Summary | None) -> Bar | None:
    return Bar(*(found[end] * measure.scale for end in ("value", "low", "high"))) if found else None


def _range_bar(measure: Measure, found: Summary) -> Bar:
    return Bar(*(found[end] * measure.scale for end in ("median", "low", "high")))
