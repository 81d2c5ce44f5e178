"""Packing: several examples become one stream of tokens without padding."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from suri.data.encode import NOT_LEARNED, Example

Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Batch:
    """Documents laid end to end, T tokens in all.

    ids, positions, targets: int64 [T]. Positions start at 0 in each document; targets[i] is the
    token to predict from token i, -100 where there is none to learn. lengths: tokens of each
    document, rows: its record's index.
    """

    ids: Ints
    positions: Ints
    targets: Ints
    lengths: tuple[int, ...]
    rows: tuple[int, ...]

    @property
    def learned_tokens(self) -> int:
        """Tokens that the loss counts."""
        return int(np.count_nonzero(self.targets != NOT_LEARNED))


def epoch_order(seed: int, epoch: int, count: int) -> Ints:
    """The order of `count` examples in one epoch: int64 [count], the same for the same numbers."""
    return np.random.default_rng([seed, epoch]).permutation(count)


def pack(examples: Sequence[Example]) -> Batch:
    """Lay examples end to end; no target crosses from one document into the next."""
    end = np.array([NOT_LEARNED])
    return Batch(
        ids=_join(example.ids for example in examples),
        positions=_join(np.arange(len(example.ids)) for example in examples),
        targets=_join(part for example in examples for part in (example.labels[1:], end)),
        lengths=tuple(len(example.ids) for example in examples),
        rows=tuple(example.row for example in examples),
    )


def micro_batches(examples: Sequence[Example], *, max_rows: int, token_budget: int) -> list[Batch]:
    """Cut examples, in their order and each exactly once, into batches that fit in memory.

    A batch has at most `max_rows` examples (0: any number) and `token_budget` tokens; an example
    longer than the budget is a batch of its own.
    """
    groups: list[list[Example]] = []
    tokens = 0
    for example in examples:
        tokens += len(example.ids)
        is_full = groups and max_rows and len(groups[-1]) == max_rows
        if not groups or is_full or tokens > token_budget:
            groups.append([])
            tokens = len(example.ids)
        groups[-1].append(example)
    return [pack(group) for group in groups]


def _join(parts: Iterable[NDArray[np.integer]]) -> Ints:
    return np.concatenate(list(parts)).astype(np.int64)
