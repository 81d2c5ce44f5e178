"""`suri data`: check rows, look at what is learned of them, make the bundled ones."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from suri.cli.flags import parse
from suri.data.findings import KINDS, Findings
from suri.data.records import stream_records, write_records
from suri.errors import DataError, UsageError
from suri.recipe import Overlong, Recipe
from suri.wording import counted

VERBS = {
    "check": "problems, oddities and lengths of a file of rows",
    "preview": "which tokens of a row are learned",
    "make": "write rows whose answers can be checked",
}


@dataclass(frozen=True, kw_only=True)
class Source:
    """Rows, and what makes tokens of them; what is not said here is as in training."""

    file: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="FILE")]]
    """Rows: JSON, JSONL, CSV, Parquet, a folder or a hub id."""
    columns: str = Recipe.columns
    """Columns by other names, as instruction=question,output=answer."""
    base_model: str = Recipe.base_model
    """Model whose tokenizer is used."""
    prompt_template_name: str = Recipe.prompt_template_name
    """The prompt that wraps the rows."""


@dataclass(frozen=True, kw_only=True)
class Check(Source):
    """Name every problem of a file of rows; exit code 3 where training would refuse it."""

    base_model: str = Recipe.base_model
    """Model whose tokenizer measures lengths; `none` measures none."""
    val_set_size: float = Recipe.val_set_size
    """Rows that training would hold out, a number or a share: are they trained on too?"""
    val_set_path: str = Recipe.val_set_path
    """File of the rows that training would hold out instead."""
    seed: int = Recipe.seed
    """Seed with which training would draw them."""
    fix: str = ""
    """Write a mended copy to this file, and the list of changes beside it (.changes.txt)."""
    json: bool = False
    """Print everything as JSON."""


@dataclass(frozen=True, kw_only=True)
class Preview(Source):
    """Show the tokens of some rows, and in colour those that are learned."""

    row: int = 1
    """The first row to show."""
    rows: int = 3
    """Number of rows."""
    cutoff_len: int = Recipe.cutoff_len
    """Most tokens of one row."""
    overlong: Overlong = Recipe.overlong
    """What is done with longer rows."""
    train_on_inputs: bool = Recipe.train_on_inputs
    """Learn the prompt's tokens too."""
    html: str = ""
    """Write a page to this file."""


@dataclass(frozen=True, kw_only=True)
class Make:
    """Write rows in Alpaca format whose answers can be checked; no model, no download."""

    out: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="OUT")]]
    """File to write: a JSON list, or JSON lines if the name ends in .jsonl."""
    rows: int = 200
    """Number of rows, up to 1,000,000."""
    seed: int = Recipe.seed
    """The same seed gives the same rows."""
    held_out: bool = False
    """Rows for evaluation, which share neither words nor wordings with the others."""
    language: Literal["en", "zh", "both"] = "en"
    """Of instructions and answers."""


def run(args: list[str]) -> None:
    """Carry out `suri data check|preview|make ...`; `args` is what follows `suri data`."""
    verb, *rest = args or ["--help"]
    if verb in ("-h", "--help"):
        lines = "\n".join(f"  {name:<8} {what}" for name, what in VERBS.items())
        print(f"usage: suri data VERB ...\n\n{lines}\n\n`suri data VERB --help` tells its flags.")
        return
    if verb not in VERBS:
        raise UsageError(f"suri data cannot {verb}", do=f"suri data {' | '.join(VERBS)}")
    verbs: dict[str, tuple[type[Any], Callable[[Any], None]]] = {
        "check": (Check, check), "preview": (Preview, preview), "make": (Make, make)
    }  # fmt: skip
    flags, carry_out = verbs[verb]
    carry_out(parse(flags, rest, f"suri data {verb}"))


def check(settings: Check) -> None:
    """Print what is found in the rows; ends with exit code 3 where a problem is fatal."""
    from suri.data.check import check_rows
    from suri.data.prompt import find_prompt

    if settings.fix and Path(settings.fix).exists():
        raise UsageError(f"{settings.fix} exists already", do="choose another name for --fix")
    tokenizer = prompt = None
    if settings.base_model != "none":
        tokenizer = _tokenizer(settings.base_model)
        prompt = find_prompt(settings.prompt_template_name, tokenizer)
    report = check_rows(
        settings.file,
        columns=settings.columns,
        tokenizer=tokenizer,
        prompt=prompt,
        held_out=settings.val_set_path or (settings.val_set_size, settings.seed),
        fix=Path(settings.fix) if settings.fix else None,
    )
    if settings.json:
        print(json.dumps(report.as_json(), ensure_ascii=False, indent=1))
    else:
        _print_report(report, settings)
    if report.findings.fatal:
        sys.exit(DataError.exit_code)


def _console() -> Console:
    # A program that reads the output gets whole lines.
    return Console(highlight=False, soft_wrap=not sys.stdout.isatty())


def _print_report(report: Any, settings: Check) -> None:
    console = _console()
    findings: Findings = report.findings
    source, fix = escape(settings.file), escape(settings.fix)
    rows = counted(f"{findings.rows:,}", "row|rows")
    console.print(f"[bold]{source}[/]: {rows}, {report.usable:,} can be used")
    for fatal, count, one, more, style in (
        (True, findings.fatal, "problem", "problems", "red"),
        (False, findings.warned, "oddity", "oddities", "yellow"),
    ):
        if not count:
            console.print(f"[green]no {more}[/]")
            continue
        said = f"[{style}]{counted(f'{count:,}', f'{one}|{more}')}[/]"
        console.print(said + ", which training refuses" * fatal)
        shown = findings.first(fatal=fatal)
        for finding in shown:
            console.print(Text(f"  {finding}"))
        if count > len(shown):
            console.print(f"  and {count - len(shown):,} more")
        _print_remedies(console, findings, fatal)
    if report.lengths is not None:
        _print_lengths(console, report.lengths.as_json())
    if report.fixed is not None:
        console.print(
            f"[bold]{fix}[/]: {counted(f'{report.fixed:,}', 'row|rows')}; "
            f"{counted(f'{report.changes:,}', 'change|changes')} listed in {fix}.changes.txt"
        )
    elif report.usable and (findings.warned or findings.fatal):
        console.print(f"mend what can be mended: suri data check {source} --fix OUT.json")


