"""The language of a report: every text by its name, in English and Chinese, from one file."""

import re
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any

from suri.errors import UsageError
from suri.wording import filled

LANGUAGES = ("en", "zh")
ELSEWHERE = "elsewhere"
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


def tr(name: str, /, **values: Any) -> str:
    """The text in the language spoken, its {names} filled in; values are put in as they are.

    What has no text, such as a number, is the same in every language.
    """
    known = texts().get(name)
    text = known[LANGUAGES.index(_language.get())] if known else _from_elsewhere(name)
    return filled(text, values) if values else text


def listed(parts: Iterable[str]) -> str:
    """Several of a kind in a row, with the language's own mark between them."""
    return ("、" if _language.get() == "zh" else ", ").join(parts)


def joined(parts: Sequence[str]) -> str:
    """Several of a kind in a row, as a sentence names them: `base, adapter and merged models`."""
    before, last = parts[:-1], parts[-1]
    return f"{listed(before)}{tr(' and ')}{last}" if before else last


def qualified(name: str, *details: str) -> str:
    """A name and what tells it from its like: `LoRA, lora_r 4`, in Chinese in brackets."""
    if not details or _language.get() == "en":
        return ", ".join((name, *details))
    return f"{name}（{'，'.join(details)}）"


def _from_elsewhere(text: str) -> str:
    """A text that another part of Suri wrote down, in the language spoken where it is known."""
    if _language.get() == "en":
        return text
    tried = ((re.fullmatch(each, text), said) for each, said in _tables()[ELSEWHERE].items())
    return next((match.expand(said) for match, said in tried if match), text)


def names_in(table: str) -> list[str]:
    """The names of one table's texts, in their order."""
    return list(_tables()[table])


@cache
def texts() -> dict[str, tuple[str, str]]:
    """English and Chinese of every text that a report can hold, by its name."""
    tables = (table for name, table in _tables().items() if name != ELSEWHERE)
    found = [item for table in tables for item in table.items()]
    return {name: (name, text) if isinstance(text, str) else (*text,) for name, text in found}


@cache
def _tables() -> dict[str, dict[str, Any]]:
    return tomllib.loads((TEMPLATES / "texts.toml").read_text(encoding="utf-8"))
