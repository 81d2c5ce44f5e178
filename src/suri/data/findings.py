"""What is wrong or odd in rows: every kind with its remedy, counted, the first ones kept."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from suri.errors import DataError
from suri.wording import counted

SHOWN = 20
"""Problems of one file that are named; all are counted."""


@dataclass(frozen=True)
class Kind:
    """One kind of finding: whether rows can be trained on all the same, and what to do."""

    fatal: bool
    says: str
    do: str


ROW = 'one record is {"instruction": "...", "input": "...", "output": "..."}'

KINDS = {
    "not-utf8": Kind(True, "not UTF-8 text", "save the file as UTF-8"),
    "packed": Kind(True, "an archive, not rows", "unpack it first"),
    "not-json": Kind(True, "not JSON", "mend that place, or write the file with a JSON library"),
    "not-csv": Kind(True, "not CSV", "quote fields that hold commas, quotes or line breaks"),
    "not-parquet": Kind(True, "not readable as Parquet", "write the file again"),
    "too-deep": Kind(True, "nested too deeply to be a row", ROW),
    "too-long": Kind(True, "a record of more than 10 MB", "split or remove it"),
    "not-rows": Kind(True, "neither a JSON list nor JSON lines", f"put records in a list; {ROW}"),
    "no-rows": Kind(True, "no rows in the file", f"write at least one; {ROW}"),
    "not-an-object": Kind(True, "not an object", ROW),
    "columns": Kind(True, "another number of fields than the header", "mend that line"),
    "missing": Kind(True, "missing", "add it, or name the column that has it with --columns"),
    "no-response": Kind(True, "no response", "write the answer, or remove the row"),
    "wrong-type": Kind(True, "not text", "write it as text in quotes"),
    "not-text": Kind(True, "half of a surrogate pair, which is no text", "remove that character"),
    "empty": Kind(True, "empty", "write what is asked, or remove the row"),
    "turns": Kind(True, "not a conversation", "turns go user, assistant, user, assistant, ..."),
    "empty-output": Kind(
        False, "an empty response", "it teaches to answer nothing; remove the row"
    ),
    "noinput": Kind(False, "a placeholder for no input", "leave the input empty"),
    "control": Kind(False, "control characters", "remove them"),
    "duplicate": Kind(False, "the same as an earlier row", "remove it"),
    "asked-again": Kind(False, "asked in an earlier row, answered otherwise", "keep one answer"),
    "held-out-trains": Kind(False, "held out, and also trained on", "remove one of them"),
    "merged": Kind(False, "another instruction inside the text", "split it into rows of their own"),
    "null-input": Kind(False, "null instead of an empty input", "leave the input empty"),
    "number": Kind(False, "a number, taken as text", "write it in quotes"),
    "twice": Kind(False, "a key that stands twice; the last one counts", "remove one of them"),
    "unanswered": Kind(False, "a last question without an answer, left out", "remove it"),
    "bom": Kind(False, "a byte order mark at the start", "save as UTF-8 without it"),
    "crlf": Kind(False, "Windows line ends", "save with \\n as the line end"),
}


@dataclass(frozen=True)
class Finding:
    """One place where something is wrong: `line 3` or `record 3`, the field, what stands there."""

    kind: str
    place: str
    field: str = ""
    found: str = ""

    def __str__(self) -> str:
        subject = ", ".join(part for part in (self.place, self.field) if part)
        found = f" ({self.found})" if self.found else ""
        return f"{subject or 'file'}: {KINDS[self.kind].says}{found}"

    def as_json(self) -> dict[str, Any]:
        """As plain values."""
        kind = KINDS[self.kind]
        return {**vars(self), "fatal": kind.fatal, "says": kind.says, "do": kind.do}


@dataclass
class Findings:
    """What was found in one file. All are counted by kind, the first 20 of each kind are kept.

    rows: the number of rows that were read, whatever is in them.
    """

    rows: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    kept: list[Finding] = field(default_factory=list)

    def add(self, kind: str, place: str = "", field: str = "", found: str = "") -> None:
        """Count one; `found` is shortened to be shown."""
        self.counts[kind] += 1
        if self.counts[kind] <= SHOWN:
            self.kept.append(Finding(kind, place, field, shortened(found)))

    @property
    def fatal(self) -> int:
        """Problems that rows cannot be trained with."""
        return sum(count for kind, count in self.counts.items() if KINDS[kind].fatal)

    @property
    def warned(self) -> int:
        """Oddities that rows can be trained with."""
        return self.counts.total() - self.fatal

    def first(self, *, fatal: bool) -> list[Finding]:
        """The first 20 of all kinds, in the order they were met."""
        return [each for each in self.kept if KINDS[each.kind].fatal == fatal][:SHOWN]

    def raise_if_fatal(self, source: str) -> None:
        """Raise DataError that names the first 20 fatal problems and counts all."""
        if not self.fatal:
            return
        shown = [str(each) for each in self.first(fatal=True)]
        if self.fatal > len(shown):
            shown.append(f"and {self.fatal - len(shown)} more")
        kinds = [kind for kind in KINDS if self.counts[kind] and KINDS[kind].fatal]
        problems = counted(self.fatal, "problem|problems")
        raise DataError(
            f"{source}: {problems} in {counted(self.rows, 'row|rows')}",
            found="\n         ".join(shown),
            do="; ".join(dict.fromkeys(KINDS[kind].do for kind in kinds)),
        )


def shortened(text: str, width: int = 60) -> str:
    """One printable line of at most `width` characters."""
    line = text if text.isprintable() else ascii(text)[1:-1]
    return line if len(line) <= width else line[: width - 1] + "…"
