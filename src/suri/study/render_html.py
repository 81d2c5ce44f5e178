"""A report as one HTML file that asks for nothing from outside."""

import base64
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from suri.files import write_text
from suri.study.blocks import Block, Document
from suri.study.language import TEMPLATES, tr


def write_html(document: Document, path: Path) -> None:
    """Write the page; everything but our own drawings is escaped."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {"tr": tr, "kind": _kind, "picture": _picture}
    template = environment.get_template("report.html")
    write_text(path, template.render(document=document))


def _kind(block: Block) -> str:
    return type(block).__name__


def _picture(path: Path) -> str:
    """A picture as an address that holds all of it."""
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
