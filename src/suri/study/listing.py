"""The functions that a report shows: taken by name from the source as it is installed."""

import ast
import importlib.util
import textwrap
from pathlib import Path
from typing import Any

from suri.study.blocks import Code
from suri.study.language import names_in, tr


def listing(kind: str) -> list[Code]:
    """The functions of one kind of report with their lines, as texts.toml names them.

    Raises LookupError where one is not there any more.
    """
    return [_code(name) for name in names_in(f"code_{kind}")]


def _code(name: str) -> Code:
    """One function, as module:name; the name of a method has a dot."""
    module, _, path = name.partition(":")
    found = importlib.util.find_spec(module)
    if found is None or found.origin is None:
        raise LookupError(name)
    text = Path(found.origin).read_text(encoding="utf-8")
    node: Any = ast.parse(text)
    for part in path.split("."):
        node = _child(node, part)
    source = textwrap.dedent(ast.get_source_segment(text, node, padded=True) or "")
    place = "/".join([*module.split(".")[:-1], Path(found.origin).name])
    return Code(path, place, node.lineno, source, tr(name))


def _child(node: ast.AST, name: str) -> ast.AST:
    for child in ast.iter_child_nodes(node):
        if getattr(child, "name", None) == name:
            return child
    raise LookupError(name)
