"""The report on LoRA and QLoRA over data sizes, from summary.json."""

from collections.abc import Sequence
from typing import Any

from suri.study.figures import Bar, Line, Panel, bar_figure, line_figure
from suri.study.sections import Figure, Section, Table, Tile, settings_section, threats
from suri.study.statements import (
    cost_statements,
    loss_statements,
    number,
    quantity,
    with_interval,
)
from suri.study.summary import MEASURES, METHODS, SPEEDS, Measure

TITLE = "LoRA and QLoRA over data sizes"
SERIES = {"none": 1, "nf4": 2, "int8": 3}
MEMORY = SPEEDS["peak_memory_bytes"]
TIMES = {
    "seconds_per_step": Measure("Time per step", "s", digits=2),
    "train_seconds": Measure("Training", "s", digits=1),
    "tokens_per_second": Measure("Throughput", "tokens/s", digits=0),
    "peak_memory_bytes": MEMORY,
}


def study_sections(summary: dict[str, Any]) -> list[Section]:
    """All sections, in the order of the page."""
    finished = [trial for trial in summary["trials"] if trial["status"] == "finished"]
    sections = [_overview(summary)]
    if finished:
        sections += [_cost(summary), _quality(summary), _curves(finished)]
    return [
        *sections,
        _trials(summary["trials"]),
        Section(
            "What this does not show",
            points=[
                *threats(summary["recipe"], summary["held_out_rows"], summary["measured_in"]),
                *_seeds(summary["plan"]["seeds"]),
            ],
        ),
        settings_section(summary["recipe"], {"Environment": summary["environment"]}),
    ]


def _overview(summary: dict[str, Any]) -> Section:
    plan = summary["plan"]
    methods = " and ".join(f"{METHODS[name]} ({name})" for name in plan["quantize"])
    sizes = ", ".join(str(rows) for rows in plan["rows"])
    text = (
        f"{methods} on {sizes} training rows with seed {', '.join(map(str, plan['seeds']))}. "
        f"The smaller sets are the first rows of the larger ones, and all trials are judged on the "
        f"same {summary['held_out_rows']} held-out rows. Apart from how the base is stored, all "
        f"settings are equal. Each trial ran in a process of its own, the methods of one size one "
        f"after the other."
    )
    tiles = [tile for found in summary["methods"] for tile in _tiles(found)]
    return Section("At a glance", text, tiles=tiles)


def _tiles(found: dict[str, Any]) -> list[Tile]:
    saved = 100 * found["memory_saved"]
    tiles = [Tile(f"Memory saved, {found['rows']} rows", f"{number(saved, 0)} %", "peak, QLoRA")]
    if found["speed_up"]:
        speed_up = f"{found['speed_up']['value']:.2f}×"
        tiles.insert(0, Tile(f"Speed-up, {found['rows']} rows", speed_up, "QLoRA over LoRA"))
    return tiles


def _cost(summary: dict[str, Any]) -> Section:
    groups = summary["groups"]
    panels = [
        Panel(
            f"{measure.label} ({measure.unit})",
            [
                Bar(*(group[name][end] * measure.scale for end in ("median", "low", "high")))
                for group in groups
            ],
            measure.digits,
        )
        for name, measure in TIMES.items()
    ]
    rows_drawn = _rows(groups)
    figures = [
        Figure(
            "time", bar_figure("time", rows_drawn, panels[:2]), "Time; per step without evaluation."
        ),
        Figure(
            "memory", bar_figure("memory", rows_drawn, panels[2:]), "Throughput and peak memory."
        ),
    ]
    rows = [
        [
            *_names(group),
            f"{group['steps']:,}",
            *(quantity(measure, group[name]["median"]) for name, measure in TIMES.items()),
        ]
        for group in groups
    ]
    head = ["Rows", "Method", "Steps", *(measure.label for measure in TIMES.values())]
    return Section(
        "What it costs",
        statements=cost_statements(summary),
        figures=figures,
        tables=[Table(head, rows, "Medians over the seeds"), *_speed_ups(summary["methods"])],
    )


