"""The one way in which every verb reads its words: flags from the fields of a dataclass."""

from argparse import ArgumentParser
from pathlib import Path
from typing import Any, TypeVar, cast

import tyro

from suri.recipe import Recipe, recipe_from_toml

Flags = TypeVar("Flags")
Settings = TypeVar("Settings", bound=Recipe)


def parse(
    kind: type[Flags],
    argv: list[str],
    program: str,
    *,
    default: Flags | None = None,
    positional: bool = False,
) -> Flags:
    """Fill `kind` from words as `suri.cli.main.tidy` leaves them; its docstrings become the help.

    With `positional`, fields without a default are given by their place instead of by a flag.
    A word that does not fit ends the program with a message and exit code 2.
    """
    config: tuple[Any, ...] = (tyro.conf.FlagConversionOff,)
    if positional:
        config += (tyro.conf.PositionalRequiredArgs,)
    parsed = tyro.cli(
        kind,
        args=argv,
        prog=program,
        default=default,
        config=config,
        use_underscores=True,
    )
    return cast(Flags, parsed)


def parse_recipe(
    kind: type[Settings], argv: list[str], program: str, start: Recipe | None = None
) -> Settings:
    """Fill a recipe; `--recipe FILE` goes over the values of `start`, and flags over both."""
    reader = ArgumentParser(program, add_help=False, allow_abbrev=False)
    reader.add_argument("--recipe", type=Path, metavar="FILE")
    given, words = reader.parse_known_args(argv)
    start = recipe_from_toml(given.recipe, start) if given.recipe else start or Recipe()
    return parse(kind, words, program, default=kind(**vars(start)))
