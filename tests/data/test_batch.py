"""Packed batches against a token-by-token reading of the same documents."""

import random

import numpy as np
import pytest

from suri.data.batch import epoch_order, micro_batches, pack
from suri.data.encode import Example


def document(row: int, length: int, learned: int) -> Example:
    ids = np.arange(100 * row, 100 * row + length, dtype=np.int32)
    labels = ids.copy()
    labels[: length - learned] = -100
    return Example(ids, labels, row)


def test_a_packed_stream_by_hand() -> None:
    batch = pack([document(7, 3, 1), document(2, 4, 3)])
    assert batch.ids.tolist() == [700, 701, 702, 200, 201, 202, 203]
    assert batch.positions.tolist() == [0, 1, 2, 0, 1, 2, 3]
    assert batch.targets.tolist() == [-100, 702, -100, 201, 202, 203, -100]
    assert (batch.lengths, batch.rows, batch.learned_tokens) == ((3, 4), (7, 2), 4)
    assert {a.dtype for a in (batch.ids, batch.positions, batch.targets)} == {np.dtype("int64")}


def test_no_target_leaves_its_document() -> None:
    draw = random.Random(3)
    documents = [document(i, n := draw.randint(1, 9), draw.randint(0, n)) for i in range(60)]
    batch = pack(documents)
    place = 0
    for example, length in zip(documents, batch.lengths, strict=True):
        for i in range(length):
            expected = example.labels[i + 1] if i + 1 < length else -100
            assert batch.targets[place + i] == expected
        place += length
    assert place == len(batch.ids)


@pytest.mark.parametrize("max_rows, budget", [(0, 20), (3, 20), (1, 1000), (0, 1), (4, 1000)])
def test_micro_batches_hold_every_example_once_within_both_limits(
    max_rows: int, budget: int
) -> None:
    draw = random.Random(max_rows + budget)
    documents = [document(i, draw.randint(1, 30), 1) for i in range(97)]
    batches = micro_batches(documents, max_rows=max_rows, token_budget=budget)
    assert [row for batch in batches for row in batch.rows] == list(range(97))
    for batch, following in zip(batches, [*batches[1:], None], strict=True):
        assert len(batch.ids) <= budget or len(batch.rows) == 1
        assert len(batch.rows) <= (max_rows or 97)
        if following:  # it was closed because the next example did not fit
            too_many = len(batch.rows) == max_rows
            assert too_many or len(batch.ids) + following.lengths[0] > budget


def test_no_examples_make_no_batches() -> None:
    assert micro_batches([], max_rows=2, token_budget=10) == []


def test_an_epochs_order_is_a_permutation_of_its_own() -> None:
    orders = [epoch_order(seed, epoch, 53) for seed in (0, 1) for epoch in (0, 1)]
    assert all(sorted(order.tolist()) == list(range(53)) for order in orders)
    assert len({tuple(order.tolist()) for order in orders}) == 4
    assert orders[3].dtype == np.int64
    assert epoch_order(1, 1, 53).tolist() == orders[3].tolist()
