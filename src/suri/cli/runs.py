"""`suri runs`: what was trained below a folder, and two runs side by side."""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from suri.cli.curve import room_of, two_curves
from suri.cli.flags import parse
from suri.errors import UsageError
from suri.files import readable_bytes
from suri.study.sections import plain
from suri.train.runs import RunEntry, differing, find_runs, read_run, readable_figure


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
    console = Console(highlight=False)
    if len(asked.places) == 2:
        _side_by_side(console, *(read_run(place) for place in asked.places))
    elif len(asked.places) == 1:
        _list(console, find_runs(asked.places[0], asked.where), asked.places[0])
    else:
        raise UsageError("give one folder to look below, or two run folders to set side by side")


def _list(console: Console, runs: list[RunEntry], place: Path) -> None:
    if not runs:
        console.print(f"no runs below {escape(str(place.resolve()))}")
        return
    table = Table(box=None, pad_edge=False)
    numbers = ("rows", "steps", "tok/s", "peak")
    for name in ("run", "when", "state", "base", "method", "rows", "steps", "loss", *numbers[2:]):
        table.add_column(name, justify="right" if name in numbers else "left", overflow="fold")
    for run in runs:
        table.add_row(*map(escape, _row(run, place)))
    console.print(table)
    console.print(f"{len(runs)} runs; `suri runs ONE OTHER` sets two side by side")


def _row(run: RunEntry, place: Path) -> list[str]:
    figures, settings = run.figures, run.settings
    try:
        name = str(run.folder.relative_to(place))
    except ValueError:
        name = str(run.folder)
    before, after = (figures.get(name) for name in ("base_loss", "held_out_loss"))
    losses = "" if before is None or after is None else f"{before:.3f} → {after:.3f}"
    method = f"r{settings['lora_r']} {settings['quantize']}"
    return [
        name,
        time.strftime("%m-%d %H:%M", time.localtime(run.started)),
        run.state,
        Path(str(settings["base_model"])).name,
        method if settings["engine"] == "suri" else f"{method} {settings['engine']}",
        f"{figures['rows']:,}" if "rows" in figures else "",
        f"{figures['steps']:,}" if "steps" in figures else "",
        losses,
        f"{figures['tokens_per_second']:.0f}" if "tokens_per_second" in figures else "",
        readable_bytes(figures["peak_memory_bytes"]) if "peak_memory_bytes" in figures else "",
    ]


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
