"""Packed batches against a token-by-token reading of the same documents."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from suri.data.batch import Batch, epoch_order, micro_batches, pack, rank_share
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


@pytest.mark.slow
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
            share = [step[at] for at in rank_share([lengths[i] for i in step], rank, ranks)]
            mine = [document(i, lengths[i], lengths[i] // 2) for i in share]
            for batch in micro_batches(mine, max_rows=max_rows, token_budget=budget):
                met += batch.rows
                learned += batch.learned_tokens
    assert sorted(met) == list(range(len(lengths)))
    # A document's first token has nothing before it to be predicted from.
    assert learned == sum(min(n // 2, n - 1) for n in lengths)


def test_shares_have_about_as_many_tokens() -> None:
    draw = random.Random(4)
    lengths = [draw.randint(1, 500) for _ in range(64)]
    shares = [rank_share(lengths, rank, 4) for rank in range(4)]
    tokens = [sum(lengths[place] for place in share) for share in shares]
    assert max(tokens) - min(tokens) < 25
    assert [rank_share([7, 7], rank, 3) for rank in range(3)] == [[0], [1], []]


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


def unpacked(batch: Batch) -> list[tuple[list[int], list[int], list[int]]]:
    """ids, positions and targets of each document with its prefix, token by token."""
    documents = []
    start = batch.prefix
    for length in batch.lengths:
        places = [*range(batch.prefix), *range(start, start + length)]
        documents.append(tuple([int(x[i]) for i in places]
                               for x in (batch.ids, batch.positions, batch.targets)))  # fmt: skip
        start += length
    assert start == len(batch.ids)
    return documents  # type: ignore[return-value]


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 9), st.lists(st.integers(0, 1), max_size=7), st.integers(1, 6)),
        min_size=1, max_size=8,
    ),
    st.integers(1, 60), st.integers(0, 3),
)  # fmt: skip
def test_a_shared_prefix_changes_no_document(
    shapes: list[tuple[int, list[int], int]], budget: int, max_rows: int
) -> None:
    examples = []
    for row, (head, middle, learned) in enumerate(shapes):
        ids = np.array([7] * head + middle + [row] * learned, np.int32)
        labels = ids.copy()
        labels[: head + len(middle)] = -100
        examples.append(Example(ids, labels, row))
    limits = {"max_rows": max_rows, "token_budget": budget}
    alone = [unpacked(pack([example]))[0] for example in examples]
    shared = micro_batches(examples, share_prefix=True, **limits)
    assert [document for batch in shared for document in unpacked(batch)] == alone
    assert [row for batch in shared for row in batch.rows] == list(range(len(examples)))
    for batch in shared:
        assert len(batch.ids) <= budget or len(batch.rows) == 1
        assert batch.tokens == sum(len(examples[row].ids) for row in batch.rows)
        assert set(batch.targets[: batch.prefix]) <= {-100}
        starts = {tuple(examples[row].ids[: batch.prefix]) for row in batch.rows}
        assert len(starts) == 1
        assert batch.prefix == 0 or len(batch.rows) > 1
    assert len(shared) <= len(micro_batches(examples, **limits))


def test_the_longest_common_start_is_shared() -> None:
    ids = [[7, 7, 7, 7, 7, 1, 2, 3], [7, 7, 7, 7, 7, 1, 4, 5, 6]]
    examples = []
    for row, text in enumerate(ids):
        each = np.array(text, np.int32)
        examples.append(Example(each, np.where(np.arange(len(each)) < 7, -100, each), row))
    (batch,) = micro_batches(examples, max_rows=0, token_budget=99, share_prefix=True)
    assert batch.prefix == 6
    assert batch.ids.tolist() == [7, 7, 7, 7, 7, 1, 2, 3, 4, 5, 6]
    assert batch.positions.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 6, 7, 8]
    assert batch.targets.tolist() == [-100] * 6 + [3, -100, 5, 6, -100]
    # The token before the first learned one is the last that cannot be shared.
    examples = [Example(e.ids, np.where(np.arange(len(e.ids)) < 5, -100, e.ids), e.row)
                for e in examples]  # fmt: skip
    (batch,) = micro_batches(examples, max_rows=0, token_budget=99, share_prefix=True)
    assert batch.prefix == 4
