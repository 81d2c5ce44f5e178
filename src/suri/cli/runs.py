"""`suri runs`: what was trained below a folder, and two runs side by side."""

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

from suri.cli.curve import room_of, two_curves
from suri.cli.flags import parse
from suri.errors import UsageError
from suri.study.sections import plain
from suri.train.runs import RunEntry, differing, find_runs, read_run, readable_figure
from suri.wording import counted, readable_bytes

PIPED = 500
"""Columns where the output is no terminal: a line is a run then, for `grep` and `sort`."""
NUMBERS = ("rows", "steps", "tok/s", "peak")
LEAVING = ("when", "tok/s", "rows", "peak", "base", "steps")
"""Columns that a narrow terminal does not show, the first to go first."""


@dataclass(frozen=True)
class RunsCommand:
    """List runs; or, given two run folders, set them side by side, their curves over each other."""

    places: tyro.conf.Positional[
        Annotated[tuple[Path, ...], tyro.conf.arg(metavar="[FOLDER]", name="")]
    ] = field(default_factory=lambda: (Path(),))
    """A folder to look below (here, unless you say), or two run folders."""
    where: tuple[str, ...] = ()
    """Only runs with these settings, as quantize=nf4 seed=1."""


def run(argv: list[str]) -> None:
    """Parse and run `suri runs`."""
    asked = parse(RunsCommand, argv, "suri runs")
    console = Console(highlight=False, width=None if sys.stdout.isatty() else PIPED)
    if len(asked.places) == 2:
        _side_by_side(console, *(read_run(place) for place in asked.places))
    elif len(asked.places) == 1:
        show_list(console, find_runs(asked.places[0], asked.where), asked.places[0])
    else:
        raise UsageError("give one folder to look below, or two run folders to set side by side")


def show_list(console: Console, runs: list[RunEntry], place: Path) -> None:
    """One line for each run, with as many of its figures as the console has room for."""
    if not runs:
        console.print(f"no runs below {escape(str(place.resolve()))}")
        return
    rows = [_row(run, place) for run in runs]
    unbounded = console.options.update(width=PIPED)
    for count in range(len(LEAVING) + 1):
        left_out = LEAVING[:count]
        table = _table(rows, [name for name in rows[0] if name not in left_out])
        if Measurement.get(console, unbounded, table).maximum <= console.width:
            break
    console.print(table)
    console.print(f"{counted(len(runs), 'run|runs')}; `suri runs ONE OTHER` sets two side by side")
    if left_out:
        console.print(f"[dim]a wider terminal also shows: {', '.join(left_out)}[/]")


def _table(rows: Sequence[Mapping[str, str]], names: Sequence[str]) -> Table:
    """The columns that are named; nothing is wrapped while there is room."""
    table = Table(box=None, pad_edge=False)
    for name in names:
        table.add_column(name, justify="right" if name in NUMBERS else "left", overflow="fold")
    for row in rows:
        table.add_row(*(escape(row[name]) for name in names))
    return table


def _row(run: RunEntry, place: Path) -> dict[str, str]:
    figures, settings = run.figures, run.settings
    try:
        name = str(run.folder.relative_to(place))
    except ValueError:
        name = str(run.folder)
    before, after = (figures.get(name) for name in ("base_loss", "held_out_loss"))
    losses = "" if before is None or after is None else f"{before:.3f} → {after:.3f}"
    method = f"r{settings['lora_r']} {settings['quantize']}"
    speed, peak = (figures.get(name) for name in ("tokens_per_second", "peak_memory_bytes"))
    return {
        "run": name,
        "when": time.strftime("%m-%d %H:%M", time.localtime(run.started)),
        "state": run.state,
        "base": Path(str(settings["base_model"])).name,
        "method": method if settings["engine"] == "suri" else f"{method} {settings['engine']}",
        "rows": f"{figures['rows']:,}" if "rows" in figures else "",
        "steps": f"{figures['steps']:,}" if "steps" in figures else "",
        "loss": losses,
        "tok/s": "" if speed is None else f"{speed:.0f}",
        "peak": "" if peak is None else readable_bytes(peak),
    }


def _side_by_side(console: Console, one: RunEntry, other: RunEntry) -> None:
    names = [escape(str(run.folder)) for run in (one, other)]
    table = Table("", *names, box=None, pad_edge=False)
    table.add_row("state", one.state, other.state)
    for name, ours, theirs in differing(one, other):
        table.add_row(name, escape(plain(ours)), escape(plain(theirs)))
    figures = (one.figures, other.figures)
    for name in dict.fromkeys([*figures[0], *figures[1]]):
        table.add_row(name, *(readable_figure(name, found.get(name)) for found in figures))
    console.print(table)
    console.print("[dim]settings that are not named are the same[/]")
    for line in two_curves(one.metrics, other.metrics, **room_of(console)):
        console.print(line)
