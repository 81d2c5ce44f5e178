"""A tokenizer as GGUF's keys: byte-level BPE as "gpt2", sentencepiece as "llama".

Source: the vocabulary classes of llama.cpp's convert_hf_to_gguf.py.
"""

import json
import logging
from dataclasses import dataclass, field
from typing import Any

from gguf import TokenType

from suri.errors import UsageError
from suri.model.rank_file import holds_ranks
from suri.model.tokenizer import SENTENCEPIECE, Tokenizer
from suri.model.word_splits import split_of

log = logging.getLogger(__name__)

Piece = tuple[str, int, float]
"""A token, its kind, its score."""


@dataclass(frozen=True)
class Vocabulary:
    """What is written of a tokenizer: `pre` is how words are cut, "" where that has no name."""

    model: str
    pieces: list[Piece]
    pre: str = ""
    merges: list[str] = field(default_factory=list)


def vocabulary_of(tokenizer: Tokenizer, size: int) -> Vocabulary:
    """The vocabulary, cut or filled up to `size` tokens, as many as the embedding has rows.

    Raises UsageError for a tokenizer that GGUF's two kinds do not hold.
    """
    raw = json.loads(tokenizer.backend.to_str())
    file = tokenizer.source / SENTENCEPIECE
    if file.is_file() and not holds_ranks(file):
        return Vocabulary("llama", _filled(_sentencepieces(tokenizer, raw), size), "default")
    kind = raw["model"].get("type")
    if kind != "BPE" or raw["model"].get("byte_fallback") or not raw["model"]["merges"]:
        raise UsageError(
            "this tokenizer does not go into a GGUF file",
            found=f"{kind} without byte-level words or without merges",
            do=f"put the model's {SENTENCEPIECE} beside its tokenizer.json, if it has one",
        )
    pieces = {i: (token, TokenType.NORMAL, 0.0) for token, i in raw["model"]["vocab"].items()}
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in raw["model"]["merges"]]
    pre = split_of(raw)
    if not pre:
        log.warning("the GGUF file cannot say how this tokenizer cuts words: keep tokenizer.json")
    return Vocabulary("gpt2", _filled(pieces | _added(raw), size), pre, merges)


def _added(raw: dict[str, Any]) -> dict[int, Piece]:
    kinds = {True: TokenType.CONTROL, False: TokenType.USER_DEFINED}
    return {
        each["id"]: (each["content"], kinds[each["special"]], 0.0) for each in raw["added_tokens"]
    }


def _filled(pieces: dict[int, Piece], size: int) -> list[Piece]:
    return [pieces.get(i, (f"[PAD{i}]", TokenType.UNUSED, -1000.0)) for i in range(size)]


def _sentencepieces(tokenizer: Tokenizer, raw: dict[str, Any]) -> dict[int, Piece]:
    """Tokens with the scores that order their merges; what was added later scores lowest."""
    try:
        from sentencepiece import SentencePieceProcessor
    except ImportError:
        raise UsageError(
            f"{SENTENCEPIECE} needs the package sentencepiece to be read",
            do="pip install sentencepiece",
        ) from None
    model = SentencePieceProcessor(model_file=str(tokenizer.source / SENTENCEPIECE))

    def kind(i: int) -> int:
        kinds = {
            TokenType.UNKNOWN: model.is_unknown,
            TokenType.CONTROL: model.is_control,
            TokenType.UNUSED: model.is_unused,
            TokenType.BYTE: model.is_byte,
        }
        return int(next((kind for kind, holds in kinds.items() if holds(i)), TokenType.NORMAL))

    pieces = {
        i: (str(model.id_to_piece(i)), kind(i), float(model.get_score(i)))
        for i in range(model.vocab_size())
    }
    later = {i: (token, kind, -1000.0) for i, (token, kind, _) in _added(raw).items()}
    return {i: piece for i, piece in later.items() if i not in pieces} | pieces
