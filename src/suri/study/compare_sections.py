"""The report on the forms of a run's weights, from compare.json and answers.jsonl."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from suri.study.figures import Bar, Panel, bar_figure, heat_figure
from suri.study.measures import ADAPTER, BASE, MEASURES, SPEEDS, WAYS, Measure
from suri.study.sections import (
    Figure,
    Section,
    Table,
    Tile,
    samples_section,
    settings_section,
    training_section,
)
from suri.study.statements import (
    agreement_statements,
    headed,
    number,
    quality_statements,
    quantity,
    speed_statements,
    with_interval,
)

TITLE = "Base, adapter and merged models compared"
Summary = Mapping[str, Any]


def compare_sections(
    summary: dict[str, Any], entries: Sequence[dict[str, Any]], training: Sequence[dict[str, Any]]
) -> list[Section]:
    """All sections, in the order of the page."""
    return [
        _overview(summary),
        _quality(summary),
        _merging(summary),
        _speed(summary),
        *_factors(summary),
        samples_section(summary, entries),
        training_section(summary, training),
        Section(
            "What this does not show",
            points=[
                *summary["threats"],
                "Answers are greedy; sampled answers vary more.",
            ],
        ),
        settings_section(
            summary["recipe"],
            {
                "Environment of the training": summary["environment"],
                "Environment of the measurements, where it differs": {
                    name: value
                    for name, value in summary["measured_in"].items()
                    if summary["environment"].get(name) != value
                },
                "Settings of the comparison": summary["settings"],
            },
        ),
    ]


STORED = {
    "nf4": " The adapter’s base is stored as nf4, as in its training.",
    "int8": " The adapter was trained with its base in int8 and is used with the base as given.",
}


def _overview(summary: dict[str, Any]) -> Section:
    settings, first = summary["settings"], next(iter(summary["ways"].values()))
    text = (
        f"{summary['rows']} held-out rows, none of them trained on, were answered greedily with at "
        f"most {settings['max_new_tokens']} tokens by every form of the weights. Each ran in a "
        f"process of its own, in the same engine ({first['engine']}) at {first['dtype']}, so that "
        f"nothing but the weights differs; other engines and number formats stand apart."
    )
    text += STORED.get(summary["recipe"]["quantize"], "")
    ways, tiles = summary["ways"], []
    if BASE in ways and ADAPTER in ways:
        for name in ("exact_match", "loss"):
            before, after = (ways[way]["quality"].get(name) for way in (BASE, ADAPTER))
            if before and after:
                tiles.append(_change(MEASURES[name], before, after))
    for way in _others(summary):
        if agreement := ways[way]["agreement"]:
            same = f"{agreement['identical']} of {agreement['rows']}"
            label = f"{ways[way]['label']} = adapter"
            tiles.append(Tile(label, same, "answers equal, token by token"))
    return Section("At a glance", text, tiles=tiles)


def _main(summary: Summary) -> dict[str, Any]:
    """The ways of the one engine and number format in which forms are compared."""
    return {name: way for name, way in summary["ways"].items() if way["is_main"]}


def _others(summary: Summary) -> list[str]:
    """Those of them that are neither base nor adapter."""
    return [name for name in _main(summary) if name not in (BASE, ADAPTER)]


def _change(measure: Measure, before: Summary, after: Summary) -> Tile:
    values = [number(one["value"] * measure.scale, measure.digits) for one in (before, after)]
    note = f"base → adapter, {measure.unit or 'of 1'}"
    return Tile(measure.label, " → ".join(values), note)


def _quality(summary: dict[str, Any]) -> Section:
    ways = _main(summary)
    measures = _measured(ways)
    panels = [
        Panel(
            f"{MEASURES[name].label} ({MEASURES[name].unit or '0 to 1'})",
            [_interval_bar(MEASURES[name], way["quality"].get(name)) for way in ways.values()],
            MEASURES[name].digits,
        )
        for name in ("exact_match", "rouge_l", "loss")
        if name in measures
    ]
    caption = "Bars are means over the held-out rows, lines their 95 % intervals."
    return Section(
        "How good the answers are",
        statements=quality_statements(summary, (ADAPTER,)),
        figures=[Figure("quality", bar_figure("quality", _rows(ways), panels), caption)],
        tables=[_quality_table(ways, measures)],
    )


def _measured(ways: Mapping[str, Any]) -> list[str]:
    return [name for name in MEASURES if any(name in way["quality"] for way in ways.values())]


def _quality_table(ways: Mapping[str, Any], measures: Sequence[str]) -> Table:
    rows = [
        [
            way["label"],
            *(
                with_interval(MEASURES[name], way["quality"][name])
                if name in way["quality"]
                else "–"
                for name in measures
            ),
        ]
        for way in ways.values()
    ]
    head = ["Way", *(headed(MEASURES[name]) for name in measures)]
    return Table(head, rows, "Mean over the rows and its 95 % interval")


def _merging(summary: dict[str, Any]) -> Section:
    ways = {name: way for name, way in _main(summary).items() if way["agreement"]}
    columns: dict[str, Callable[[dict[str, Any]], float]] = {
        "Same answer (%)": lambda found: 100 * found["identical"] / found["rows"],
        "Tokens until they part (%)": lambda found: 100 * found["shared_prefix"],
        "Same likeliest token (%)": lambda found: 100 * found["probe"]["top1_agreement"],
    }
    panels = [
        Panel(title, [Bar(value(way["agreement"])) for way in ways.values()])
        for title, value in columns.items()
    ]
    drawing = bar_figure("agreement", _rows(ways), panels) if ways else ""
    caption = "Agreement of every way with the adapter: whole answers, tokens, next tokens."
    figures = [Figure("agreement", drawing, caption)] if ways else []
    labels = [way["label"] for way in summary["ways"].values()]
    prefixes = heat_figure("prefixes", labels, summary["prefixes"])
    caption = "How much of the answers of every two ways is the same before they part, in %."
    return Section(
        "What merging and storing change",
        statements=agreement_statements(summary, _others(summary)),
        figures=[*figures, Figure("prefixes", prefixes, caption)],
        tables=[*_agreement_table(ways), *_certificates(summary)],
    )


def _agreement_table(ways: Mapping[str, Any]) -> list[Table]:
    head = (
        "Way", "Same answer", "Tokens until they part", "Part at token", "KL mean, nats",
        "KL largest, nats",
    )  # fmt: skip
    rows = [
        [
            way["label"],
            f"{found['identical']} of {found['rows']}",
            f"{100 * found['shared_prefix']:.1f} %",
            "–" if found["first_difference"] is None else f"{found['first_difference'] + 1:g}",
            f"{found['probe']['mean_kl']:.1e}",
            f"{found['probe']['max_kl']:.1e}",
        ]
        for way in ways.values()
        for found in [way["agreement"]]
    ]
    return [Table(head, rows, "Every way against the adapter")] if ways else []


def _factors(summary: dict[str, Any]) -> list[Section]:
    """Engines and number formats beside those of the comparison."""
    ways = {name: way for name, way in summary["ways"].items() if not way["is_main"]}
    if not ways:
        return []
    forms = {way["form"] for way in ways.values()}
    shown = {
        name: way for name, way in summary["ways"].items() if name in ways or way["form"] in forms
    }
    return [
        Section(
            "Other engines and number formats",
            "The same weights run by another engine, or at another number format; each is held "
            "against the same form in the comparison above.",
            statements=quality_statements(summary, list(ways)),
            tables=[
                _quality_table(shown, _measured(shown)),
                *_agreement_table(shown),
                _speed_table(summary, shown),
            ],
        )
    ]


def _certificates(summary: Summary) -> list[Table]:
    return [
        Table(
            ("Check", "Found", "Limit", "Result"),
            [
                (
                    check["name"],
                    f"{check['figure']:.3g}",
                    f"{'≥' if check['at_least'] else '≤'} {check['limit']:g}",
                    "PASS" if check["passed"] else "FAIL",
                )
                for check in certificate["checks"]
            ],
            f"Certificate, {summary['ways'][way]['label']}: "
            f"{'PASS' if certificate['passed'] else 'FAIL'}",
        )
        for way, certificate in summary["certificates"].items()
    ]


def _speed(summary: dict[str, Any]) -> Section:
    ways, how = _main(summary), _how(summary)

    def panel(name: str) -> Panel:
        measure = SPEEDS[name]
        bars = [_range_bar(measure, way["speed"][name]) for way in ways.values()]
        return Panel(f"{measure.label} ({measure.unit})", bars, measure.digits)

    def figure(name: str, names: Sequence[str], caption: str) -> Figure:
        return Figure(name, bar_figure(name, _rows(ways), [panel(n) for n in names]), caption)

    text = (
        "Every way decodes the same prompts and equally many tokens, however long its answers are, "
        "after a warm-up that is not counted. Peak memory is that of the whole process before its "
        "losses are measured; memory-mapped weights count where they were read. A way with an "
        "adapter needs the base on disk as well; 8 and 4 bits are made of it while it is loaded."
    )
    return Section(
        "Speed, memory, disk",
        text,
        statements=speed_statements(summary, _others(summary)),
        figures=[
            figure("speed", ["tokens_per_second", "batch_tokens_per_second"], f"Speed, {how}."),
            figure(
                "waiting",
                ["load_seconds", "first_token_seconds", "prefill_tokens_per_second"],
                f"Waiting, {how}.",
            ),
            figure("size", ["peak_memory_bytes", "bytes_on_disk"], f"Memory and disk, {how}."),
        ],
        tables=[_speed_table(summary, ways)],
    )


def _speed_table(summary: Summary, ways: Mapping[str, Any]) -> Table:
    rows = [
        [way["label"], *(quantity(SPEEDS[name], way["speed"][name]["median"]) for name in SPEEDS)]
        for way in ways.values()
    ]
    return Table(["Way", *(m.label for m in SPEEDS.values())], rows, _how(summary).capitalize())


def _how(summary: Summary) -> str:
    repeats = summary["settings"]["repeats"]
    return "one process each" if repeats == 1 else f"medians of {repeats} processes each, in turns"


def _rows(ways: Mapping[str, Any]) -> list[tuple[str, int]]:
    order = list(WAYS)
    return [(way["label"], order.index(way["form"])) for way in ways.values()]


def _interval_bar(measure: Measure, found: Summary | None) -> Bar | None:
    return Bar(*(found[end] * measure.scale for end in ("value", "low", "high"))) if found else None


def _range_bar(measure: Measure, found: Summary) -> Bar:
    return Bar(*(found[end] * measure.scale for end in ("median", "low", "high")))
