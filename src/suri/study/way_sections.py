"""Task 1's results, continued: how the ways agree with the adapter, and what they cost."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from suri.study.blocks import Figure, Section, Statements, Table, Text
from suri.study.figures import Bar, Panel, bar_figure, heat_figure
from suri.study.language import tr
from suri.study.measures import ADAPTER, BASE, SPEEDS, WAYS, Measure, way_label
from suri.study.statements import agreement_statements, speed_statements
from suri.study.wording import headed, quantity

Summary = Mapping[str, Any]


def main_ways(summary: Summary) -> dict[str, Any]:
    """The ways of the one engine and number format in which forms are compared."""
    return {name: way for name, way in summary["ways"].items() if way["is_main"]}


def other_ways(summary: Summary) -> list[str]:
    """Those of them that are neither base nor adapter."""
    return [name for name in main_ways(summary) if name not in (BASE, ADAPTER)]


def agreement_section(summary: Summary) -> Section:
    """Equal answers, where they part, distributions, certificates."""
    ways = {name: way for name, way in main_ways(summary).items() if way["agreement"]}
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
        drawing = bar_figure("agreement", rows_of(ways), panels)
        caption = tr("Agreement of every way with the adapter: whole answers, tokens, next tokens.")
        figures.append(Figure("agreement", drawing, caption))
    labels = [way_label(way) for way in summary["ways"].values()]
    prefixes = heat_figure("prefixes", labels, summary["prefixes"])
    caption = tr("How much of the answers of every two ways is the same before they part, in %.")
    return Section(
        tr("What merging and storing change"),
        [
            Statements(agreement_statements(summary, other_ways(summary))),
            *figures,
            Figure("prefixes", prefixes, caption),
            *agreement_table(ways),
            *_certificates(summary),
        ],
    )


def agreement_table(ways: Summary) -> list[Table]:
    """Each way against the adapter; nothing where there are none."""
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


def speed_section(summary: Summary) -> Section:
    """Time, memory and disk of every form."""
    ways, how = main_ways(summary), _how(summary)

    def figure(name: str, names: Sequence[str], caption: str) -> Figure:
        panels = [
            Panel(
                headed(SPEEDS[one]),
                [_range_bar(SPEEDS[one], way["speed"][one]) for way in ways.values()],
                SPEEDS[one].digits,
            )
            for one in names
        ]
        return Figure(name, bar_figure(name, rows_of(ways), panels), f"{tr(caption)}, {how}.")

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
            Statements(speed_statements(summary, other_ways(summary))),
            figure("speed", ["tokens_per_second", "batch_tokens_per_second"], "Speed"),
            figure("waiting", waiting, "Waiting"),
            figure("size", ["peak_memory_bytes", "bytes_on_disk"], "Memory and disk"),
            speed_table(summary, ways),
        ],
    )


def speed_table(summary: Summary, ways: Summary) -> Table:
    """Medians of everything that is measured of speed, memory and disk."""
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


def rows_of(ways: Summary) -> list[tuple[str, int]]:
    """Labels and series of a figure with one row for each way."""
    order = list(WAYS)
    return [(way_label(way), order.index(way["form"])) for way in ways.values()]


def interval_bar(measure: Measure, found: Summary | None) -> Bar | None:
    """A value with its interval."""
    return Bar(*(found[end] * measure.scale for end in ("value", "low", "high"))) if found else None


def _range_bar(measure: Measure, found: Summary) -> Bar:
    return Bar(*(found[end] * measure.scale for end in ("median", "low", "high")))
