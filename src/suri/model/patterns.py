"""PEFT's `rank_pattern` and `alpha_pattern`: which module has a number of its own.

PEFT takes the first key that matches the end of a module's name as a regular expression. An
expression of somebody else's can take years to match, so only simple ones are read: letters, dots,
digits, sets, alternatives of plain words, and at most three places with a choice.
"""

import re
from collections.abc import Iterable
from typing import Any

from suri.errors import Corrupt, UsageError

WORD = r"(?:\w|\\?\.|\\d)+"
PART = rf"(?:(?:\w|-|\\?\.|\\d|\[[\w-]+\])[*+?]?|\((?:\?:)?{WORD}(?:\|{WORD})*\))"
SIMPLE = re.compile(rf"\^?{PART}+\$?(?:\|\^?{PART}+\$?)*")
CHOICE = re.compile(r"[*+]|\((?:\?:)?|\?")
LONGEST, MOST_CHOICES = 200, 3
MOST, MOST_WITH_CHOICES = 4096, 32
"""Patterns of one adapter; those that name every module of 500 layers are fewer."""


def by_module(patterns: Any, modules: Iterable[str], name: str) -> dict[str, float]:
    """The number of each module that a pattern matches; `name` is the setting, for messages.

    Raises UsageError for expressions that are not read, Corrupt for what is no table of numbers.
    """
    if not patterns:
        return {}
    if not isinstance(patterns, dict) or not all(map(_is_positive, patterns.values())):
        raise Corrupt(f"{name} is no table of numbers above 0", found=str(patterns)[:200])
    choices = sum(bool(CHOICE.search(pattern)) for pattern in patterns)
    if len(patterns) > MOST or choices > MOST_WITH_CHOICES:
        raise UsageError(
            f"{name} holds more than is read here",
            found=f"{len(patterns)} patterns, {choices} of them with a choice",
            do=f"at most {MOST}, {MOST_WITH_CHOICES} of them with a choice; name the modules",
        )
    compiled = [(_compiled(pattern, name), value) for pattern, value in patterns.items()]
    found = {}
    for module in modules:
        matching = (value for expression, value in compiled if expression.match(module))
        if (value := next(matching, None)) is not None:
            found[module] = value
    return found


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 2**31


def _compiled(pattern: str, name: str) -> re.Pattern[str]:
    simple = (
        len(pattern) <= LONGEST
        and SIMPLE.fullmatch(pattern)
        and len(CHOICE.findall(pattern)) <= MOST_CHOICES
    )
    try:
        if simple:
            return re.compile(rf"(.*\.)?({pattern})$")
    except re.error:
        pass
    raise UsageError(
        f"a pattern of {name} is not read here",
        found=pattern[:LONGEST],
        do="name the modules, or use words, dots, sets, (a|b) and at most three of * + ? ( )",
    )
