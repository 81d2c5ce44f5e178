"""`suri data`: write the bundled rows to a file."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from suri.cli.flags import parse
from suri.data.records import write_records
from suri.data.skills import LICENCE, SKILLS, make_rows
from suri.errors import UsageError


@dataclass(frozen=True)
class Make:
    """Write rows in Alpaca format whose answers can be checked; no model, no download."""

    out: tyro.conf.Positional[Path]
    """File to write: a JSON list, or JSON lines if the name ends in .jsonl."""
    rows: int = 200
    """Number of rows."""
    seed: int = 42
    """The same seed gives the same rows."""
    held_out: bool = False
    """Rows for evaluation, which share neither words nor wordings with the others."""


def run(args: list[str]) -> None:
    """Carry out `suri data make OUT`; `args` is what follows `suri data`."""
    verb, *rest = args or ["do nothing"]
    if verb in ("-h", "--help"):
        verb, rest = "make", ["--help"]
    if verb != "make":
        raise UsageError(f"suri data cannot {verb}", do="suri data make OUT --rows 200")
    make(parse(Make, rest, "suri data make"))


def make(settings: Make) -> None:
    """Write the rows that were asked for; a file that exists is left as it is."""
    if settings.rows < 1:
        raise UsageError(f"--rows {settings.rows} must be at least 1")
    if settings.out.exists():
        raise UsageError(
            f"{settings.out} exists already", do="choose another name, or remove it first"
        )
    records = make_rows(settings.rows, settings.seed, held_out=settings.held_out)
    write_records(settings.out, records)
    print(f"{settings.out}: {len(records)} rows of {len(SKILLS)} skills, licence {LICENCE}")
