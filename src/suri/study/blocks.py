"""What a report is made of: one tree of blocks, that every renderer walks in the same order."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from suri.study.statements import Statement


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Points:
    """Paragraphs of equal rank."""

    points: Sequence[str]


@dataclass(frozen=True)
class Statements:
    """Sentences that rest on figures; claims are told from observations."""

    statements: Sequence[Statement]


@dataclass(frozen=True)
class Tile:
    """One number to see first."""

    label: str
    value: str
    note: str


@dataclass(frozen=True)
class Tiles:
    """Numbers to see first, side by side."""

    tiles: Sequence[Tile]


@dataclass(frozen=True)
class Figure:
    """A drawing and what it shows; `name` is its file's."""

    name: str
    svg: str
    caption: str


@dataclass(frozen=True)
class Table:
    """Cells as text; the first column names the row. Without a head it holds names and values."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""


@dataclass(frozen=True)
class Verdict:
    """An answer and, where it can be checked, whether it is right."""

    way: str
    text: str
    correct: bool | None


@dataclass(frozen=True)
class Sample:
    """One held-out row and what each way answered."""

    instruction: str
    input: str
    expected: str
    verdicts: Sequence[Verdict]


@dataclass(frozen=True)
class Samples:
    """Rows and their answers; on a page those after `shown` are folded away, on paper left out."""

    samples: Sequence[Sample]
    shown: int


@dataclass(frozen=True)
class Code:
    """Lines of this program as they are installed, and what they do."""

    name: str
    place: str
    first_line: int
    source: str
    explanation: str


@dataclass(frozen=True)
class Capture:
    """What a process printed while it ran, drawn as its terminal, or a picture of a page.

    Those that are not open are folded away on a page, as text, and left out on paper.
    """

    command: str
    outcome: str
    text: str = ""
    name: str = ""
    svg: str = ""
    picture: Path | None = None
    caption: str = ""
    is_open: bool = True


@dataclass(frozen=True)
class Field:
    """Something that only the author can fill in."""

    label: str
    lines: int = 1


Block = (
    Text | Points | Statements | Tiles | Figure | Table | Samples | Code | Capture | Field
)  # fmt: skip


@dataclass(frozen=True)
class Section:
    """A heading, what stands below it, and the sections inside it."""

    title: str
    blocks: Sequence[Block] = ()
    parts: Sequence["Section"] = ()

    def everything(self) -> list[Block]:
        """Its blocks and those of the sections inside it, in order."""
        return [*self.blocks, *(block for part in self.parts for block in part.everything())]


@dataclass(frozen=True)
class Document:
    """A whole report; `language` is en or zh."""

    title: str
    language: str
    author: Sequence[Field]
    parts: Sequence[Section]

    def figures(self) -> list[Figure]:
        """All figures, in order."""
        return [
            block for part in self.parts for block in part.everything() if isinstance(block, Figure)
        ]
