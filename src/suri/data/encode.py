"""Encoding: records become token ids, and it is marked which tokens are to be learned."""

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from suri.data.examples import ARRAYS, Encoded, Examples
from suri.data.findings import SHOWN
from suri.data.prompt import Prompt, Special
from suri.data.records import Record
from suri.data.tokenizer import Tokenizer
from suri.errors import DataError
from suri.recipe import Overlong

ROWS_AT_ONCE = 1000


@dataclass(frozen=True)
class Rules:
    """How rows become examples; the meaning of each is in the recipe."""

    cutoff_len: int
    train_on_inputs: bool = False
    overlong: Overlong = "trim-input"


class TurnIds(NamedTuple):
    """The ids of one turn: what stands before the answer, and the answer with EOS."""

    asked: "array[int]"
    answer: "array[int]"


class Made(NamedTuple):
    """One example: ids, which of them are learned, and the row."""

    ids: "array[int]"
    learned: "array[int]"
    row: int


class Encoder:
    """Encodes rows block by block and counts what became of them.

    A row is [BOS] prompt, response, EOS, for each turn; the responses and EOS are learned. With
    `train_on_inputs` everything is, but the first token, which nothing precedes. A row in which
    no learned token is left is left out.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Prompt, rules: Rules) -> None:
        self.tokenizer, self.prompt, self.rules = tokenizer, prompt, rules
        self.counts: Counter[str] = Counter(dict.fromkeys(COUNTED, 0))
        self.left_out: list[int] = []
        self.too_long: list[int] = []

    def blocks(self, rows: Iterable[tuple[int, Record]]) -> Iterator[Examples]:
        """Yield examples, some at a time; raises DataError where --overlong refuses rows."""
        rows = iter(rows)
        while piece := list(islice(rows, ROWS_AT_ONCE)):
            turns = tokenise([record for _, record in piece], self.tokenizer, self.prompt)
            made = (self._example(*each, parts) for each, parts in zip(piece, turns, strict=True))
            yield _block([example for example in made if example is not None])
        if self.too_long:
            shown = ", ".join(str(row + 1) for row in self.too_long[:SHOWN])
            raise DataError(
                f"rows of more than {self.rules.cutoff_len} tokens: {len(self.too_long)}",
                found=f"rows {shown}" + ", ..." * (len(self.too_long) > SHOWN),
                do="raise --cutoff_len, shorten them, or choose another --overlong",
            )

    def _example(self, row: int, record: Record, turns: list[TurnIds]) -> Made | None:
        """Ids, which of them are learned, and the row; None where the row is left out."""
        self.counts["rows"] += 1
        cutoff = self.rules.cutoff_len
        if _length(turns) > cutoff:
            fitted = self._fitted(row, record, turns)
            if fitted is None:
                self._leave_out(row, "dropped")
                return None
            turns = fitted
        ids, learned = array("i"), array("b")
        for turn in turns:
            ids += turn.asked + turn.answer
            learned += array("b", [self.rules.train_on_inputs]) * len(turn.asked)
            learned += array("b", [True]) * len(turn.answer)
        if len(ids) > cutoff:
            self.counts["trimmed_response"] += 1
            ids, learned = ids[:cutoff], learned[:cutoff]
        learned[0] = False
        if not any(learned):
            self._leave_out(row, "without_learned_tokens")
            return None
        self.counts["tokens"] += len(ids)
        self.counts["learned_tokens"] += learned.count(True)
        return Made(ids, learned, row)

    def _fitted(self, row: int, record: Record, turns: list[TurnIds]) -> list[TurnIds] | None:
        """The turns of a row that is too long after what --overlong says; None: leave it out."""
        if self.rules.overlong == "trim-input":
            self.counts["trimmed_input"] += bool(record.history or record.input)
            return self._with_shorter_input(record)
        if self.rules.overlong == "trim-response":
            return turns
        if self.rules.overlong == "error":
            self.too_long.append(row)
        return None

    def _with_shorter_input(self, record: Record) -> list[TurnIds]:
        """The turns of a record without its earliest turns, then with as much input as fits."""

        def turns_of(record: Record) -> list[TurnIds]:
            return tokenise([record], self.tokenizer, self.prompt)[0]

        def fits(turns: list[TurnIds]) -> bool:
            return _length(turns) <= self.rules.cutoff_len

        turns = turns_of(record)
        while record.history and not fits(turns):
            record = replace(record, history=record.history[1:])
            turns = turns_of(record)
        if fits(turns):
            return turns
        shortest = best = turns_of(replace(record, input=""))
        low, high = 0, len(record.input)
        while fits(shortest) and low < high - 1:
            middle = (low + high) // 2
            turns = turns_of(replace(record, input=record.input[:middle]))
            if fits(turns):
                low, best = middle, turns
            else:
                high = middle
        return best

    def _leave_out(self, row: int, why: str) -> None:
        self.counts[why] += 1
        if len(self.left_out) < SHOWN:
            self.left_out.append(row)


COUNTED = (
    "rows", "trimmed_input", "trimmed_response", "dropped", "without_learned_tokens", "tokens",
    "learned_tokens",
)  # fmt: skip


def encode_records(
    records: Iterable[Record], tokenizer: Tokenizer, prompt: Prompt, rules: Rules
) -> Encoded:
    """Encode records that fit in memory, numbered from 0."""
    encoder = Encoder(tokenizer, prompt, rules)
    blocks = [_block([]), *encoder.blocks(enumerate(records))]
    arrays = (np.concatenate([getattr(block, name) for block in blocks]) for name in ARRAYS)
    return Encoded(Examples(*arrays), dict(encoder.counts), encoder.left_out)


def encode_prompt(record: Record, tokenizer: Tokenizer, prompt: Prompt) -> NDArray[np.int32]:
    """The ids that stand before the response in training: int32 [n], BOS and history included."""
    *turns, last = tokenise([record], tokenizer, prompt)[0]
    before = [part for turn in turns for part in turn]
    return np.concatenate([*before, last.asked]).astype(np.int32)


def tokenise(
    records: Sequence[Record], tokenizer: Tokenizer, prompt: Prompt
) -> list[list[TurnIds]]:
    """The turns of each record as ids.

    Prompt and response are tokenised as one text. Where that would join characters of both in one
    token (a response that starts with a blank line, say) each is tokenised by itself instead: the
    prompt's ids are therefore the same in training and in use, whatever the response.
    """
    conversations = [prompt.turns(record) for record in records]
    texts: list[str] = []
    for turn in (turn for turns in conversations for turn in turns):
        texts += [piece for piece in turn.asked if isinstance(piece, str)]
        last = turn.asked[-1] if turn.asked else ""
        texts.append((last if isinstance(last, str) else "") + turn.answer)
    encoded = iter(tokenizer.encode_many(texts))
    bos = [] if tokenizer.bos_id is None or not prompt.adds_bos else [tokenizer.bos_id]
    made = []
    for turns in conversations:
        ids: list[TurnIds] = []
        for turn in turns:
            asked, tail = array("i", [] if ids else bos), array("i")
            for piece in turn.asked:
                if isinstance(piece, Special):
                    asked.append(tokenizer.special_tokens[piece.token])
                tail = array("i") if isinstance(piece, Special) else next(encoded)
                asked += tail
            whole = next(encoded)
            answer = whole[len(tail) :]
            if whole[: len(tail)] != tail:
                answer = array("i", tokenizer.encode(turn.answer))
            answer.append(tokenizer.eos_id)
            ids.append(TurnIds(asked, answer))
        made.append(ids)
    return made


def _length(turns: list[TurnIds]) -> int:
    return sum(len(turn.asked) + len(turn.answer) for turn in turns)


def _block(examples: list[Made]) -> Examples:
    return Examples(
        np.frombuffer(b"".join(each.ids.tobytes() for each in examples), dtype=np.int32),
        np.frombuffer(b"".join(each.learned.tobytes() for each in examples), dtype=np.bool_),
        np.array([len(each.ids) for each in examples], dtype=np.int32),
        np.array([each.row for each in examples], dtype=np.int64),
    )
