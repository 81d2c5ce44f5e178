"""The one way in which every verb reads its words: flags from the fields of a dataclass."""

from typing import Any, TypeVar, cast

import tyro

Flags = TypeVar("Flags")


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
