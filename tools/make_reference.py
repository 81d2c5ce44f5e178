"""Write docs/reference.md: every command's flags and every setting, read from the code."""

import ast
import inspect
import textwrap
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints
from unittest.mock import patch

import tyro

from suri.cli.data import VERBS as DATA_VERBS
from suri.cli.main import VERBS, find_verb, tidy
from suri.recipe import LINEARS, Recipe

PAGE = Path(__file__).resolve().parents[1] / "docs" / "reference.md"


@dataclass(frozen=True)
class Parsed:
    """What a verb handed to the parser: the dataclass, its start values, what the words gave."""

    kind: type
    default: Any
    value: Any
    positional: bool


class Caught(BaseException):
    """Ends a verb once its words are parsed; no Exception, so that nothing handles it."""


def parse_only(argv: list[str], *, words: bool = True) -> Parsed:
    """Parse `suri ARGV` with the parser of the command line, and run nothing.

    Without `words` the parser is not asked either. Raises SystemExit where the words do not fit.
    """
    real = tyro.cli

    def parser(kind: type, *, args: list[str], default: Any, config: Any, **kwargs: Any) -> Any:
        value = None
        if words:
            value = real(kind, args=args, default=default, config=config, **kwargs)
        places = tyro.conf.PositionalRequiredArgs in config
        raise Caught(Parsed(kind, default, value, places))

    with patch("tyro.cli", parser):
        try:
            find_verb(argv[0])(tidy(argv[1:]))
        except Caught as caught:
            found: Parsed = caught.args[0]
            return found
    raise AssertionError(f"{argv[0]} parses nothing")


@dataclass(frozen=True)
class Flag:
    """One line of the page; `inherited` marks what stands with `suri train` already."""

    name: str
    default: str
    meaning: str
    inherited: bool


def flags_of(parsed: Parsed) -> Iterator[Flag]:
    """Every flag of a verb, a nested group's among them."""
    hints, says = get_type_hints(parsed.kind, include_extras=True), meanings(parsed.kind)
    shared = {item.name for item in fields(Recipe)} if issubclass(parsed.kind, Recipe) else set()
    for item in fields(parsed.kind):
        hint, default = hints[item.name], item.default
        if is_dataclass(item.default_factory):
            group: Any = item.default_factory
            yield from flags_of(Parsed(group, None, None, False))
            continue
        if default is MISSING and item.default_factory is not MISSING:
            default = item.default_factory()
        if parsed.default is not None:
            default = getattr(parsed.default, item.name)
        name = f"--{item.name}"
        if _is_positional(hint) or (parsed.positional and default is MISSING):
            name = _metavar(hint, item.name)
        meaning = _allowed(hint) + " ".join(says[item.name].split())
        yield Flag(name, _shown(default), meaning, item.name in shared and parsed.kind != Recipe)


def meanings(kind: type) -> dict[str, str]:
    """The text under each field of a dataclass and its bases."""
    found: dict[str, str] = {}
    for each in reversed(kind.__mro__[:-1]):
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(each))).body
        assert isinstance(body, ast.ClassDef)
        for field, text in zip(body.body, body.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
                assert isinstance(field.target, ast.Name)
                found[field.target.id] = ast.literal_eval(text.value)
    return found


def _parts(hint: Any) -> Iterator[Any]:
    """What a type is annotated with, and its own parts."""
    yield hint
    for part in get_args(hint) if get_origin(hint) is Annotated else ():
        yield from _parts(part)


def _is_positional(hint: Any) -> bool:
    marks = set(get_args(tyro.conf.Positional[int])[1:])
    return any(part in marks for part in _parts(hint) if part.__hash__)


def _metavar(hint: Any, name: str) -> str:
    names = [getattr(part, "metavar", None) for part in _parts(hint)]
    return next((found.strip("[]") for found in names if found), name.upper())


def _allowed(hint: Any) -> str:
    literals = [part for part in _parts(hint) if get_origin(part) is Literal]
    return " \\| ".join(f"`{word}`" for word in get_args(literals[0])) + ". " if literals else ""


def _shown(default: Any) -> str:
    if default is MISSING:
        return "required"
    if default == LINEARS:
        return "all seven"
    if default is None or default == "" or default == ():
        return ""
    words = " ".join(map(str, default)) if isinstance(default, tuple) else str(default)
    return f"`{words}`"


def section(command: list[str], title: str, says: str) -> str:
    """One verb: what it does, and its flags as a table."""
    parsed = parse_only(command, words=False)
    lines = [f"## {title}", "", f"{says[0].upper()}{says[1:]}.", ""]
    rows = list(flags_of(parsed))
    if any(row.inherited for row in rows):
        lines += ["Every setting of [`suri train`](#suri-train), and:", ""]
    if own := [row for row in rows if not row.inherited]:
        lines += ["| | default | |", "|---|---|---|"]
        lines += [f"| `{row.name}` | {row.default} | {row.meaning} |" for row in own]
    return "\n".join(lines) + "\n"


def commands() -> Iterator[tuple[list[str], str, str]]:
    """Every verb that people type, with its words and what it does."""
    for verb, (_, says) in VERBS.items():
        if verb == "data":
            for name, what in DATA_VERBS.items():
                yield ["data", name], f"suri data {name}", what
        else:
            yield [verb], f"suri {verb}", says


HEAD = """# Commands and settings

Made from the code by `python tools/make_reference.py`; a test fails where the two differ.
`suri VERB --help` says the same. Flags are taken in every common spelling: `--flag-name` or
`--flag_name`, `--flag=x` or `--flag x`, a bare `--flag` for True.

A recipe is a TOML file with the settings of `suri train` under their names without the dashes,
flat or under `[recipe]` (`suri train --recipe FILE`, `suri fit --recipe FILE`; flags override it).
[What the settings are for](training.md). Exit codes: 0 ok, 1 bug, 2 usage, 3 data,
4 does not fit, 5 diverged, 6 corrupt, 75 stopped and resumable.

`finetune.py` takes the settings of `suri train` with alpaca-lora's defaults, and `generate.py`
the flags of `suri chat`: [the handout](handout.md).
"""


def page() -> str:
    """The whole page."""
    return "\n".join([HEAD, *(section(*each) for each in commands())])


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"written: {PAGE}")
