"""Packing: several examples become one stream of tokens without padding."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from suri.data.examples import NOT_LEARNED, Example

Ints = NDArray[np.int64]
Lengths = Sequence[int] | NDArray[np.int32]
GROUPED_BATCHES = 50


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

    @property
    def shared_prefix(self) -> int:
        """Tokens that every document starts with; each keeps at least one of its own."""
        shortest = min(self.lengths) - 1
        starts = np.cumsum((0, *self.lengths[:-1]))
        columns = self.ids[starts[:, None] + np.arange(shortest)]
        differs = (columns != columns[:1]).any(axis=0)
        return int(differs.argmax()) if differs.any() else shortest


def epoch_order(
    seed: int, epoch: int, lengths: Lengths, *, batch_size: int, group_by_length: bool = False
) -> Ints:
    """The order of examples in one epoch: int64 [count], the same for the same arguments.

    With `group_by_length` the examples of 50 batches at a time are sorted by length, so that those
    of one batch are about equally long; the batches stay in random order.
    """
    random = np.random.default_rng([seed, epoch])
    order = random.permutation(len(lengths))
    if not group_by_length:
        return order
    tokens = np.asarray(lengths)
    batches: list[Ints] = []
    for start in range(0, len(order), GROUPED_BATCHES * batch_size):
        some = order[start : start + GROUPED_BATCHES * batch_size]
        some = some[np.argsort(-tokens[some], kind="stable")]
        parts = [some[i : i + batch_size] for i in range(0, len(some), batch_size)]
        batches += [parts[i] for i in random.permutation(len(parts))]
    # A batch that is not full must be the last one, or all after it would be shifted.
    batches.sort(key=lambda batch: len(batch) < batch_size)
    return np.concatenate(batches) if batches else order


def rank_share(examples: Sequence[int], rank: int, ranks: int) -> list[int]:
    """Which of a step's examples a rank of several takes: each is taken by exactly one."""
    return list(examples[rank::ranks])


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
