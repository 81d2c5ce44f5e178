"""Tokenising faster: a word that was met before is not tokenised again."""

import json
import re
from array import array
from collections.abc import Sequence
from itertools import chain
from typing import Any

from tokenizers import Tokenizer as Backend

MOST_WORDS = 200_000
"""Words remembered at a time, about 40 MB."""

LETTERS = "A-Za-zÀ-ÖØ-öø-ÿ一-龥"
OTHERS = "£°·§©®±×÷¿¡«»–—‘’“”…•€、。，；：？！《》（）"
SAFE = re.compile(f"[\t\n\r\x20-\x7e{LETTERS}{OTHERS}]*")
"""Texts of these characters alone are cut into words here: of each it is certain whether Unicode
calls it a letter, a number or a space, whatever the version. The others go the long way."""
CLASSES = {r"\p{L}": LETTERS, r"\p{N}": "0-9", r"\s": r"\t\n\r\x20"}

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""What the step ByteLevel cuts with (openai/gpt-2, encoder.py)."""
DIGITS_GPT2 = r"\p{N}|'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+"
"""The same after a step that makes every digit a text of its own."""


BLANKS = re.compile(r" *[^ ]+(?: +\Z)?| +")


class KnownWords:
    """Encodes texts word by word with a memory, to the ids that the tokenizer itself gives.

    Byte-level tokenizers (Llama 3, Qwen 2, SmolLM, GPT-2) cut a text into words by a regular
    expression before anything else, and no token goes beyond a word. The same expression cuts
    here, and only new words reach the tokenizer. Tokenizers made by sentencepiece (Llama 1 and 2)
    do not cut, but put a blank before a text, and no token of theirs has a blank after another
    character: cutting before blanks changes nothing. Other tokenizers are used as they are.
    """

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        parts = json.loads(backend.to_str())
        self.blank_step = _blank_step(parts)
        self.cut = BLANKS if self.blank_step else _expression(parts)
        self.ids: dict[str, bytes] = {}
        added = backend.get_added_tokens_decoder().values()
        plain = [re.escape(token.content) for token in added if not token.special]
        self.added = re.compile("|".join(plain)) if plain else None

    def encode_many(self, texts: Sequence[str]) -> list["array[int]"]:
        """The ids of each text."""
        if self.cut is None:
            return [array("i", ids) for ids in self._encode(texts)]
        if len(self.ids) > MOST_WORDS:
            self.ids.clear()
        cut = [self._words(text, self.cut) for text in texts]
        long_way = [text for text, words in zip(texts, cut, strict=True) if words is None]
        words = set(chain.from_iterable(words for words in cut if words))
        new = [word for word in words if word not in self.ids]
        # Prepend puts back the blank that a word starts with; Metaspace leaves it where it is.
        plain = [word[1:] for word in new] if self.blank_step == "Prepend" else new
        found = [array("i", ids) for ids in self._encode(plain + long_way)]
        self.ids.update((word, ids.tobytes()) for word, ids in zip(new, found, strict=False))
        whole = iter(found[len(new) :])
        known = self.ids.__getitem__
        return [
            next(whole) if words is None else array("i", b"".join(map(known, words)))
            for words in cut
        ]

    def _words(self, text: str, cut: re.Pattern[str]) -> list[str] | None:
        """The words of a text, or None where they cannot be told with certainty."""
        if self.added and self.added.search(text):
            return None
        if self.blank_step:
            has_blank = not text or (self.blank_step == "Metaspace" and text[0] == " ")
            return cut.findall(text if has_blank else f" {text}")
        if not SAFE.fullmatch(text):
            return None
        words: list[str] = cut.findall(text)
        return words if "".join(words) == text else None

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        encodings = self.backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]


def _blank_step(tokenizer: dict[str, Any]) -> str:
    """The step that puts a blank (U+2581) first, where texts may be cut before blanks, or ""."""
    match tokenizer["normalizer"], tokenizer["pre_tokenizer"]:
        case (
            {
                "type": "Sequence",
                "normalizers": [
                    {"type": "Prepend", "prepend": "▁"},
                    {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
                ],
            },
            None,
        ):
            step = "Prepend"
        case None, {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first" | "always"}:
            step = "Metaspace"
        case _:
            return ""
    model = tokenizer["model"]
    known = model["type"] == "BPE" and model["byte_fallback"]
    return step if known and not any(re.search("[^▁]▁", token) for token in model["vocab"]) else ""


def _expression(tokenizer: dict[str, Any]) -> re.Pattern[str] | None:
    """What the tokenizer (as tokenizer.json has it) cuts texts with; None: cut in another way."""
    normalizer, steps = tokenizer["normalizer"], tokenizer["pre_tokenizer"] or {}
    # NFC changes none of the safe characters.
    if normalizer is not None and normalizer["type"] != "NFC":
        return None
    match steps.get("pretokenizers", [steps]):
        case [{"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}]:
            return _translated(GPT2)
        case [
            {"type": "Digits", "individual_digits": True},
            {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
        ]:
            return _translated(DIGITS_GPT2)
        case [
            {"type": "Split", "behavior": "Isolated", "invert": False, "pattern": {"Regex": text}},
            {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
        ]:
            return _translated(text)
    return None


def _translated(pattern: str) -> re.Pattern[str] | None:
    """An expression over all of Unicode, for the safe characters and Python's `re`.

    None where it has parts whose translation is not certain.
    """
    parts, in_class = [], False
    for piece in re.findall(r"\\p\{[LN]\}|\\.|.", pattern, re.DOTALL):
        part = piece
        if piece in CLASSES:
            part = CLASSES[piece] if in_class else f"[{CLASSES[piece]}]"
        elif piece == r"\S" and not in_class:
            part = f"[^{CLASSES[chr(92) + 's']}]"
        elif piece.startswith("\\") and piece not in (r"\r", r"\n"):
            return None
        in_class = piece == "[" or (in_class and piece != "]")
        parts.append(part)
    has_groups = re.search(r"\((?!\?)", "".join(parts))  # findall would give them, not the words
    return None if has_groups else re.compile("".join(parts))
