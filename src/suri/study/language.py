"""The language of a report: texts stand in the code in English, and in Chinese in one file."""

import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any

from suri.errors import UsageError

LANGUAGES = ("en", "zh")
TEMPLATES = Path(__file__).with_name("templates")
_language: ContextVar[str] = ContextVar("language", default="en")


@contextmanager
def speaking(language: str) -> Iterator[None]:
    """Let `tr` speak this language; raises UsageError for one that it does not know."""
    if language not in LANGUAGES:
        raise UsageError(
            f"--language {language}: no such language", do=f"choose from {', '.join(LANGUAGES)}"
        )
    token = _language.set(language)
    try:
        yield
    finally:
        _language.reset(token)


def tr(text: str, **values: Any) -> str:
    """The text in the language spoken, its {names} filled in; values are put in as they are."""
    if _language.get() == "zh":
        text = chinese().get(text, text)
    return text.format(**values) if values else text


@cache
def chinese() -> dict[str, str]:
    """The Chinese of every text that a report can hold, by its English."""
    tables = tomllib.loads((TEMPLATES / "chinese.toml").read_text(encoding="utf-8"))
    return {english: text for table in tables.values() for english, text in table.items()}
