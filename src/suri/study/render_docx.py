"""A report as a Word file: real headings, captions, tables and a table of contents."""

import io
from pathlib import Path
from typing import Any

import docx
from docx.oxml import OxmlElement
from docx.oxml.ns import qn
from docx.shared import Cm, Pt

from suri.files import write_bytes
from suri.study.blocks import (
    Block,
    Capture,
    Code,
    Document,
    Field,
    Figure,
    Points,
    Sample,
    Samples,
    Section,
    Statements,
    Table,
    Text,
    Tiles,
)
from suri.study.language import tr
from suri.study.pictures import chinese_font, png_of

WIDTH_CM = 16.0
CHINESE_FONT = "SimSun"
"""Word's own name for the font that every Chinese Word has; others put theirs in its place."""


def write_docx(document: Document, path: Path) -> None:
    """Write the file; raises UsageError where typst or, in Chinese, a font is missing."""
    if document.language == "zh":
        chinese_font()  # for the figures, which are drawn here
    writer = _Writer(docx.Document(), document.language)
    writer.document(document)
    stream = io.BytesIO()
    writer.out.save(stream)
    write_bytes(path, stream.getvalue())


class _Writer:
    """Walks the tree and adds to a Word document."""

    def __init__(self, out: Any, language: str) -> None:
        self.out = out
        self.counts = {"Figure": 0, "Table": 0}
        section = out.sections[0]
        section.left_margin = section.right_margin = Cm(2.5)
        style = out.styles["Normal"]
        style.font.name, style.font.size = "Calibri", Pt(10.5)
        if language == "zh":
            style.element.rPr.rFonts.set(qn("w:eastAsia"), CHINESE_FONT)

    def document(self, document: Document) -> None:
        self.out.core_properties.title = document.title
        self.out.core_properties.author = ""
        self.out.add_heading(document.title, level=0)
        for field in document.author:
            self.block(field)
        self.out.add_paragraph(tr("Contents"), style="TOC Heading")
        self._contents(document)
        for part in document.parts:
            self.section(part, 1)

    def _contents(self, document: Document) -> None:
        """A field that Word fills when it opens the file; until then, the headings as they are."""
        paragraph = self.out.add_paragraph()
        titles = [
            f"{'    ' * deep}{title}" for part in document.parts for deep, title in _titles(part)
        ]
        _add_field(paragraph, r'TOC \o "1-3" \h \z \u', "\n".join(titles))
        self.out.add_page_break()

    def section(self, section: Section, level: int) -> None:
        self.out.add_heading(section.title, level=min(level, 4))
        for block in section.blocks:
            self.block(block)
        for part in section.parts:
            self.section(part, level + 1)

    def block(self, block: Block) -> None:
        getattr(self, f"_{type(block).__name__.lower()}")(block)

    def _text(self, block: Text) -> None:
        self.out.add_paragraph(block.text)

    def _points(self, block: Points) -> None:
        for point in block.points:
            self.out.add_paragraph(point, style="List Bullet")

    def _statements(self, block: Statements) -> None:
        for statement in block.statements:
            mark = "●" if statement.is_claim else "○"
            self.out.add_paragraph(f"{mark} {statement.text}")

    def _tiles(self, block: Tiles) -> None:
        rows = [(tile.label, f"{tile.value}  ({tile.note})") for tile in block.tiles]
        if rows:
            self._table(Table((), rows))

    def _figure(self, block: Figure) -> None:
        self._picture(io.BytesIO(png_of(block.svg)), block.caption)

    def _table(self, block: Table) -> None:
        if block.caption:
            self._caption("Table", block.caption)
        columns = len(block.head or block.rows[0]) if block.head or block.rows else 0
        if not columns:
            return
        table = self.out.add_table(rows=0, cols=columns, style="Light Grid Accent 1")
        for row in ([block.head] if block.head else []) + list(block.rows):
            cells = table.add_row().cells
            for cell, text in zip(cells, row, strict=True):
                cell.text = text
                for run in (run for paragraph in cell.paragraphs for run in paragraph.runs):
                    run.font.size = Pt(8.5 if columns > 5 else 9.5)
        self.out.add_paragraph()

    def _samples(self, block: Samples) -> None:
        for sample in block.samples[: block.shown]:
            self._sample(sample)

    def _sample(self, sample: Sample) -> None:
        asked = "\n".join(part for part in (sample.instruction, sample.input) if part)
        rows = [(tr("expected"), sample.expected)]
        for verdict in sample.verdicts:
            marks = {None: "", True: f"✓ {tr('right')}  ", False: f"✗ {tr('wrong')}  "}
            rows.append((verdict.way, marks[verdict.correct] + (verdict.text or tr("empty"))))
        paragraph = self.out.add_paragraph()
        paragraph.add_run(asked).bold = True
        self._table(Table((), [(name, _printable(text)) for name, text in rows]))

    def _code(self, block: Code) -> None:
        paragraph = self.out.add_paragraph()
        paragraph.add_run(block.name).bold = True
        place = tr("line {line}", line=block.first_line)
        paragraph.add_run(f"  {block.place}, {place}")
        self.out.add_paragraph(block.explanation)
        self._monospaced(block.source)

    def _capture(self, block: Capture) -> None:
        if block.picture is not None:
            self._picture(str(block.picture), block.caption)
        elif block.is_open:
            picture = io.BytesIO(png_of(block.svg))
            self._picture(picture, f"$ {block.command} – {block.outcome}")

    def _field(self, block: Field) -> None:
        self.out.add_paragraph(f"{block.label}: {'_' * 24}" if block.lines == 1 else block.label)
        for _ in range(block.lines if block.lines > 1 else 0):
            self.out.add_paragraph("_" * 72)

    def _monospaced(self, text: str) -> None:
        """Text in a cell with a ground of its own, as it stands."""
        cell = self.out.add_table(rows=1, cols=1, style="Table Grid").rows[0].cells[0]
        run = cell.paragraphs[0].add_run(_printable(text))
        run.font.name, run.font.size = "Consolas", Pt(7.5)
        self.out.add_paragraph()

    def _picture(self, source: str | io.BytesIO, caption: str) -> None:
        self.out.add_picture(source, width=Cm(WIDTH_CM))
        self._caption("Figure", caption)

    def _caption(self, kind: str, text: str) -> None:
        self.counts[kind] += 1
        label = tr(f"{kind} {{number}}", number=self.counts[kind])
        self.out.add_paragraph(f"{label}. {text}", style="Caption")


def _titles(section: Section, deep: int = 0) -> list[tuple[int, str]]:
    inner = [one for part in section.parts for one in _titles(part, deep + 1)] if deep < 2 else []
    return [(deep, section.title), *inner]


def _printable(text: str) -> str:
    """Without the control characters that XML cannot hold."""
    return "".join(letter for letter in text if letter >= " " or letter in "\n\t")


def _add_field(paragraph: Any, instruction: str, shown: str) -> None:
    """A Word field with what it shows until Word computes it anew (ECMA-376, part 1, 17.16)."""

    def mark(kind: str) -> None:
        element = OxmlElement("w:fldChar")
        element.set(qn("w:fldCharType"), kind)
        paragraph.add_run()._r.append(element)

    mark("begin")
    text = OxmlElement("w:instrText")
    text.set(qn("xml:space"), "preserve")
    text.text = instruction
    paragraph.add_run()._r.append(text)
    mark("separate")
    paragraph.add_run(shown)
    mark("end")
