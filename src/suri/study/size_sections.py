"""Task 2's results, continued: what more rows bring, at what cost, and the loss curves."""

from collections.abc import Mapping, Sequence
from typing import Any

from suri.study.blocks import Block, Figure, Section, Statements, Table
from suri.study.figures import Line, line_figure
from suri.study.language import tr
from suri.study.measures import MEASURES, method_label
from suri.study.statements import loss_statements
from suri.study.wording import number, with_interval

SERIES = {"none": 1, "nf4": 2, "int8": 3}
Summary = Mapping[str, Any]
Groups = Sequence[Mapping[str, Any]]


def quality_section(summary: Summary) -> Section:
    """Held-out loss and right answers over the sizes, and against what they cost."""
    groups = summary["groups"]
    rows = [
        [
            *names_of(group),
            number(group["base_loss"], 3),
            with_interval(MEASURES["loss"], group["loss"]),
            with_interval(MEASURES["exact_match"], group["exact_match"])
            if group["exact_match"]
            else "–",
        ]
        for group in groups
    ]
    head = [tr(name) for name in ("Rows", "Method", "Loss of the base", "Loss", "Exact match, %")]
    caption = tr("Held-out rows: nats per learned token, right answers, and 95 % intervals")
    return Section(
        tr("What it brings"),
        [
            Statements(loss_statements(summary)),
            *_over_sizes(groups, "loss", "held-out loss"),
            *_over_sizes(groups, "exact_match", "held-out exact match, %"),
            _frontier(groups),
            Table(head, rows, caption),
        ],
    )


def _over_sizes(groups: Groups, name: str, label: str) -> list[Figure]:
    """One measure over the sizes, a line and a band for each method."""
    sizes = sorted({group["rows"] for group in groups})
    lines = [
        _line(mine, name, sizes) for mine in _by_method([group for group in groups if group[name]])
    ]
    if not lines:
        return []
    named = [f"{size:,}" for size in sizes]
    drawing = line_figure(f"sizes-{name}", lines, tr("training rows"), tr(label), x_names=named)
    bands = tr(
        "The bands are 95 % intervals over rows and seeds; the statements rest on the differences "
        "row by row, which are surer."
    )
    return [Figure(f"sizes-{name}", drawing, f"{tr(label).capitalize()}. {bands}")]


def _by_method(groups: Groups) -> list[Groups]:
    labels = dict.fromkeys(method_label(group) for group in groups)
    return [[group for group in groups if method_label(group) == label] for label in labels]


def _line(groups: Groups, name: str, sizes: Sequence[int]) -> Line:
    scale = MEASURES[name].scale
    ends = {end: [group[name][end] * scale for group in groups] for end in ("value", "low", "high")}
    return Line(
        method_label(groups[0]),
        [sizes.index(group["rows"]) for group in groups],
        ends["value"],
        SERIES[groups[0]["quantize"]],
        ends["low"],
        ends["high"],
    )


def _frontier(groups: Groups) -> Figure:
    """Quality against cost: one point for each method and size."""
    lines = [
        Line(
            method_label(mine[0]),
            [group["train_seconds"]["median"] for group in mine],
            [group["loss"]["value"] for group in mine],
            SERIES[mine[0]["quantize"]],
        )
        for mine in _by_method(groups)
    ]
    drawing = line_figure("frontier", lines, tr("seconds of training steps"), tr("held-out loss"))
    caption = tr("Quality against cost: lower and further left is better.")
    return Figure("frontier", drawing, caption)


def curves_section(trials: Sequence[dict[str, Any]]) -> Section:
    """Loss curves of the first seed, one figure for each size."""
    first_seed = min(trial["seed"] for trial in trials)
    figures: list[Block] = []
    for rows in sorted({trial["rows"] for trial in trials}):
        lines = [
            line
            for trial in trials
            if (trial["rows"], trial["seed"]) == (rows, first_seed)
            for line in _curve(trial)
        ]
        name = f"curve-{rows}"
        drawing = line_figure(name, lines, tr("step"), tr("nats per token"))
        caption = tr("Loss while training on {rows} rows.", rows=f"{rows:,}")
        figures.append(Figure(name, drawing, caption))
    return Section(tr("The training runs"), figures)


def _curve(trial: dict[str, Any]) -> list[Line]:
    label, series = method_label(trial), SERIES[trial["quantize"]]
    (steps, losses), (evaluated, held_out) = trial["curve"]["train"], trial["curve"]["eval"]
    lines = [
        Line(f"{label}, {tr('training')}", steps, losses, series, faint=True),
        Line(f"{label}, {tr('held out')}", evaluated, held_out, series),
    ]
    return [line for line in lines if line.xs]


def names_of(group: Summary) -> tuple[str, str]:
    """The first two cells of a group's row: rows and method."""
    return f"{group['rows']:,}", method_label(group)
