"""Write the report of one or more folders that `compare` or `study` filled, in three formats."""

from collections.abc import Callable, Sequence
from pathlib import Path

from suri.errors import UsageError
from suri.files import write_text
from suri.reading import read_json_lines, read_object, well_formed
from suri.study.blocks import Document, Field, Section
from suri.study.compare_sections import compare_findings, compare_part
from suri.study.figures import for_paper
from suri.study.language import speaking, tr
from suri.study.packages import package
from suri.study.render_html import write_html
from suri.study.sections import reflections
from suri.study.statements import Statement
from suri.study.study_sections import study_findings, study_part

COMPARE, ANSWERS, TRAINING = "compare.json", "answers.jsonl", "training.jsonl"
STUDY = "summary.json"
FORMATS = ("html", "docx", "pdf")


def write_report(
    *folders: Path,
    language: str = "en",
    formats: Sequence[str] = ("html",),
    into: Path | None = None,
) -> list[Path]:
    """Write report.html, report.docx, report.pdf and figures/ into the first folder, or `into`.

    Several folders make one report, each a task of its own. A Chinese report's files end in
    -zh. Raises UsageError for a folder that holds neither a comparison nor a study, for an unknown
    language or format, a missing package, or a missing Chinese font.
    """
    unknown = [name for name in formats if name not in FORMATS]
    if unknown or not formats:
        raise UsageError(
            f"--formats {','.join(formats)}: no such format", do=f"choose from {','.join(FORMATS)}"
        )
    place = into or folders[0]
    with speaking(language):
        document = build(folders, language)
        suffix = "" if language == "en" else f"-{language}"
        for figure in document.figures():
            write_text(place / f"figures{suffix}" / f"{figure.name}.svg", for_paper(figure.svg))
        written = [place / f"report{suffix}.{name}" for name in formats]
        for name, path in zip(formats, written, strict=True):
            _writer(name)(document, path)
    return written


def _writer(name: str) -> Callable[[Document, Path], None]:
    """What writes a format; only its own packages are loaded."""
    if name == "docx":
        package("docx", "Word reports need", "python-docx")
        from suri.study.render_docx import write_docx

        return write_docx
    if name == "pdf":
        from suri.study.render_pdf import write_pdf

        return write_pdf
    return write_html


def build(folders: Sequence[Path], language: str) -> Document:
    """The whole report as a tree, in the language that is spoken."""
    found = [_part(folder) for folder in folders]
    parts = [part for part, _ in found]
    claims = [one for _, statements in found for one in statements if one.is_claim]
    title = parts[0].title if len(parts) == 1 else tr("Fine-tuning with LoRA: report")
    author = [Field(tr(name)) for name in ("Name", "Student number", "Date")]
    return Document(title, language, author, [*parts, reflections(claims)])


def _part(folder: Path) -> tuple[Section, list[Statement]]:
    """One task, and the sentences that a summary rests on."""
    if (folder / COMPARE).is_file():
        summary = read_object(folder / COMPARE)
        entries, training = (read_json_lines(folder / name) for name in (ANSWERS, TRAINING))
        with well_formed(folder / COMPARE):
            return compare_part(folder, summary, entries, training), compare_findings(summary)
    if (folder / STUDY).is_file():
        summary = read_object(folder / STUDY)
        with well_formed(folder / STUDY):
            return study_part(folder, summary), study_findings(summary)
    raise UsageError(
        f"{folder} holds no results to report on",
        do="give the folder that `suri compare` or `suri study` wrote",
    )
