"""How byte-level tokenizers cut text into words, by the names that llama.cpp has for the ways."""

from typing import Any

from tokenizers import Regex
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence, Split

_LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPLITS = {
    "llama-bpe": rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|{_LETTERS}|\p{{N}}{{1,3}}|{_REST}",
    "qwen2": rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|{_LETTERS}|\p{{N}}|{_REST}",
}
"""The patterns with which Llama 3 and Qwen cut text (their tokenizer.json)."""


def pre_tokenizer(split: str) -> Any:
    """The tokenizers library's part that cuts in this way; None for a name that is not known."""
    if split in SPLITS:
        first = Split(Regex(SPLITS[split]), behavior="isolated")
        return Sequence([first, ByteLevel(add_prefix_space=False, use_regex=False)])
    words = ByteLevel(add_prefix_space=False, use_regex=True)
    return {"gpt-2": words, "smollm": Sequence([Digits(individual_digits=True), words])}.get(split)


def split_of(tokenizer: dict[str, Any]) -> str:
    """The name of the way in which this tokenizer.json cuts text; "" for one that has none."""
    match steps_of(tokenizer):
        case [{"type": "ByteLevel", "use_regex": True}]:
            return "gpt-2"
        case [
            {"type": "Digits", "individual_digits": True},
            {"type": "ByteLevel", "use_regex": True},
        ]:
            return "smollm"
        case [
            {"type": "Split", "behavior": "Isolated", "invert": False, "pattern": {"Regex": text}},
            {"type": "ByteLevel", "use_regex": False},
        ]:
            return next((name for name, split in SPLITS.items() if split == text), "")
    return ""


def steps_of(tokenizer: dict[str, Any]) -> list[dict[str, Any]]:
    """The steps in which this tokenizer.json cuts text."""
    outer = tokenizer.get("pre_tokenizer") or {}
    steps: list[dict[str, Any]] = outer.get("pretokenizers", [outer])
    return steps
