"""The report on methods over data sizes, from summary.json."""

from collections.abc import Mapping, Sequence
from typing import Any

from suri.study.figures import Bar, Line, Panel, bar_figure, line_figure
from suri.study.measures import COSTS, MEASURES, METHODS, Measure, method_label
from suri.study.sections import Figure, Section, Table, Tile, settings_section
from suri.study.statements import (
    cost_statements,
    headed,
    loss_statements,
    number,
    quantity,
    with_interval,
)

TITLE = "LoRA, 8-bit and QLoRA over data sizes"
SERIES = {"none": 1, "nf4": 2, "int8": 3}
SPEED_UP = Measure("Speed-up", "times", digits=2)
SAVED = Measure("Memory saved", "%", 100, 1)


def study_sections(summary: dict[str, Any]) -> list[Section]:
    """All sections, in the order of the page."""
    finished = [trial for trial in summary["trials"] if trial["status"] == "finished"]
    sections = [_overview(summary)]
    if finished:
        sections += [_cost(summary), _quality(summary), _curves(finished)]
    return [
        *sections,
        _trials(summary["trials"]),
        Section("What this does not show", points=summary["threats"]),
        settings_section(summary["recipe"], {"Environment": summary["environment"]}),
    ]


def _overview(summary: dict[str, Any]) -> Section:
    plan = summary["plan"]
    methods = ", ".join(f"{METHODS[name]} ({name})" for name in plan["quantize"])
    sizes = ", ".join(f"{rows:,}" for rows in plan["rows"])
    varied = "".join(
        f"; {name} {', '.join(map(str, values))}" for name, values in plan["vary"].items()
    )
    text = (
        f"{methods} on {sizes} training rows with seed {', '.join(map(str, plan['seeds']))}"
        f"{varied}; all judged on the same {summary['held_out_rows']} held-out rows. Each trial "
        f"ran in a process of its own, the methods of one size and seed one after the other."
    )
    tiles = [tile for found in summary["methods"] for tile in _tiles(found)]
    equal = Table((), list(summary["equal"].items()), "Held equal for all methods")
    return Section("At a glance", text, tiles=tiles[:8], tables=[equal])


def _tiles(found: dict[str, Any]) -> list[Tile]:
    at = f"{found['ours']['label']}, {found['ours']['rows']:,} rows"
    tiles = []
    if found["speed_up"]:
        value = f"{found['speed_up']['value']:.2f}×"
        tiles.append(Tile(at, value, f"as fast per step as {found['theirs']['label']}"))
    if found["memory_saved"]:
        saved = 100 * found["memory_saved"]["value"]
        tiles.append(Tile(at, f"{number(saved, 0)} %", "peak memory saved"))
    return tiles


def _cost(summary: dict[str, Any]) -> Section:
    groups = summary["groups"]
    panels = {
        name: Panel(
            f"{measure.label} ({measure.unit})",
            [_range_bar(measure, group[name]) for group in groups],
            measure.digits,
        )
        for name, measure in COSTS.items()
    }
    drawn = {
        "time": (("seconds_per_step", "total_seconds"), "Time: a step, without evaluation, and all"
                 " of a run from its command to its adapter."),
        "memory": (("tokens_per_second", "peak_memory_bytes"), "Throughput and peak memory."),
    }  # fmt: skip
    figures = [
        Figure(name, bar_figure(name, _rows(groups), [panels[one] for one in names]), caption)
        for name, (names, caption) in drawn.items()
    ]
    rows = [
        [
            *_names(group),
            f"{group['steps']:,}",
            *(
                quantity(measure, group[name]["median"]) if group[name] else "–"
                for name, measure in COSTS.items()
            ),
        ]
        for group in groups
    ]
    head = ["Rows", "Method", "Steps", *(measure.label for measure in COSTS.values())]
    compared = [found for found in summary["methods"] if found["memory_saved"]]
    return Section(
        "What it costs",
        statements=cost_statements(summary),
        figures=[*figures, *_speed_up_figure(compared)],
        tables=[Table(head, rows, "Medians over the seeds"), *_speed_ups(compared)],
    )


def _speed_up_figure(methods: Sequence[dict[str, Any]]) -> list[Figure]:
    """Speed-up and memory saved, with their intervals."""
    if not methods:
        return []
    panels = [
        Panel(f"{measure.label} ({measure.unit})", [_interval_bar(measure, found[name]) for found in
              methods], measure.digits)
        for name, measure in (("speed_up", SPEED_UP), ("memory_saved", SAVED))
    ]  # fmt: skip
    rows = [
        (f"{found['ours']['rows']:,} rows, {found['ours']['label']}",
         SERIES[found["ours"]["quantize"]])
        for found in methods
    ]  # fmt: skip
    drawing = bar_figure("speed-up", rows, panels)
    caption = "Against LoRA of the same rows: times as fast per step, and peak memory saved."
    return [Figure("speed-up", drawing, caption)]


