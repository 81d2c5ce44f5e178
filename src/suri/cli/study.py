"""`suri compare`, `suri study` and `suri report`: run, print a table, say where the report is."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from suri.cli.flags import parse
from suri.errors import UsageError
from suri.reading import read_object, well_formed
from suri.study.compare import Comparison, compare
from suri.study.measures import MEASURES, SPEEDS, method_label, number, way_label
from suri.study.plan import read_plan
from suri.study.process import Say
from suri.study.report import COMPARE, STUDY, write_report
from suri.study.task import compare_plan
from suri.study.trials import HERE, Executor, run_plan
from suri.study.watch import Row
from suri.wording import counted

HELD_OUT = "held-out row|held-out rows"


@dataclass(frozen=True)
class StudyCommand:
    """LoRA, 8-bit and QLoRA over sizes of data. The same command goes on with what was cut."""

    plan: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="PLAN")]]
    """TOML file with [recipe] and [study]: lists of quantize, rows, seeds, and of any setting."""
    output_dir: str = ""
    """Folder for the results ("": the plan's name, here)."""
    check: bool = False
    """Only say which trials there are, what is held equal, and whether they fit."""
    on: str = ""
    """Where trials run ("": here, one after the other): ray, ray://auto or ray://HOST:PORT."""
    cpus: int = 0
    """With --on: cores of a trial (0: all of the smallest node; with GPUs, a GPU's part)."""


@dataclass(frozen=True)
class ReportCommand:
    """Write the report of results: HTML, Word and PDF, in English or Chinese."""

    folders: tyro.conf.Positional[Annotated[tuple[Path, ...], tyro.conf.arg(metavar="FOLDERS")]]
    """Folders that `suri compare` or `suri study` wrote; several make one report."""
    language: Literal["en", "zh"] = "en"
    """Of the report."""
    formats: str = "html,docx,pdf"
    """What to write, with commas between."""
    output_dir: str = ""
    """Where to write it ("": into the first folder)."""


def run_compare(argv: list[str]) -> None:
    """Parse and run `suri compare RUN`."""
    asked = parse(Comparison, argv, "suri compare", positional=True)
    do = compare_plan if asked.run.suffix == ".toml" else compare
    _finish(do(asked, _speaker()))


def run_study(argv: list[str]) -> None:
    """Parse and run `suri study PLAN.toml`."""
    asked = parse(StudyCommand, argv, "suri study")
    folder = Path(asked.output_dir or asked.plan.stem)
    plan, console = read_plan(asked.plan), Console(highlight=False)
    with _executor(asked, console) as on:
        report = run_plan(plan, folder, _speaker(console), on=on, only_check=asked.check)
    if not asked.check:
        _finish(report)


def run_report(argv: list[str]) -> None:
    """Parse and run `suri report FOLDER`."""
    asked = parse(ReportCommand, argv, "suri report")
    if not asked.folders:
        raise UsageError("suri report needs a folder of results", do="suri report FOLDER")
    into = Path(asked.output_dir) if asked.output_dir else None
    formats = [name.strip() for name in asked.formats.split(",") if name.strip()]
    written = write_report(*asked.folders, language=asked.language, formats=formats, into=into)
    _finish(*written, folder=asked.folders[0])


@contextmanager
def _executor(asked: StudyCommand, console: Console) -> Iterator[Executor]:
    """Where the trials run; on a terminal those of a cluster are shown in one table."""
    if asked.cpus < 0 or (asked.cpus and not asked.on):
        raise UsageError(f"--cpus {asked.cpus} is no share of a node", do="it goes with --on ray")
    if not asked.on:
        yield HERE
        return
    from suri.study.cluster import ray_executor

    with (
        Live(console=console, auto_refresh=False, transient=True) as live,
        ray_executor(asked.on, asked.cpus, lambda rows: _show(live, rows)) as on,
    ):
        yield on


def _show(live: Live, rows: Sequence[Row]) -> None:
    """All trials that are not done yet, those that wait last."""
    table = Table(box=None, pad_edge=False)
    for column in ("trial", "where", "step", "attempts"):
        table.add_column(column, justify="left" if column in ("trial", "where") else "right")
    for row in sorted(rows, key=lambda row: not row.where):
        table.add_row(
            escape(row.name), escape(row.where) or "[dim]waits[/]", f"{row.step}/{row.steps}",
            str(row.attempts),
        )  # fmt: skip
    if live.console.is_terminal:
        live.update(table, refresh=True)


def _speaker(console: Console | None = None) -> Say:
    """A function that prints what is being done, and the seconds since the start."""
    started = time.perf_counter()
    console = console or Console(highlight=False)

    def say(text: str) -> None:
        seconds = f"{time.perf_counter() - started:6.0f} s"
        console.print(f"[dim]{seconds}[/]  {escape(text)}", soft_wrap=True)

    return say


def _finish(*reports: Path, folder: Path | None = None) -> None:
    """Print the results of the report's folder as a table, then the report's paths."""
    console = Console(highlight=False)
    folder = folder or reports[0].parent
    is_comparison = (folder / COMPARE).is_file()
    with well_formed(folder):
        console.print(
            _ways_table(read_object(folder / COMPARE))
            if is_comparison
            else _groups_table(read_object(folder / STUDY))
        )
    for report in reports:
        console.print(f"report: [bold]{escape(str(report))}[/]", soft_wrap=True)


def _ways_table(summary: dict[str, Any]) -> Table:
    table = Table(title=counted(summary["rows"], HELD_OUT), title_justify="left", box=None)
    table.add_column("", no_wrap=True)
    for column in ("Exact, %", "Loss", "Tokens/s", "MB", "= adapter"):
        table.add_column(column, justify="right", no_wrap=True)
    for way in summary["ways"].values():
        same, quality, speed = way["agreement"], way["quality"], way["speed"]
        table.add_row(
            way_label(way),
            *(
                MEASURES[name].text(quality[name]["value"]) if name in quality else "–"
                for name in ("exact_match", "loss")
            ),
            *(
                SPEEDS[name].text(speed[name]["median"])
                for name in ("tokens_per_second", "peak_memory_bytes")
            ),
            f"{same['identical']}/{same['rows']}" if same else "–",
        )
    return table


def _groups_table(summary: dict[str, Any]) -> Table:
    table = Table(title=counted(summary["held_out_rows"], HELD_OUT), title_justify="left", box=None)
    columns = ("Rows", "Method", "Step, s", "Faster", "Peak, MB", "Base loss", "Loss", "Exact, %")
    for column in columns:
        table.add_column(column, justify="left" if column == "Method" else "right")
    speed_ups = {
        (found["ours"]["rows"], method_label(found["ours"])): found["speed_up"]
        for found in summary["methods"]
    }
    for group in summary["groups"]:
        speed_up = speed_ups.get((group["rows"], method_label(group)))
        exact = group["exact_match"]
        table.add_row(
            f"{group['rows']:,}",
            method_label(group),
            number(group["seconds_per_step"]["median"], 2),
            f"{number(speed_up['value'], 2)}×" if speed_up else "",
            SPEEDS["peak_memory_bytes"].text(group["peak_memory_bytes"]["median"]),
            number(group["base_loss"], 3),
            number(group["loss"]["value"], 3),
            MEASURES["exact_match"].text(exact["value"]) if exact else "–",
        )
    failed = sum(trial["status"] == "failed" for trial in summary["trials"])
    failures = f"{counted(failed, 'trial|trials')} failed; the report says why"
    table.caption = failures if failed else None
    return table
