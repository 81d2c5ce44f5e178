"""Task 2's results: methods over data sizes, from summary.json."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from suri.study.blocks import Figure, Section, Statements, Table, Text, Tile, Tiles
from suri.study.figures import Bar, Panel, bar_figure
from suri.study.language import tr
from suri.study.measures import COSTS, MEASURES, Measure, method_label
from suri.study.sections import (
    analysis_section,
    captures_section,
    code_section,
    idea_section,
    settings_section,
)
from suri.study.size_sections import SERIES, curves_section, names_of, quality_section
from suri.study.statements import Statement, cost_statements, loss_statements, threats
from suri.study.wording import headed, number, quantity, with_interval

TITLE = "Task 2: LoRA, 8-bit and QLoRA over data sizes"
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
    "time": (
        ("seconds_per_step", "total_seconds"),
        "Time: a step, without evaluation, and all of a run from its command to its adapter.",
    ),
    "memory": (("tokens_per_second", "peak_memory_bytes"), "Throughput and peak memory."),
}
Summary = Mapping[str, Any]
Groups = Sequence[Mapping[str, Any]]


def study_part(folder: Path, summary: Summary) -> Section:
    """The whole task, in the order of the handout."""
    finished = [trial for trial in summary["trials"] if trial["status"] == "finished"]
    shown = [_cost(summary), quality_section(summary), curves_section(finished)] if finished else []
    results = Section(tr("Results"), parts=[_overview(summary), *shown, _trials(summary["trials"])])
    seeds = len(summary["plan"]["seeds"])
    dangers = threats(
        summary["recipe"], summary["held_out_rows"], summary["measured_in"], seeds=seeds
    )
    return Section(
        tr(TITLE),
        parts=[
            idea_section("study"),
            code_section("study"),
            captures_section(folder),
            results,
            analysis_section(study_findings(summary), study_statements(summary), dangers),
            settings_section(summary["recipe"], {tr("Environment"): summary["environment"]}),
        ],
    )


def study_statements(summary: Summary) -> list[Statement]:
    """Every sentence on the results, in their order."""
    return [*cost_statements(summary), *loss_statements(summary)]


def study_findings(summary: Summary) -> list[Statement]:
    """The few of them that a summary rests on: those at the largest size."""
    most = max((group["rows"] for group in summary["groups"]), default=0)
    largest = dict(summary) | {
        kind: [found for found in summary[kind] if found["ours"]["rows"] == most]
        for kind in ("methods", "sizes", "settings")
    }
    return study_statements(largest)


def _overview(summary: Summary) -> Section:
    plan = summary["plan"]
    methods = [method_label({"quantize": name, "settings": {}}) for name in plan["quantize"]]
    varied = "".join(
        f"; {name} {', '.join(map(str, values))}" for name, values in plan["vary"].items()
    )
    text = tr(
        "{methods} on {sizes} training rows with seeds {seeds}{varied}; all judged on the same "
        "{rows} held-out rows. Each trial ran in a process of its own, the methods of one size and "
        "seed one after the other.",
        methods=", ".join(methods),
        sizes=", ".join(f"{rows:,}" for rows in plan["rows"]),
        seeds=", ".join(map(str, plan["seeds"])),
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
    groups = summary["groups"]
    figures = [
        Figure(name, bar_figure(name, _rows(groups), _panels(groups, names)), tr(caption))
        for name, (names, caption) in DRAWN.items()
    ]
    rows = [
        [
            *names_of(group),
            f"{group['steps']:,}",
            *(
                quantity(measure, group[name]["median"]) if group[name] else "–"
                for name, measure in COSTS.items()
            ),
        ]
        for group in groups
    ]
    head = [tr(name) for name in ("Rows", "Method", "Steps")]
    head += [tr(measure.label) for measure in COSTS.values()]
    compared = [found for found in summary["methods"] if found["memory_saved"]]
    return Section(
        tr("What it costs"),
        [
            Statements(cost_statements(summary)),
            *figures,
            *_speed_up_figure(compared),
            Table(head, rows, tr("Medians over the seeds")),
            *_speed_ups(compared),
        ],
    )


def _panels(groups: Groups, names: Sequence[str]) -> list[Panel]:
    return [
        Panel(
            headed(COSTS[name]),
            [_bar(COSTS[name], group[name], ("median", "low", "high")) for group in groups],
            COSTS[name].digits,
        )
        for name in names
    ]


def _speed_up_figure(methods: Groups) -> list[Figure]:
    """Speed-up and memory saved, with their intervals."""
    if not methods:
        return []
    panels = [
        Panel(
            headed(measure),
            [_bar(measure, found[name], ("value", "low", "high")) for found in methods],
            measure.digits,
        )
        for name, measure in (("speed_up", SPEED_UP), ("memory_saved", SAVED))
    ]
    rows = [(_named(found["ours"]), SERIES[found["ours"]["quantize"]]) for found in methods]
    caption = tr("Against LoRA of the same rows: times as fast per step, and peak memory saved.")
    return [Figure("speed-up", bar_figure("speed-up", rows, panels), caption)]


def _speed_ups(methods: Groups) -> list[Table]:
    rows = [
        [
            *names_of(found["ours"]),
            *(
                with_interval(measure, found[name]) if found[name] else "–"
                for name, measure in COMPARED.items()
            ),
        ]
        for found in methods
    ]
    head = [tr("Rows"), tr("Method"), *(headed(measure) for measure in COMPARED.values())]
    caption = tr("Against LoRA, with 95 % intervals; the last two columns are differences")
    return [Table(head, rows, caption)] if rows else []


def _trials(trials: Sequence[dict[str, Any]]) -> Section:
    rows = [
        [
            f"{trial['rows']:,}",
            method_label(trial),
            str(trial["seed"]),
            tr(trial["status"]),
            trial["reason"] or trial["name"],
        ]
        for trial in trials
    ]
    names = ("Rows", "Method", "Seed", "Outcome", "Folder, or why it failed")
    return Section(tr("All trials"), [Table([tr(name) for name in names], rows)])


def _named(group: Summary) -> str:
    return tr("{rows} rows, {method}", rows=f"{group['rows']:,}", method=method_label(group))


def _rows(groups: Groups) -> list[tuple[str, int]]:
    return [(_named(group), SERIES[group["quantize"]]) for group in groups]


def _bar(measure: Measure, found: Summary | None, ends: Sequence[str]) -> Bar | None:
    return Bar(*(found[end] * measure.scale for end in ends)) if found else None
