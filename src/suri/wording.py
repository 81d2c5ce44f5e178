"""Counts, sizes and times as people read them."""

import string
from collections.abc import Mapping
from typing import Any


def counted(count: int | str, noun: str) -> str:
    """A count and the one of `row|rows` that it asks for."""
    one, many = noun.split("|")
    return f"{count} {one if str(count) == '1' else many}"


class _Filled(string.Formatter):
    def format_field(self, value: Any, spec: str) -> Any:
        return counted(value, spec) if "|" in spec else super().format_field(value, spec)


def filled(text: str, values: Mapping[str, Any]) -> str:
    """A text with its {names} filled in; {rows:row|rows} is a count with its noun.

    Raises KeyError for a name that has no value.
    """
    return _Filled().vformat(text, (), values)


def readable_bytes(count: float) -> str:
    """A number of bytes in the unit a person would choose (1 GB = 10^9 bytes)."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count:.0f} bytes"


def readable_seconds(seconds: float) -> str:
    """A duration in the units a person would choose."""
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
