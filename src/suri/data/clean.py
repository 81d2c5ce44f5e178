"""Mending rows: what can be mended without guessing is, what cannot is left out; all is listed."""

import re
from dataclasses import replace

from suri.data.records import CONTROL, MERGED, NO_INPUT, Record


def cleaned(record: Record, *, is_new: bool = True) -> tuple[Record | None, list[str]]:
    """The record as it should be, or None where it should not be there, and what was changed."""
    if not is_new:
        return None, ["left out: the same as an earlier row"]
    changes: list[str] = []
    texts = {}
    for field in ("instruction", "input", "output", "system"):
        texts[field] = _cleaned_text(getattr(record, field), field, changes)
    if NO_INPUT.fullmatch(texts["input"]):
        changes.append(f"input: {texts['input']!r} is now empty")
        texts["input"] = ""
    turns = [
        tuple(_cleaned_text(text, "history", changes) for text in turn) for turn in record.history
    ]
    if not texts["output"].strip():
        return None, ["left out: an empty response"]
    if not texts["instruction"].strip():
        return None, ["left out: no instruction but control characters"]
    if any(MERGED.search(text) for text in texts.values()):
        return None, ["left out: another instruction inside the text"]
    history = tuple((question, answer) for question, answer in turns)
    return replace(record, **texts, history=history), changes


def _cleaned_text(text: str, field: str, changes: list[str]) -> str:
    lines = re.sub("\r\n?", "\n", text)
    if lines != text:
        changes.append(f"{field}: Windows line ends")
    plain = CONTROL.sub("", lines)
    if plain != lines:
        changes.append(f"{field}: {len(lines) - len(plain)} control characters")
    return plain
