"""Tokenising faster: a word that was met before is not tokenised again."""

import json
import re
from array import array
from collections.abc import Iterator, Sequence
from itertools import chain, pairwise
from typing import Any

import numpy as np
from tokenizers import Tokenizer as Backend

from suri.model.word_splits import split_of, steps_of

MOST_WORDS, LONGEST_WORD = 400_000, 32
"""Words remembered at a time, about 80 MB, and the characters of the longest of them."""

WORDS_AT_ONCE = 256
PLACES = re.compile(r"(?<=\S) (?=\S)")


class KnownWords:
    """Encodes texts word by word with a memory, to the ids that the tokenizer itself gives.

    A text may be cut before a single blank between two characters that are none, where nothing
    that a tokenizer does goes across that place or depends on what stands beyond it:

    - byte-level tokenizers (GPT-2, SmolLM, Llama 3, Qwen 2) cut texts by expressions in which a
      blank before a character that is none always starts a word; no token goes beyond a word;
    - those made by sentencepiece (Llama 1 and 2) do not cut, but none of their tokens has a blank
      after another character, and a blank is put before a text.

    Other tokenizers are used as they are.
    """

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        parts = json.loads(backend.to_str())
        self.cuts = _cuts_by_expression(parts) or _cuts_nowhere(parts)
        self.puts_blank_first = (parts["normalizer"] or {}).get("type") == "Sequence"
        self.starts: dict[str, bytes] = {}
        self.words: dict[str, bytes] = {}

    def encode_many(self, texts: Sequence[str]) -> list["array[int]"]:
        """The ids of each text."""
        if not self.cuts:
            return [array("i", ids) for ids in self._encode(texts)]
        cut = [_words(text) for text in texts]
        long = self._learn(cut)
        known = self.words.__getitem__
        found = [
            array("i", self.starts[words[0]] + b"".join(map(known, words[1:]))) for words in cut
        ]
        for memory, word in long:  # it hardly ever comes again
            del memory[word]
        return found

    def _learn(self, cut: list[list[str]]) -> list[tuple[dict[str, bytes], str]]:
        """Encode the words that are new; gives those too long to be remembered, and where."""
        for memory in (self.starts, self.words):
            if len(memory) > MOST_WORDS:
                memory.clear()
        starts = [*({words[0] for words in cut} - self.starts.keys())]
        words = set(chain.from_iterable(words[1:] for words in cut))
        new = [word for word in words if word not in self.words]
        for start, ids in zip(starts, self._encode(starts), strict=True):
            self.starts[start] = array("i", ids).tobytes()
        self.words.update(zip(new, self._encode_words(new), strict=True))
        both = ((self.starts, starts), (self.words, new))
        return [
            (memory, word) for memory, some in both for word in some if len(word) > LONGEST_WORD
        ]

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        encodings = self.backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def _encode_words(self, words: list[str]) -> Iterator[bytes]:
        """The ids of each word after a blank, as bytes of C ints; many in one call are faster."""
        blank = "" if self.puts_blank_first else " "
        places = range(0, len(words), WORDS_AT_ONCE)
        pieces = [[blank + word for word in words[i : i + WORDS_AT_ONCE]] for i in places]
        encoded = self.backend.encode_batch(pieces, is_pretokenized=True, add_special_tokens=False)
        for piece, encoding in zip(pieces, encoded, strict=True):
            ids = array("i", encoding.ids)
            numbers = np.array(encoding.word_ids, dtype=np.int64)
            ends = np.searchsorted(numbers, np.arange(len(piece) + 1)).tolist()
            for start, end in pairwise(ends):
                yield ids[start:end].tobytes()


def _words(text: str) -> list[str]:
    """The text cut at every blank between two characters that are none."""
    if text.isascii() and not _has_odd_blanks(text):
        return text.split(" ")
    return PLACES.split(text)


def _has_odd_blanks(text: str) -> bool:
    """Whether an ASCII text may have a blank beside another, or at an end; quick to say no."""
    return (
        "  " in text or "\n " in text or " \n" in text
        or "\t" in text or "\r" in text or "\v" in text or "\f" in text
        or "\x1c" in text or "\x1d" in text or "\x1e" in text or "\x1f" in text
        or text.startswith(" ") or text.endswith(" ")
    )  # fmt: skip


def _cuts_by_expression(tokenizer: dict[str, Any]) -> bool:
    """Whether it is one of the byte-level tokenizers whose words are known to start with blanks."""
    normalizer = tokenizer["normalizer"]
    # NFC joins no character with a blank.
    if (normalizer is not None and normalizer["type"] != "NFC") or not _adds_plainly(tokenizer):
        return False
    puts_blank_first = any(step.get("add_prefix_space") for step in steps_of(tokenizer))
    return bool(split_of(tokenizer)) and not puts_blank_first


def _cuts_nowhere(tokenizer: dict[str, Any]) -> bool:
    """Whether it is made by sentencepiece (blanks are U+2581) and no token goes across a blank."""
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
            pass
        case None, {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first" | "always"}:
            pass
        case _:
            return False
    model = tokenizer["model"]
    known = model["type"] == "BPE" and model["byte_fallback"] and _adds_plainly(tokenizer)
    return known and not any(re.search("[^▁]▁", token) for token in model["vocab"])


def _adds_plainly(tokenizer: dict[str, Any]) -> bool:
    """Whether no added token that texts may contain has, or takes in, a blank."""
    flags = ("lstrip", "rstrip", "single_word")
    return not any(
        " " in token["content"] or any(token[flag] for flag in flags)
        for token in tokenizer["added_tokens"]
        if not token["special"]
    )
