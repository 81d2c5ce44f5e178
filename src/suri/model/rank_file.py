"""Llama 3's tokenizer.model: tiktoken's text of words in base64, each with its rank.

Source of the special tokens: `llama3/tokenizer.py` in github.com/meta-llama/llama3 and
llama-models; of what is a merge: github.com/openai/tiktoken, and transformers' TikTokenConverter
for its order.
"""

import base64
import binascii
import re
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, processors

from suri.errors import Corrupt
from suri.model.word_splits import pre_tokenizer
from suri.reading import read_object

LINE = re.compile(rb"[A-Za-z0-9+/]+=* \d+\r?\n?")
SPECIAL_COUNT = 256
BEGIN, END = "<|begin_of_text|>", "<|end_of_text|>"
RESERVED = "<|reserved_special_token_{}|>"
HEADER = ("<|start_header_id|>", "<|end_header_id|>")
LLAMA_3 = (
    BEGIN, END, *(RESERVED.format(i) for i in range(4)), *HEADER, RESERVED.format(4), "<|eot_id|>",
)  # fmt: skip
LLAMA_31 = (
    BEGIN, END, RESERVED.format(0), RESERVED.format(1), "<|finetune_right_pad_id|>", "<|step_id|>",
    *HEADER, "<|eom_id|>", "<|eot_id|>", "<|python_tag|>",
)  # fmt: skip
"""The names of the first special tokens; reserved ones fill them up to SPECIAL_COUNT."""


def holds_ranks(file: Path) -> bool:
    """Whether a tokenizer.model is such a text; sentencepiece's files are no text."""
    with file.open("rb") as stream:
        return bool(LINE.fullmatch(stream.readline(1000)))


def read_ranks(file: Path, folder: Path) -> Tokenizer:
    """The tokenizer of that file, which begins texts with BOS, for the model in `folder`.

    Llama 3.1 gave some reserved tokens a name; params.json tells it by its rotary scaling.
    """
    ranks = _ranks(file)
    letters = _letters()
    words = {word: "".join(letters[byte] for byte in word) for word in ranks}
    vocab = {words[word]: rank for word, rank in ranks.items()}
    merges = [(words[left], words[right]) for left, right in _merges(ranks)]
    tokenizer = Tokenizer(models.BPE(vocab, merges, ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizer("llama-bpe")
    tokenizer.decoder = decoders.ByteLevel()
    named = LLAMA_31 if _is_llama_31(folder) else LLAMA_3
    tokens = [AddedToken(name, normalized=False, special=True) for name in _specials(named)]
    tokenizer.add_special_tokens(tokens)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A",
        pair=f"{BEGIN} $A {BEGIN} $B:1",
        special_tokens=[(BEGIN, len(ranks))],
    )
    return tokenizer


def _is_llama_31(folder: Path) -> bool:
    params = folder / "params.json"
    return not params.is_file() or bool(read_object(params).get("use_scaled_rope"))


def _specials(named: tuple[str, ...]) -> list[str]:
    """The named tokens, then reserved ones numbered on from the last."""
    used = sum(name.startswith("<|reserved") for name in named)
    more = range(used, used + SPECIAL_COUNT - len(named))
    return [*named, *(RESERVED.format(number) for number in more)]


def _ranks(file: Path) -> dict[bytes, int]:
    ranks: dict[bytes, int] = {}
    try:
        for line in file.read_bytes().splitlines():
            if line:
                word, rank = line.split()
                ranks[base64.b64decode(word, validate=True)] = int(rank)
    except (ValueError, binascii.Error) as problem:
        raise Corrupt(f"{file} is not a list of words with ranks", found=str(problem)) from None
    alone = {bytes([byte]) for byte in range(256)}
    if sorted(ranks.values()) != list(range(len(ranks))) or not alone <= set(ranks):
        raise Corrupt(f"{file} is not a whole list: ranks or single bytes are missing")
    return ranks


def _merges(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """Every pair of words that together are a word, in the order of what they make.

    tiktoken joins the neighbours whose word has the lowest rank, however they were made.
    """
    found = []
    for word, rank in ranks.items():
        for cut in range(1, len(word)):
            left, right = ranks.get(word[:cut]), ranks.get(word[cut:])
            if left is not None and right is not None:
                found.append((rank, left, right, word[:cut], word[cut:]))
    return [pair[3:] for pair in sorted(found)]


def _letters() -> list[str]:
    """The letter that byte-level BPE writes for each byte: itself where it can be seen.

    Source: `bytes_to_unicode` of github.com/openai/gpt-2, encoder.py.
    """
    seen = {*range(33, 127), *range(161, 173), *range(174, 256)}
    hidden = (byte for byte in range(256) if byte not in seen)
    moved = {byte: chr(256 + number) for number, byte in enumerate(hidden)}
    return [moved.get(byte, chr(byte)) for byte in range(256)]
