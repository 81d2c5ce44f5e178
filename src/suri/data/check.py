"""Checking a set of rows from end to end: problems, oddities, lengths, and a mended copy."""

from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from suri.data.clean import cleaned
from suri.data.findings import KINDS, Findings
from suri.data.lengths import LengthMeter, Lengths
from suri.data.prompt import Prompt
from suri.data.records import Record, stream_records, write_records
from suri.data.split import drawn, held_out_count, survey_of
from suri.data.survey import Survey
from suri.data.tokenizer import Tokenizer
from suri.files import replacing


@dataclass(frozen=True)
class Report:
    """What was found: usable rows; with a mended copy, its rows and the number of changes."""

    source: str
    usable: int
    findings: Findings
    lengths: Lengths | None = None
    fixed: int | None = None
    changes: int = 0

    def as_json(self) -> dict[str, Any]:
        """As plain values: all counts by kind, the first problems and oddities, the lengths."""
        return {
            "source": self.source,
            "rows": self.findings.rows,
            "usable": self.usable,
            "fatal": self.findings.fatal,
            "warned": self.findings.warned,
            "counts": dict(self.findings.counts),
            "problems": [each.as_json() for each in self.findings.first(fatal=True)],
            "oddities": [each.as_json() for each in self.findings.first(fatal=False)],
            "lengths": self.lengths.as_json() if self.lengths else None,
            "fixed_rows": self.fixed,
            "changes": self.changes,
        }


def check_rows(
    source: str,
    *,
    columns: str = "",
    tokenizer: Tokenizer | None = None,
    prompt: Prompt | None = None,
    held_out: str | tuple[float, int] = (0, 0),
    fix: Path | None = None,
) -> Report:
    """Read all rows once, within bounded memory.

    With a tokenizer and a prompt lengths are measured too. `held_out` is what training would hold
    out: the path of a file, or val_set_size and seed. `fix` is where to write the mended rows; the
    changes are listed in a file of that name with .changes.txt.
    """
    survey = Survey()
    meter = LengthMeter(tokenizer, prompt) if tokenizer and prompt else None
    with ExitStack() as stack:
        changes = None
        if fix:
            place = stack.enter_context(replacing(fix.with_name(f"{fix.name}.changes.txt")))
            changes = _Changes(stack.enter_context(place.open("w", encoding="utf-8")))
        rows = stream_records(source, survey.findings, columns=columns)
        kept = _kept(rows, survey, changes)
        passing = meter.through(kept) if meter else kept
        if fix and changes:
            write_records(fix, passing)
            changes.fatal(survey.findings)
        else:
            deque(passing, maxlen=0)
    _note_overlap(survey, held_out, columns)
    return Report(
        source,
        survey.rows,
        survey.findings,
        meter.lengths() if meter else None,
        survey.rows - changes.left_out if changes else None,
        changes.count if changes else 0,
    )


class _Changes:
    """The list of what is changed, one line each."""

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.count, self.left_out = stream, 0, 0

    def add(self, place: str, changes: list[str]) -> None:
        for change in changes:
            self.stream.write(f"{place}: {change}\n")
        self.count += len(changes)

    def fatal(self, findings: Findings) -> None:
        for each in findings.kept:
            if KINDS[each.kind].fatal:
                self.add(each.place or "file", [f"left out: {each}"])


def _kept(
    rows: Iterator[tuple[str, Record]], survey: Survey, changes: _Changes | None
) -> Iterator[Record]:
    """The records that go on, mended where changes are wanted."""
    for place, record in rows:
        is_new = survey.add(place, record)
        if changes is None:
            yield record
            continue
        mended, what = cleaned(record, is_new=is_new)
        changes.add(place, what)
        changes.left_out += mended is None
        if mended is not None:
            yield mended


def _note_overlap(survey: Survey, held_out: str | tuple[float, int], columns: str) -> None:
    if isinstance(held_out, str):
        survey.note_overlap_with(survey_of(held_out, columns))
    elif survey.rows:
        size, seed = held_out
        count = min(held_out_count(size, survey.rows), survey.rows - 1)
        survey.note_overlap({int(i) for i in drawn(survey.rows, count, seed)})
