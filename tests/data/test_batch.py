"""Packed batches against a token-by-token reading of the same documents."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from suri.data.batch import epoch_order, micro_batches, pack, rank_share
from suri.data.examples import Example


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
    orders = [
        epoch_order(seed, epoch, [1] * 53, batch_size=4) for seed in (0, 1) for epoch in (0, 1)
    ]
    assert all(sorted(order.tolist()) == list(range(53)) for order in orders)
    assert len({tuple(order.tolist()) for order in orders}) == 4
    assert orders[3].dtype == np.int64
    assert epoch_order(1, 1, [1] * 53, batch_size=4).tolist() == orders[3].tolist()


LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=60)


@settings(max_examples=200, deadline=None)
@given(
    lengths=LENGTHS,
    seed=st.integers(0, 9),
    batch_size=st.integers(1, 9),
    budget=st.integers(1, 99),
    max_rows=st.integers(0, 5),
    ranks=st.integers(1, 4),
    group=st.booleans(),
)
def test_every_row_is_in_an_epoch_once_however_it_is_cut(
    lengths: list[int],
    seed: int,
    batch_size: int,
    budget: int,
    max_rows: int,
    ranks: int,
    group: bool,
) -> None:
    order = epoch_order(seed, 3, lengths, batch_size=batch_size, group_by_length=group)
    again = epoch_order(
        seed, 3, np.array(lengths, np.int32), batch_size=batch_size, group_by_length=group
    )
    assert order.tolist() == again.tolist()
    met, learned = [], 0
    for start in range(0, len(order), batch_size):
        step = order[start : start + batch_size].tolist()
        for rank in range(ranks):
            mine = [document(i, lengths[i], lengths[i] // 2) for i in rank_share(step, rank, ranks)]
            for batch in micro_batches(mine, max_rows=max_rows, token_budget=budget):
                met += batch.rows
                learned += batch.learned_tokens
    assert sorted(met) == list(range(len(lengths)))
    # A document's first token has nothing before it to be predicted from.
    assert learned == sum(min(n // 2, n - 1) for n in lengths)


def test_grouping_puts_rows_of_like_length_into_a_batch() -> None:
    draw = random.Random(1)
    lengths = [draw.randint(1, 500) for _ in range(1003)]
    spreads = {}
    for group in (False, True):
        order = epoch_order(5, 1, lengths, batch_size=10, group_by_length=group)
        batches = [[lengths[i] for i in order[at : at + 10]] for at in range(0, 1003, 10)]
        assert [len(batch) for batch in batches] == [10] * 100 + [3]
        spreads[group] = sum(max(batch) - min(batch) for batch in batches) / len(batches)
        means = [sum(batch) / len(batch) for batch in batches]
        assert means != sorted(means, reverse=True)  # long batches do not all come first
    assert spreads[True] < 40 < 300 < spreads[False]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=7), min_size=1, max_size=5))
def test_the_shared_prefix_is_the_longest_that_leaves_each_document_a_token(
    texts: list[list[int]],
) -> None:
    ids = [np.array(text, np.int32) for text in texts]
    shared = pack([Example(each, each, i) for i, each in enumerate(ids)]).shared_prefix
    assert len({tuple(text[:shared]) for text in texts}) == 1
    assert all(len(text) > shared for text in texts)
    longer = {tuple(text[: shared + 1]) for text in texts}
    assert len(longer) > 1 or min(map(len, texts)) == shared + 1
