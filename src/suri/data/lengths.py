"""How long rows are in tokens, and what each cutoff would cost."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from suri.data.encode import ROWS_AT_ONCE, tokenise
from suri.data.prompt import Prompt
from suri.data.records import Record
from suri.data.tokenizer import Tokenizer

CUTOFFS = (64, 128, 256, 512, 1024, 2048, 4096, 8192)
KEPT_SHARE = 0.99


@dataclass(frozen=True, eq=False)
class Lengths:
    """Tokens of each row, int32 [rows]: all; all without input and earlier turns, which may be
    shortened; those of the last answer with EOS.
    """

    total: NDArray[np.int32]
    shortest: NDArray[np.int32]
    answer: NDArray[np.int32]

    def cost(self, cutoff: int) -> dict[str, int]:
        """What `--overlong trim-input` does at a cutoff, in rows, and the tokens of an epoch.

        The tokens of a shortened row are counted as `cutoff`; they can be a few less.
        """
        too_long = self.total > cutoff
        answer_cut = self.shortest > cutoff
        nothing_left = self.shortest - self.answer >= cutoff
        return {
            "cutoff_len": cutoff,
            "too_long": int(too_long.sum()),
            "shorter_input_is_enough": int((too_long & ~answer_cut).sum()),
            "answer_cut_and_eos_lost": int((answer_cut & ~nothing_left).sum()),
            "nothing_left_to_learn": int(nothing_left.sum()),
            "tokens_per_epoch": int(np.minimum(self.total, cutoff)[~nothing_left].sum()),
        }

    def keeping(self, share: float = KEPT_SHARE) -> int:
        """The cutoff that leaves this share of the rows whole, rounded up to a multiple of 8."""
        longest = float(np.quantile(self.total, share, method="inverted_cdf"))
        return int(-(-longest // 8) * 8)

    def histogram(self) -> list[tuple[int, int, int]]:
        """(from, below, rows) of about a dozen steps that grow with the length."""
        edges = [0, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 4096, 8192]
        longest = int(self.total.max())
        inner = [edge for edge in edges if edge <= longest]
        counts, _ = np.histogram(self.total, [*inner, longest + 1])
        return list(zip(inner, [*inner[1:], longest + 1], map(int, counts), strict=True))

    def as_json(self) -> dict[str, Any]:
        """All of it as plain values."""
        longest = int(self.total.max())
        cutoffs = [c for c in CUTOFFS if c < longest] + [c for c in CUTOFFS if c >= longest][:1]
        return {
            "rows": len(self.total),
            "tokens": int(self.total.sum()),
            "learned_tokens": int(self.answer.sum()),
            "median": float(np.median(self.total)),
            "longest": longest,
            "cutoff_that_keeps_99_percent": self.keeping(),
            "cutoffs": [self.cost(cutoff) for cutoff in cutoffs],
            "histogram": self.histogram(),
        }


class LengthMeter:
    """Measures rows as they pass, some at a time."""

    def __init__(self, tokenizer: Tokenizer, prompt: Prompt) -> None:
        self.tokenizer, self.prompt = tokenizer, prompt
        self.parts: list[NDArray[np.int32]] = []

    def through(self, records: Iterable[Record]) -> Iterator[Record]:
        """Yield the records again."""
        records = iter(records)
        while piece := list(islice(records, ROWS_AT_ONCE)):
            self.parts.append(self._measured(piece))
            yield from piece

    def lengths(self) -> Lengths | None:
        """Of all that passed; None if nothing did."""
        return Lengths(*np.concatenate(self.parts, axis=1)) if self.parts else None

    def _measured(self, records: list[Record]) -> NDArray[np.int32]:
        turns = tokenise(records, self.tokenizer, self.prompt)
        total = [sum(len(part) for turn in each for part in turn) for each in turns]
        longer = [i for i, record in enumerate(records) if record.input or record.history]
        without = [replace(records[i], input="", history=()) for i in longer]
        bare = tokenise(without, self.tokenizer, self.prompt)
        shortest = list(total)
        for i, (turn,) in zip(longer, bare, strict=True):
            shortest[i] = len(turn.asked) + len(turn.answer)
        return np.array([total, shortest, [len(each[-1].answer) for each in turns]], dtype=np.int32)
