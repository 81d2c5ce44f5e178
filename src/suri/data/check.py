"""Checking a set of rows from end to end: problems, oddities, lengths, and a mended copy."""

import re
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO

from suri.data.findings import KINDS, Findings
from suri.data.lengths import LengthMeter, Lengths
from suri.data.prompt import Prompt
from suri.data.records import CONTROL, MERGED, NO_INPUT, Record, stream_records, write_records
from suri.data.split import drawn, survey_of
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
    else:
        val_set_size, seed = held_out
        survey.note_overlap(drawn(val_set_size, survey.rows, seed))


def cleaned(record: Record, *, is_new: bool = True) -> tuple[Record | None, list[str]]:
    """The record as it should be, or None where it should not be there, and what was changed.

    What can be mended without guessing is; what cannot is left out.
    """
    if not is_new:
        return None, ["left out: the same as an earlier row"]
    changes: list[str] = []
    texts = {}
    for field in ("instruction", "input", "output", "system"):
        texts[field] = _cleaned_text(getattr(record, field), field, changes)
    if NO_INPUT.fullmatch(texts["input"]):
        changes.append(f"input: {texts['input']!r} is now empty")
        texts["input"] = ""
    turns = [
        tuple(_cleaned_text(text, "history", changes) for text in turn) for turn in record.history
    ]
    if not texts["output"].strip():
        return None, ["left out: an empty response"]
    if not texts["instruction"].strip():
        return None, ["left out: no instruction but control characters"]
    if any(MERGED.search(text) for text in texts.values()):
        return None, ["left out: another instruction inside the text"]
    history = tuple((question, answer) for question, answer in turns)
    return replace(record, **texts, history=history), changes


def _cleaned_text(text: str, field: str, changes: list[str]) -> str:
    lines = re.sub("\r\n?", "\n", text)
    if lines != text:
        changes.append(f"{field}: Windows line ends")
    plain = CONTROL.sub("", lines)
    if plain != lines:
        changes.append(f"{field}: {len(lines) - len(plain)} control characters")
    return plain