def _speed_ups(methods: Sequence[dict[str, Any]]) -> list[Table]:
    columns = {
        "speed_up": SPEED_UP,
        "speed_up_to_adapter": Measure("Command to adapter", "times", digits=2),
        "memory_saved": SAVED,
        "loss_difference": MEASURES["loss"],
        "exact_match_difference": MEASURES["exact_match"],
    }
    rows = [
        [
            f"{found['ours']['rows']:,}",
            found["ours"]["label"],
            *(
                with_interval(measure, found[name]) if found[name] else "–"
                for name, measure in columns.items()
            ),
        ]
        for found in methods
    ]
    head = ("Rows", "Method", *(headed(measure) for measure in columns.values()))
    caption = "Against LoRA, with 95 % intervals; the last two columns are differences"
    return [Table(head, rows, caption)] if rows else []


def _quality(summary: dict[str, Any]) -> Section:
    groups = summary["groups"]
    sizes = sorted({group["rows"] for group in groups})
    drawn = {
        "loss": (MEASURES["loss"], "held-out loss"),
        "exact_match": (MEASURES["exact_match"], "held-out exact match, %"),
    }
    figures = []
    for name, (measure, label) in drawn.items():
        known = [group for group in groups if group[name]]
        if not known:
            continue
        lines = [
            _over_sizes(
                [group for group in known if group["label"] == method], name, measure, sizes
            )
            for method in dict.fromkeys(group["label"] for group in known)
        ]
        names = [f"{size:,}" for size in sizes]
        drawing = line_figure(f"sizes-{name}", lines, "training rows", label, x_names=names)
        figures.append(Figure(f"sizes-{name}", drawing, f"{label.capitalize()}. {BANDS}"))
    rows = [
        [
            *_names(group),
            number(group["base_loss"], 3),
            with_interval(MEASURES["loss"], group["loss"]),
            with_interval(MEASURES["exact_match"], group["exact_match"])
            if group["exact_match"]
            else "–",
        ]
        for group in groups
    ]
    return Section(
        "What it brings",
        statements=loss_statements(summary),
        figures=[*figures, _frontier(groups)],
        tables=[
            Table(
                ("Rows", "Method", "Loss of the base", "Loss", "Exact match, %"),
                rows,
                "Held-out rows: nats per learned token, right answers, and 95 % intervals",
            )
        ],
    )


BANDS = (
    "The bands are 95 % intervals over rows and seeds; the statements rest on the differences row "
    "by row, which are surer."
)


def _over_sizes(
    groups: Sequence[dict[str, Any]], name: str, measure: Measure, sizes: Sequence[int]
) -> Line:
    """One method's line over the sizes."""
    ends = {
        end: [group[name][end] * measure.scale for group in groups]
        for end in ("value", "low", "high")
    }
    return Line(
        groups[0]["label"],
        [sizes.index(group["rows"]) for group in groups],
        ends["value"],
        SERIES[groups[0]["quantize"]],
        ends["low"],
        ends["high"],
    )


def _frontier(groups: Sequence[dict[str, Any]]) -> Figure:
    """Quality against cost: one point for each method and size."""
    lines = []
    for label in dict.fromkeys(group["label"] for group in groups):
        mine = [group for group in groups if group["label"] == label]
        lines.append(
            Line(
                label,
                [group["train_seconds"]["median"] for group in mine],
                [group["loss"]["value"] for group in mine],
                SERIES[mine[0]["quantize"]],
            )
        )
    drawing = line_figure("frontier", lines, "seconds of training steps", "held-out loss")
    return Figure("frontier", drawing, "Quality against cost: lower and further left is better.")


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
    label, series = method_label(trial), SERIES[trial["quantize"]]
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
            method_label(trial),
            str(trial["seed"]),
            trial["status"],
            trial["reason"] or trial["name"],
        ]
        for trial in trials
    ]
    head = ("Rows", "Method", "Seed", "Outcome", "Folder, or why it failed")
    return Section("All trials", tables=[Table(head, rows)])


def _rows(groups: Sequence[dict[str, Any]]) -> list[tuple[str, int]]:
    return [
        (f"{group['rows']:,} rows, {group['label']}", SERIES[group["quantize"]]) for group in groups
    ]


def _names(group: dict[str, Any]) -> tuple[str, str]:
    return f"{group['rows']:,}", group["label"]


def _range_bar(measure: Measure, found: Mapping[str, Any] | None) -> Bar | None:
    return _bar(measure, found, ("median", "low", "high"))


def _interval_bar(measure: Measure, found: Mapping[str, Any] | None) -> Bar | None:
    return _bar(measure, found, ("value", "low", "high"))


def _bar(measure: Measure, found: Mapping[str, Any] | None, ends: Sequence[str]) -> Bar | None:
    return Bar(*(found[end] * measure.scale for end in ends)) if found else None
