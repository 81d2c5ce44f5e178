"""A report as a PDF file, set by typst."""

import json
import shutil
import tempfile
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from suri.files import write_bytes
from suri.study.blocks import Document
from suri.study.figures import for_paper
from suri.study.language import TEMPLATES, tr
from suri.study.pictures import chinese_font, typst

SAID = (
    "Contents", "Figure", "Table", "expected", "right", "wrong", "empty", "line",
    "carried by an interval", "observed, or not decided",
)  # fmt: skip


def write_pdf(document: Document, path: Path) -> None:
    """Write the file; raises UsageError where typst or, in Chinese, a font is missing.

    The tree goes to the template as JSON, so that no text of a model is ever typst's code.
    """
    font = chinese_font() if document.language == "zh" else ""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copyfile(TEMPLATES / "report.typ", folder / "report.typ")
        tree = _plain(document, folder)
        tree |= {"said": {word: tr(word) for word in SAID}, "font": font}
        (folder / "report.json").write_text(json.dumps(tree), encoding="utf-8")
        write_bytes(path, typst().compile(folder / "report.typ"))


def _plain(value: Any, folder: Path) -> Any:
    """Blocks as dictionaries that name their kind; drawings and pictures as files of the folder."""
    if is_dataclass(value):
        found = {item.name: _plain(getattr(value, item.name), folder) for item in fields(value)}
        if found.get("svg"):
            file = f"{found['name']}.svg"
            (folder / file).write_text(for_paper(found["svg"]), encoding="utf-8")
            found["svg"] = file
        return found | {"kind": type(value).__name__}
    if isinstance(value, Path):
        shutil.copyfile(value, folder / value.name)
        return value.name
    if isinstance(value, list | tuple):
        return [_plain(part, folder) for part in value]
    return value
