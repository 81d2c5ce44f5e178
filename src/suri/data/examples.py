"""Encoded rows: token ids, which of them are learned, and what became of every row."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
from numpy.typing import NDArray

NOT_LEARNED = -100
ARRAYS = {"ids": "<i4", "learned": "?", "lengths": "<i4", "rows": "<i8"}
"""What `Examples` are made of, and the type of each on disk."""


@dataclass(frozen=True, eq=False)
class Example:
    """One row of n tokens: ids int32 [n], labels int32 [n] (the id itself, or -100: not learned).

    `row` is the index of its record in the source.
    """

    ids: NDArray[np.int32]
    labels: NDArray[np.int32]
    row: int


@dataclass(frozen=True, eq=False)
class Examples(Sequence[Example]):
    """Examples laid end to end: ids int32 [T], learned bool [T], lengths int32 [n], rows int64 [n].

    The arrays may be mapped files: an example is read when it is asked for.
    """

    ids: NDArray[np.int32]
    learned: NDArray[np.bool_]
    lengths: NDArray[np.int32]
    rows: NDArray[np.int64]

    def __post_init__(self) -> None:
        ends = np.cumsum(self.lengths, dtype=np.int64)
        object.__setattr__(self, "starts", np.concatenate([[0], ends]))

    def __len__(self) -> int:
        return len(self.lengths)

    @overload
    def __getitem__(self, place: int) -> Example: ...
    @overload
    def __getitem__(self, place: slice) -> list[Example]: ...
    def __getitem__(self, place: int | slice) -> Example | list[Example]:
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        number = range(len(self))[place]  # raises IndexError
        part = slice(self.starts[number], self.starts[number + 1])  # type: ignore[attr-defined]
        ids = np.array(self.ids[part])
        labels = np.where(self.learned[part], ids, np.int32(NOT_LEARNED))
        return Example(ids, labels, int(self.rows[number]))


@dataclass(frozen=True)
class Encoded:
    """The rows that can be learned from, in order, and what became of all of them.

    counts: rows (read), trimmed_input, trimmed_response (their end and EOS lost), dropped (too
    long), without_learned_tokens (left out), tokens and learned_tokens (of the examples).
    left_out: the first rows that are not among the examples, by index.
    """

    examples: Examples
    counts: dict[str, int]
    left_out: list[int]
