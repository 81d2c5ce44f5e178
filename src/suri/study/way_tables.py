"""What was measured of every way, as figures and tables with a row for each."""

from collections.abc import Callable, Mapping
from typing import Any

from suri.study.blocks import Figure, Table
from suri.study.figures import Bar, Panel, bar_figure
from suri.study.language import qualified, tr
from suri.study.measures import MEASURES, SPEEDS, WAYS, Measure, way_label
from suri.study.sections import measured_rows, panel

Summary = Mapping[str, Any]
Ways = Mapping[str, Summary]
AGREEMENT: dict[str, Callable[[Summary], float]] = {
    "Same answer (%)": lambda found: 100 * found["identical"] / found["rows"],
    "Tokens until they part (%)": lambda found: 100 * found["shared_prefix"],
    "Same likeliest token (%)": lambda found: 100 * found["probe"]["top1_agreement"],
}
SPEED_FIGURES = {
    "speed": ("Speed", ("tokens_per_second", "batch_tokens_per_second")),
    "waiting": (
        "Waiting", ("load_seconds", "first_token_seconds", "prefill_tokens_per_second")
    ),
    "size": ("Memory and disk", ("peak_memory_bytes", "bytes_on_disk")),
}  # fmt: skip


def quality_figure(ways: Ways) -> Figure:
    """The means of the main measures."""
    panels = [
        panel(measure, [way["quality"].get(name) for way in ways.values()])
        for name, measure in _measured(ways).items()
        if name in ("exact_match", "rouge_l", "loss")
    ]
    return Figure("quality", bar_figure("quality", _rows_of(ways), panels), tr("quality_of_ways"))


def quality_table(ways: Ways) -> Table:
    """All measures that any of the ways has."""
    measures = _measured(ways)
    named = [([way_label(way)], way["quality"]) for way in ways.values()]
    rows = measured_rows(named, measures)
    head = [tr("Way"), *(measure.head for measure in measures.values())]
    return Table(head, rows, tr("Mean over the rows and its 95 % interval"))


def _measured(ways: Ways) -> dict[str, Measure]:
    """The measures that any of the ways has."""
    return {
        name: measure
        for name, measure in MEASURES.items()
        if any(name in way["quality"] for way in ways.values())
    }


def agreement_figure(ways: Ways) -> list[Figure]:
    """How much of each way's answers is the adapter's; nothing where this was not measured."""
    ways = _with_agreement(ways)
    panels = [
        Panel(tr(title), [Bar(share(way["agreement"])) for way in ways.values()])
        for title, share in AGREEMENT.items()
    ]
    if not ways:
        return []
    drawing = bar_figure("agreement", _rows_of(ways), panels)
    return [Figure("agreement", drawing, tr("agreement_of_ways"))]


def agreement_table(ways: Ways) -> list[Table]:
    """Each way against the adapter; nothing where this was not measured."""
    names = (
        "Way", "Same answer", "Tokens until they part", "Part at token", "KL mean, nats",
        "KL largest, nats",
    )  # fmt: skip
    rows = []
    for way in _with_agreement(ways).values():
        found, probe = way["agreement"], way["agreement"]["probe"]
        parted = found["first_difference"]
        rows.append(
            [
                way_label(way),
                tr("{count} of {all}", count=found["identical"], all=found["rows"]),
                f"{100 * found['shared_prefix']:.1f} %",
                "–" if parted is None else f"{parted + 1:g}",
                f"{probe['mean_kl']:.1e}",
                f"{probe['max_kl']:.1e}",
            ]
        )
    caption = tr("Every way against the adapter")
    return [Table([tr(name) for name in names], rows, caption)] if rows else []


def _with_agreement(ways: Ways) -> Ways:
    return {name: way for name, way in ways.items() if way["agreement"]}


def certificates(summary: Summary) -> list[Table]:
    """The checks of every merge, and what they found."""
    head = [tr(name) for name in ("Check", "Found", "Limit", "Result")]
    verdicts = {True: tr("PASS"), False: tr("FAIL")}
    tables = []
    for name, certificate in summary["certificates"].items():
        rows = [
            (
                tr(check["name"]),
                f"{check['figure']:.3g}",
                f"{'≥' if check['at_least'] else '≤'} {check['limit']:g}",
                verdicts[check["passed"]],
            )
            for check in certificate["checks"]
        ]
        way, verdict = way_label(summary["ways"][name]), verdicts[certificate["passed"]]
        caption = tr("Certificate, {way}: {verdict}", way=way, verdict=verdict)
        tables.append(Table(head, rows, caption))
    return tables


def speed_figures(ways: Ways, repeats: int) -> list[Figure]:
    """Medians of speed, memory and disk."""
    figures = []
    for name, (caption, measures) in SPEED_FIGURES.items():
        panels = [
            panel(SPEEDS[one], [way["speed"][one] for way in ways.values()]) for one in measures
        ]
        drawing = bar_figure(name, _rows_of(ways), panels)
        figures.append(
            Figure(name, drawing, f"{qualified(tr(caption), _how_often(repeats))}{tr('.')}")
        )
    return figures


def speed_table(ways: Ways, repeats: int) -> Table:
    """Medians of everything that is measured of speed, memory and disk."""
    named = [([way_label(way)], way["speed"]) for way in ways.values()]
    rows = measured_rows(named, SPEEDS)
    head = [tr("Way"), *(tr(measure.label) for measure in SPEEDS.values())]
    return Table(head, rows, qualified(tr("Speed, memory, disk"), _how_often(repeats)))


def _how_often(repeats: int) -> str:
    if repeats == 1:
        return tr("one process each")
    return tr("medians of {repeats} processes each, in turns", repeats=repeats)


def _rows_of(ways: Ways) -> list[tuple[str, int]]:
    """Labels and series of a figure with one row for each way."""
    order = list(WAYS)
    return [(way_label(way), order.index(way["form"])) for way in ways.values()]