def _print_remedies(console: Console, findings: Findings, fatal: bool) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column, justify in (("count", "right"), ("what", "left"), ("what to do", "left")):
        table.add_column(column, justify=justify, style="dim" if column != "what" else "")  # type: ignore[arg-type]
    for kind, count in findings.counts.most_common():
        if KINDS[kind].fatal == fatal:
            table.add_row(f"{count:,}", Text(KINDS[kind].says), Text(KINDS[kind].do))
    console.print(table)


def _print_lengths(console: Console, lengths: dict[str, Any]) -> None:
    console.print(
        f"\n[bold]lengths[/]: {lengths['tokens']:,} tokens, {lengths['learned_tokens']:,} of them "
        f"in responses; median {lengths['median']:.0f}, longest {lengths['longest']:,}"
    )
    most = max(count for _, _, count in lengths["histogram"])
    for start, end, count in lengths["histogram"]:
        bar = "█" * round(40 * count / most) or ("▏" if count else "")
        console.print(f"  {start:>5} to {end - 1:<5} {count:>8,}  [cyan]{bar}[/]")
    table = Table(box=None, padding=(0, 2, 0, 0))
    names = ("cutoff_len", "too long", "a shorter input\nis enough", "answer cut,\nend not learned",
             "nothing left\nto learn", "tokens per\nepoch")  # fmt: skip
    for name in names:
        table.add_column(name, justify="right")
    for cost in lengths["cutoffs"]:
        table.add_row(*(f"{number:,}" for number in cost.values()))
    console.print(table)
    console.print(
        f"--cutoff_len {lengths['cutoff_that_keeps_99_percent']} leaves at least 99 % of the rows "
        "whole"
    )


def preview(settings: Preview) -> None:
    """Show rows in the terminal, or write a page."""
    from suri.data.encode import Rules, encode_records
    from suri.data.preview import pieces_of, write_page
    from suri.data.prompt import find_prompt

    if settings.row < 1 or settings.rows < 1:
        raise UsageError("--row and --rows count from 1")
    tokenizer = _tokenizer(settings.base_model)
    prompt = find_prompt(settings.prompt_template_name, tokenizer)
    rules = Rules(settings.cutoff_len, settings.train_on_inputs, settings.overlong)
    findings = Findings()
    records = stream_records(settings.file, findings, columns=settings.columns)
    first = settings.row - 1
    wanted = [record for _, record in islice(records, first, first + settings.rows)]
    if not wanted:
        findings.raise_if_fatal(settings.file)
        raise UsageError(
            f"{settings.file} has no row {settings.row}",
            do=f"choose --row from 1 to {findings.rows}",
        )
    encoded = encode_records(wanted, tokenizer, prompt, rules)
    rows = [(each.row + 1 + first, pieces_of(each, tokenizer)) for each in encoded.examples]
    if settings.html:
        write_page(Path(settings.html), f"What is learned of {Path(settings.file).name}", rows)
        print(f"{settings.html}: {counted(len(rows), 'row|rows')}")
    else:
        _print_pieces(rows)
    for name, what in (("trimmed_input", "input"), ("trimmed_response", "end of the response")):
        if encoded.counts[name]:
            print(f"rows here that lose part of their {what} to cutoff_len: {encoded.counts[name]}")
    for row in encoded.left_out:
        print(f"row {row + 1 + first} is left out: no token of its response is within cutoff_len")


def _print_pieces(rows: list[tuple[int, Any]]) -> None:
    from suri.data.preview import learned_part

    console = _console()
    for number, pieces in rows:
        console.print(f"[bold]row {number}[/]: {learned_part(pieces)}")
        text = Text()
        for place, piece in enumerate(pieces):
            style = ("black on green3", "black on green4") if piece.learned else ("dim", "")
            # What is coloured must be seen without colours too.
            shown = piece.text.replace("\n", "⏎\n")
            text.append(shown, "bold magenta" if piece.special else style[place % 2])
        console.print(text)
        console.print()
    console.print("[black on green3]green[/] is learned, the rest is only read; ⏎ is a line break")


def _tokenizer(base_model: str) -> Any:
    from suri.model.tokenizer import read_tokenizer
    from suri.model.weights import find_base

    return read_tokenizer(find_base(base_model))


def make(settings: Make) -> None:
    """Write the rows that were asked for; a file that exists is left as it is."""
    from suri.data.skills import LICENCE, MOST_ROWS, draw_rows

    if not 1 <= settings.rows <= MOST_ROWS:
        raise UsageError(f"--rows {settings.rows} is not from 1 to {MOST_ROWS:,}")
    if settings.out.exists():
        raise UsageError(
            f"{settings.out} exists already", do="choose another name, or remove it first"
        )
    skills: set[str] = set()

    def seen() -> Any:
        for record in draw_rows(
            settings.rows, settings.seed, held_out=settings.held_out, language=settings.language
        ):
            skills.add(record.skill)
            yield record

    write_records(settings.out, seen())
    rows = counted(settings.rows, "row|rows")
    print(f"{settings.out}: {rows} of {counted(len(skills), 'skill|skills')}, licence {LICENCE}")
