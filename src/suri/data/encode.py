"""Encoding: records become token ids, with a label on every token that is to be learned."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from suri.data.prompt import Prompt
from suri.data.records import Record
from suri.data.tokenizer import Tokenizer

NOT_LEARNED = -100
ROWS_AT_ONCE = 1000


@dataclass(frozen=True, eq=False)
class Example:
    """One row of n tokens: ids int32 [n], labels int32 [n] (the id itself, or -100: not learned).

    `row` is the index of its record.
    """

    ids: NDArray[np.int32]
    labels: NDArray[np.int32]
    row: int


@dataclass(frozen=True)
class Encoded:
    """The rows that can be learned from, in order, and what became of all of them.

    counts: rows (read), cut (at the cutoff), without_learned_tokens (left out), tokens and
    learned_tokens (of the examples).
    """

    examples: list[Example]
    counts: dict[str, int]


def encode_records(
    records: Sequence[Record],
    tokenizer: Tokenizer,
    prompt: Prompt,
    *,
    cutoff_len: int,
    train_on_inputs: bool,
) -> Encoded:
    """Encode [BOS] prompt, response, EOS; the response and EOS are learned.

    With `train_on_inputs` the prompt is learned too, all but the first token, which nothing
    precedes. A row of more than `cutoff_len` tokens loses its end, EOS first, so that a cut answer
    does not teach to stop there; a row in which no learned token is left is left out. Both are
    counted.
    """
    examples, cut = [], 0
    for row, (asked, answer) in enumerate(_tokenise(records, tokenizer, prompt)):
        whole = [*asked, *answer, tokenizer.eos_id]
        ids = np.array(whole[:cutoff_len], dtype=np.int32)
        labels = ids.copy()
        labels[: 1 if train_on_inputs else len(asked)] = NOT_LEARNED
        cut += len(whole) > cutoff_len
        if np.any(labels != NOT_LEARNED):
            examples.append(Example(ids, labels, row))
    counts = {
        "rows": len(records),
        "cut": cut,
        "without_learned_tokens": len(records) - len(examples),
        "tokens": sum(len(example.ids) for example in examples),
        "learned_tokens": sum(int((e.labels != NOT_LEARNED).sum()) for e in examples),
    }
    return Encoded(examples, counts)


def encode_prompt(record: Record, tokenizer: Tokenizer, prompt: Prompt) -> NDArray[np.int32]:
    """The ids that stand before the response in training: int32 [n], BOS included."""
    ids = tokenizer.encode(prompt.render(record))
    return np.array([*_bos(tokenizer), *ids], dtype=np.int32)


def _tokenise(
    records: Sequence[Record], tokenizer: Tokenizer, prompt: Prompt
) -> Iterator[tuple[list[int], list[int]]]:
    """Yield the ids of each record's prompt, BOS included, and of its response.

    Prompt and response are tokenised as one text. Where that would join characters of both in one
    token (a response that starts with a blank line, say) each is tokenised by itself instead: the
    prompt's ids are therefore the same in training and in use, whatever the response.
    """
    bos = _bos(tokenizer)
    for start in range(0, len(records), ROWS_AT_ONCE):
        piece = records[start : start + ROWS_AT_ONCE]
        prompts = [prompt.render(record) for record in piece]
        texts = [text + record.output for text, record in zip(prompts, piece, strict=True)]
        pairs = zip(tokenizer.encode_many(prompts), tokenizer.encode_many(texts), strict=True)
        for record, (asked, whole) in zip(piece, pairs, strict=True):
            answer = whole[len(asked) :]
            if whole[: len(asked)] != asked:
                answer = tokenizer.encode(record.output)
            yield [*bos, *asked], answer


def _bos(tokenizer: Tokenizer) -> list[int]:
    return [] if tokenizer.bos_id is None else [tokenizer.bos_id]
