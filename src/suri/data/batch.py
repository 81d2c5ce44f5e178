"""Packing: several examples become one stream of tokens without padding."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from suri.data.examples import NOT_LEARNED, Example

Ints = NDArray[np.int64]
Lengths = Sequence[int] | NDArray[np.int32]
GROUPED_BATCHES = 50
LEAST_PREFIX = 4
"""Shorter prefixes are not worth sharing."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Documents laid end to end, T tokens in all, after the tokens that all of them start with.

    ids, positions, targets: int64 [T]. Positions start at 0 in each document; targets[i] is the
    token to predict from token i, -100 where there is none to learn. prefix: tokens shared by all
    documents, at the start of the stream and in none of them again; they are never learned.
    lengths: tokens of each document beside it, rows: its record's index.
    """

    ids: Ints
    positions: Ints
    targets: Ints
    lengths: tuple[int, ...]
    rows: tuple[int, ...]
    prefix: int = 0

    @property
    def learned_tokens(self) -> int:
        """Tokens that the loss counts."""
        return int(np.count_nonzero(self.targets != NOT_LEARNED))

    @property
    def tokens(self) -> int:
        """Tokens of the documents, each with its own prefix."""
        return sum(self.lengths) + self.prefix * len(self.lengths)


def learned_in(examples: Iterable[Example]) -> int:
    """Tokens of examples that the loss counts; nothing stands before a row's first one."""
    return sum(int(np.count_nonzero(each.labels[1:] != NOT_LEARNED)) for each in examples)


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


def rank_share(lengths: Lengths, rank: int, ranks: int) -> list[int]:
    """Places of the examples that a rank of several takes, in their order: each by exactly one.

    The longest first, to the rank that has the fewest tokens: shares are about equal.
    """
    tokens, mine = [0] * ranks, []
    for place in sorted(range(len(lengths)), key=lambda place: (-lengths[place], place)):
        least = tokens.index(min(tokens))
        tokens[least] += int(lengths[place])
        if least == rank:
            mine.append(place)
    return sorted(mine)


def pack(examples: Sequence[Example], prefix: int = 0) -> Batch:
    """Lay examples end to end; no target crosses from one document into the next.

    Their first `prefix` tokens, which must be the same in all and not learned, are laid once.
    """
    end = np.array([NOT_LEARNED])
    first = examples[0].ids[:prefix]
    return Batch(
        ids=_join([first, *(example.ids[prefix:] for example in examples)]),
        positions=_join(
            [np.arange(prefix), *(np.arange(prefix, len(example.ids)) for example in examples)]
        ),
        targets=_join(
            [
                np.full(prefix, NOT_LEARNED),
                *(part for example in examples for part in (example.labels[prefix + 1 :], end)),
            ]
        ),
        lengths=tuple(len(example.ids) - prefix for example in examples),
        rows=tuple(example.row for example in examples),
        prefix=prefix,
    )


def micro_batches(
    examples: Sequence[Example], *, max_rows: int, token_budget: int, share_prefix: bool = False
) -> list[Batch]:
    """Cut examples, in their order and each exactly once, into batches that fit in memory.

    A batch has at most `max_rows` examples (0: any number) and `token_budget` tokens; an example
    longer than the budget is a batch of its own. With `share_prefix` the start that all prompts of
    a batch have in common is in it, and counted, once.
    """
    groups: list[list[Example]] = []
    prefixes: list[int] = []
    tokens = 0
    for example in examples:
        tokens += len(example.ids)
        common = _shareable(example) if share_prefix else 0
        group = groups[-1] if groups else []
        if group:
            joint = min(prefixes[-1], common, _common_start(group[0].ids, example.ids))
            joint = joint if joint >= LEAST_PREFIX else 0
            is_full = max_rows and len(group) == max_rows
            if not is_full and tokens - joint * len(group) <= token_budget:
                group.append(example)
                prefixes[-1] = joint
                continue
        groups.append([example])
        prefixes.append(common)
        tokens = len(example.ids)
    return [
        pack(group, prefix if len(group) > 1 else 0)
        for group, prefix in zip(groups, prefixes, strict=True)
    ]


def _shareable(example: Example) -> int:
    """Tokens at the start of an example from which nothing learned is predicted."""
    learned = np.flatnonzero(example.labels != NOT_LEARNED)
    return max(0, int(learned[0]) - 1) if len(learned) else len(example.ids) - 1


def _common_start(one: NDArray[np.int32], other: NDArray[np.int32]) -> int:
    shortest = min(len(one), len(other))
    differs = np.flatnonzero(one[:shortest] != other[:shortest])
    return int(differs[0]) if len(differs) else shortest


def _join(parts: Iterable[NDArray[np.integer]]) -> Ints:
    return np.concatenate(list(parts)).astype(np.int64)
