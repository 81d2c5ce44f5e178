"""Write one self-contained report.html for a folder that `compare` or `study` filled."""

import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from suri.errors import UsageError
from suri.files import read_json, write_text
from suri.study import compare_sections, study_sections
from suri.study.figures import for_paper
from suri.study.sections import Section

COMPARE, ANSWERS, TRAINING, STUDY = (
    "compare.json",
    "answers.jsonl",
    "training.jsonl",
    "summary.json",
)
REPORT = "report.html"
TEMPLATES = Path(__file__).with_name("templates")


def write_report(folder: Path) -> Path:
    """Build report.html and figures/ from the summary in `folder`; returns the report's path.

    Raises UsageError where the folder holds neither a comparison nor a study.
    """
    if (folder / COMPARE).is_file():
        title = compare_sections.TITLE
        summary = read_json(folder / COMPARE)
        entries, training = (read_lines(folder / name) for name in (ANSWERS, TRAINING))
        sections = compare_sections.compare_sections(summary, entries, training)
    elif (folder / STUDY).is_file():
        title = study_sections.TITLE
        sections = study_sections.study_sections(read_json(folder / STUDY))
    else:
        raise UsageError(
            f"{folder} holds no results to report on",
            do="give the folder that `suri compare` or `suri study` wrote",
        )
    for figure in (figure for section in sections for figure in section.figures):
        write_text(folder / "figures" / f"{figure.name}.svg", for_paper(figure.svg))
    write_text(folder / REPORT, render(title, sections))
    return folder / REPORT


def render(title: str, sections: list[Section]) -> str:
    """The page as HTML: everything but our own drawings is escaped."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html").render(title=title, sections=sections)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a JSON-lines file that this program wrote."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
