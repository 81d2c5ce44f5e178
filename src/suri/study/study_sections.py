"""Task 2's results: methods over data sizes, from summary.json."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from suri.study.blocks import Block, Figure, Section, Statements, Table, Text, Tile, Tiles
from suri.study.figures import Line, bar_figure, line_figure
from suri.study.language import joined, listed, qualified, tr
from suri.study.measures import COSTS, MEASURES, Measure, method_label, number
from suri.study.sections import (
    analysis_section,
    measured_rows,
    panel,
    settings_section,
    task_section,
)
from suri.study.statements import Statement, cost_statements, loss_statements, threats

SPEED_UP = Measure("Speed-up", "times", digits=2)
SAVED = Measure("Memory saved", "%", 100, 1)
COMPARED = {
    "speed_up": SPEED_UP,
    "speed_up_to_adapter": Measure("Command to adapter", "times", digits=2),
    "memory_saved": SAVED,
    "loss_difference": MEASURES["loss"],
    "exact_match_difference": MEASURES["exact_match"],
}
DRAWN = {
    "time": (("seconds_per_step", "total_seconds"), "time_of_methods"),
    "memory": (("tokens_per_second", "peak_memory_bytes"), "Throughput and peak memory."),
}
SERIES = {"none": 1, "nf4": 2, "int8": 3}
Summary = Mapping[str, Any]
Groups = Sequence[Summary]


def study_part(folder: Path, summary: Summary) -> Section:
    """The whole task."""
    finished = [trial for trial in summary["trials"] if trial["status"] == "finished"]
    shown = [_cost(summary), _quality(summary), _curves(finished)] if finished else []
    seeds = len(summary["plan"]["seeds"])
    dangers = threats(
        summary["recipe"], summary["held_out_rows"], summary["measured_in"], seeds=seeds
    )
    statements = [*cost_statements(summary), *loss_statements(summary)]
    last = [
        analysis_section(study_findings(summary), statements, dangers),
        settings_section(summary["recipe"], {tr("Environment"): summary["environment"]}),
    ]
    results = [_overview(summary), *shown, _trials(summary["trials"])]
    return task_section(title_of(summary["plan"]), "study", folder, results, last)


def title_of(plan: Summary) -> str:
    """The methods that were compared, and whether over several sizes of data."""
    methods = joined(_methods_of(plan))
    if len(plan["rows"]) > 1:
        return tr("Task 2: {methods} over data sizes", methods=methods)
    return tr("Task 2: {methods}", methods=methods)


def _methods_of(plan: Summary) -> list[str]:
    return [method_label({"quantize": name, "settings": {}}) for name in plan["quantize"]]


def study_findings(summary: Summary) -> list[Statement]:
    """The few sentences that a summary rests on: those at the largest size."""
    most = max((group["rows"] for group in summary["groups"]), default=0)
    largest = {
        kind: [found for found in summary[kind] if found["ours"]["rows"] == most]
        for kind in ("methods", "sizes", "settings")
    }
    return [*cost_statements(largest), *loss_statements(largest)]


def _overview(summary: Summary) -> Section:
    plan = summary["plan"]
    varied = "".join(
        f"{tr('; ')}{name} {listed(map(str, values))}" for name, values in plan["vary"].items()
    )
    text = tr(
        "study_overview",
        methods=listed(_methods_of(plan)),
        sizes=listed(f"{rows:,}" for rows in plan["rows"]),
        count=len(plan["seeds"]),
        seeds=listed(map(str, plan["seeds"])),
        varied=varied,
        rows=summary["held_out_rows"],
    )
    tiles = [tile for found in summary["methods"] for tile in _tiles(found)]
    rows = [(tr(name), tr(value)) for name, value in summary["equal"].items()]
    equal = Table((), rows, tr("Held equal for all methods"))
    return Section(tr("At a glance"), [Text(text), Tiles(tiles[-8:]), equal])


def _tiles(found: Summary) -> list[Tile]:
    at = _named(found["ours"])
    tiles = []
    if found["speed_up"]:
        value = f"{found['speed_up']['value']:.2f}×"
        note = tr("as fast per step as {method}", method=method_label(found["theirs"]))
        tiles.append(Tile(at, value, note))
    if found["memory_saved"]:
        saved = 100 * found["memory_saved"]["value"]
        tiles.append(Tile(at, f"{number(saved, 0)} %", tr("peak memory saved")))
    return tiles


def _cost(summary: Summary) -> Section:
    """Time and memory of every method and size, and of each method against the plain one."""
    groups = summary["groups"]
    figures = []
    for name, (measures, caption) in DRAWN.items():
        panels = [panel(COSTS[one], [group[one] for group in groups]) for one in measures]
        figures.append(Figure(name, bar_figure(name, _rows_of(groups), panels), tr(caption)))
    compared = [found for found in summary["methods"] if found["memory_saved"]]
    blocks: list[Block] = [Statements(cost_statements(summary)), *figures]
    if compared:
        blocks += [_gains_figure(compared), _cost_table(groups), _gains_table(compared)]
    else:
        blocks.append(_cost_table(groups))
    return Section(tr("What it costs"), blocks)


def _cost_table(groups: Groups) -> Table:
    named = [((*_names_of(group), f"{group['steps']:,}"), group) for group in groups]
    rows = measured_rows(named, COSTS)
    head = [tr(name) for name in ("Rows", "Method", "Steps")]
    head += [tr(measure.label) for measure in COSTS.values()]
    return Table(head, rows, tr("Medians over the seeds"))


def _gains_figure(methods: Groups) -> Figure:
    """Speed-up and memory saved, with their intervals."""
    gains = {"speed_up": SPEED_UP, "memory_saved": SAVED}
    panels = [panel(measure, [found[name] for found in methods]) for name, measure in gains.items()]
    rows = _rows_of([found["ours"] for found in methods])
    return Figure("speed-up", bar_figure("speed-up", rows, panels), tr("gains_of_methods"))


def _gains_table(methods: Groups) -> Table:
    named = [(_names_of(found["ours"]), found) for found in methods]
    rows = measured_rows(named, COMPARED)
    head = [tr("Rows"), tr("Method"), *(measure.head for measure in COMPARED.values())]
    return Table(head, rows, tr("gains_with_intervals"))


def _quality(summary: Summary) -> Section:
    """Held-out loss and right answers over the sizes, and against what they cost."""
    groups = summary["groups"]
    named = [((*_names_of(group), number(group["base_loss"], 3)), group) for group in groups]
    measures = {name: MEASURES[name] for name in ("loss", "exact_match")}
    rows = measured_rows(named, measures)
    head = [tr(name) for name in ("Rows", "Method", "Loss of the base", "Loss", "Exact match, %")]
    return Section(
        tr("What it brings"),
        [
            Statements(loss_statements(summary)),
            *_over_sizes(groups, "loss", "held-out loss"),
            *_over_sizes(groups, "exact_match", "held-out exact match, %"),
            _frontier(groups),
            Table(head, rows, tr("quality_of_methods")),
        ],
    )


def _over_sizes(groups: Groups, name: str, label: str) -> list[Figure]:
    """One measure over the sizes, a line and a band for each method."""
    sizes = sorted({group["rows"] for group in groups})
    scale = MEASURES[name].scale
    lines = []
    for mine in _by_method([group for group in groups if group[name]]):
        values, lows, highs = (
            [group[name][end] * scale for group in mine] for end in ("value", "low", "high")
        )
        places = [sizes.index(group["rows"]) for group in mine]
        series = SERIES[mine[0]["quantize"]]
        lines.append(Line(method_label(mine[0]), places, values, series, lows, highs))
    if not lines:
        return []
    named = [f"{size:,}" for size in sizes]
    drawing = line_figure(f"sizes-{name}", lines, tr("training rows"), tr(label), x_names=named)
    return [Figure(f"sizes-{name}", drawing, f"{tr(label).capitalize()}{tr('.')} {tr('bands')}")]


def _by_method(groups: Groups) -> list[Groups]:
    labels = dict.fromkeys(method_label(group) for group in groups)
    return [[group for group in groups if method_label(group) == label] for label in labels]


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


def _curves(trials: Groups) -> Section:
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
        drawing = line_figure(name, lines, tr("step"), tr("nats per token"))
        caption = tr("Loss while training on {rows:row|rows}.", rows=f"{rows:,}")
        figures.append(Figure(name, drawing, caption))
    return Section(tr("The training runs"), figures)


def _curve(trial: Summary) -> list[Line]:
    label, series = method_label(trial), SERIES[trial["quantize"]]
    (steps, losses), (evaluated, held_out) = trial["curve"]["train"], trial["curve"]["eval"]
    lines = [
        Line(qualified(label, tr("training")), steps, losses, series, faint=True),
        Line(qualified(label, tr("held out")), evaluated, held_out, series),
    ]
    return [line for line in lines if line.xs]


def _trials(trials: Groups) -> Section:
    rows = [
        [
            *_names_of(trial),
            str(trial["seed"]),
            tr(trial["status"]),
            trial["reason"] or trial["name"],
        ]
        for trial in trials
    ]
    names = ("Rows", "Method", "Seed", "Outcome", "Folder, or why it failed")
    return Section(tr("All trials"), [Table([tr(name) for name in names], rows)])


def _names_of(group: Summary) -> tuple[str, str]:
    """The first two cells of a row: how many rows, and the method."""
    return f"{group['rows']:,}", method_label(group)


def _named(group: Summary) -> str:
    return tr("{rows:row|rows}, {method}", rows=f"{group['rows']:,}", method=method_label(group))


def _rows_of(groups: Groups) -> list[tuple[str, int]]:
    """Labels and series of a figure with one row for each method and size."""
    return [(_named(group), SERIES[group["quantize"]]) for group in groups]