def _speed_ups(methods: Sequence[dict[str, Any]]) -> list[Table]:
    rows = [
        [
            f"{found['rows']:,}",
            f"{found['speed_up']['value']:.2f} "
            f"({found['speed_up']['low']:.2f} to {found['speed_up']['high']:.2f})"
            if found["speed_up"]
            else "–",
            f"{number(100 * found['memory_saved'], 1)} %",
            with_interval(MEASURES["loss"], found["loss_difference"]),
        ]
        for found in methods
    ]
    head = ("Rows", "Speed-up, times", "Memory saved", "Held-out loss, difference in nats/token")
    return [Table(head, rows, "QLoRA against LoRA, with 95 % intervals")] if rows else []


def _quality(summary: dict[str, Any]) -> Section:
    groups = summary["groups"]
    sizes = sorted({group["rows"] for group in groups})
    lines = []
    for method, label in METHODS.items():
        found = [group for group in groups if group["quantize"] == method]
        losses = [group["loss"] for group in found]
        if found:
            lines.append(
                Line(
                    label,
                    [sizes.index(group["rows"]) for group in found],
                    [loss["value"] for loss in losses],
                    SERIES[method],
                    [loss["low"] for loss in losses],
                    [loss["high"] for loss in losses],
                )
            )
    drawing = line_figure(
        "sizes", lines, "training rows", "held-out loss", x_names=[f"{size:,}" for size in sizes]
    )
    rows = [
        [
            *_names(group),
            number(group["base_loss"], 3),
            with_interval(MEASURES["loss"], group["loss"]),
        ]
        for group in groups
    ]
    caption = (
        "Held-out loss over data size. The lines’ intervals cover the choice of rows; the "
        "statements rest on the differences row by row, which are surer."
    )
    return Section(
        "What it brings",
        statements=loss_statements(summary),
        figures=[Figure("sizes", drawing, caption)],
        tables=[
            Table(
                ("Rows", "Method", "Base", "Trained"),
                rows,
                "Held-out loss in nats per learned token, and its 95 % interval over rows",
            )
        ],
    )


def _curves(trials: Sequence[dict[str, Any]]) -> Section:
    """Loss curves of the first seed, one figure for each size."""
    first_seed = min(trial["seed"] for trial in trials)
    figures = []
    for rows in sorted({trial["rows"] for trial in trials}):
        lines = [
            line
            for trial in trials
            if (trial["rows"], trial["seed"]) == (rows, first_seed)
            for line in _curve(trial)
        ]
        name = f"curve-{rows}"
        drawing = line_figure(name, lines, "step", "nats per token")
        figures.append(Figure(name, drawing, f"Loss while training on {rows} rows."))
    return Section("The training runs", figures=figures)


def _curve(trial: dict[str, Any]) -> list[Line]:
    label, series = METHODS[trial["quantize"]], SERIES[trial["quantize"]]
    (steps, losses), (evaluated, held_out) = trial["curve"]["train"], trial["curve"]["eval"]
    lines = [
        Line(f"{label}, training", steps, losses, series, faint=True),
        Line(f"{label}, held out", evaluated, held_out, series),
    ]
    return [line for line in lines if line.xs]


def _trials(trials: Sequence[dict[str, Any]]) -> Section:
    rows = [
        [
            f"{trial['rows']:,}",
            METHODS[trial["quantize"]],
            str(trial["seed"]),
            trial["status"],
            trial["reason"] or trial["name"],
        ]
        for trial in trials
    ]
    head = ("Rows", "Method", "Seed", "Outcome", "Folder, or why it failed")
    return Section("All trials", tables=[Table(head, rows)])


def _seeds(seeds: Sequence[int]) -> list[str]:
    if len(seeds) > 1:
        return []
    return ["One seed: how much another seed changes any of this was not measured."]


def _rows(groups: Sequence[dict[str, Any]]) -> list[tuple[str, int]]:
    return [
        (f"{group['rows']:,} rows, {METHODS[group['quantize']]}", SERIES[group["quantize"]])
        for group in groups
    ]


def _names(group: dict[str, Any]) -> tuple[str, str]:
    return f"{group['rows']:,}", METHODS[group["quantize"]]
