import itertools
import math

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer

from suri.study.scores import (
    difference_interval,
    mean_interval,
    rouge_l,
    share_interval,
    shared_prefix,
)


def exact_bootstrap(totals, weights):
    """Every one of the n^n resamples, so that the percentiles need no random numbers."""
    rows = range(len(totals))
    ratios = [
        sum(totals[i] for i in chosen) / sum(weights[i] for i in chosen)
        for chosen in itertools.product(rows, repeat=len(totals))
    ]
    return np.percentile(ratios, [2.5, 97.5])


def test_interval_of_weighted_rows_is_near_the_one_over_all_resamples():
    totals, weights = [3.0, 1.0, 9.5, 2.0, 4.0, 0.5], [2, 1, 5, 3, 1, 2]
    found = mean_interval(totals, weights)
    low, high = exact_bootstrap(totals, weights)
    assert found.value == pytest.approx(20 / 14)
    assert found.rows == 6
    assert found.low == pytest.approx(low, abs=0.06)
    assert found.high == pytest.approx(high, abs=0.06)


def test_interval_of_two_rows_by_hand():
    # Resamples of (0, 1): a quarter 0, a half 0.5, a quarter 1, so the outer 2.5 % are 0 and 1.
    found = mean_interval([0.0, 1.0])
    assert (found.value, found.low, found.high) == (0.5, 0.0, 1.0)


def test_difference_is_paired_and_not_a_difference_of_two_intervals():
    # Rows differ wildly, but every row gains about 1: only a paired interval sees it.
    theirs = [0.0, 50.0, 10.0, 90.0, 30.0, 70.0, 20.0, 60.0, 40.0]
    ours = [value + gain for value, gain in zip(theirs, [1, 1.2, 0.8] * 3, strict=True)]
    found = difference_interval(ours, theirs)
    assert found.value == pytest.approx(1.0)
    assert 0.8 <= found.low < found.high <= 1.2
    assert found.is_difference


def test_the_same_rows_twice_are_no_difference():
    values = [0.25, 3.0, 1.5, 0.0, 2.0, 7.0, 1.0, 4.0, 2.5]
    found = difference_interval(values, values)
    assert (found.value, found.low, found.high) == (0.0, 0.0, 0.0)
    assert found.is_enough
    assert not found.is_difference


def test_few_rows_never_make_a_difference():
    found = difference_interval([1.0] * 7, [0.0] * 7)
    assert found.low == 1.0
    assert not found.is_difference


def test_rows_that_do_not_pair_are_refused():
    with pytest.raises(ValueError, match="one number per row"):
        mean_interval([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="weights above 0"):
        mean_interval([1.0, 2.0], [1.0, 0.0])


def test_wilson_interval_against_the_published_example():
    # 81 of 263: Newcombe 1998, table I, method 3 gives 0.2553 to 0.3662.
    found = share_interval(81, 263)
    assert (round(found.low, 4), round(found.high, 4)) == (0.2553, 0.3662)
    none = share_interval(0, 20)
    assert (none.low, round(none.high, 4)) == (0.0, 0.1611)


def test_rouge_l_by_hand():
    # Longest common subsequence "the cat the mat": 4 of 6 expected words, 4 of 5 answered.
    recall, precision = 4 / 6, 4 / 5
    expected = 2 * recall * precision / (recall + precision)
    assert rouge_l("The cat sat on the mat.", "the cat, the old mat") == pytest.approx(expected)


def test_rouge_l_of_english_is_the_packages_own():
    plain = RougeScorer(["rougeL"])
    for expected, answer in [
        ("It's 12.5 km, not 13!", "its 12 5 KM"),
        ("naïve café", "naive cafe"),
        ("one", ""),
    ]:
        score = plain.score(expected, answer)["rougeL"].fmeasure
        assert rouge_l(expected, answer) == pytest.approx(score)


def test_rouge_l_counts_chinese_characters():
    # 4 of 5 expected characters and all 4 answered ones, in order.
    expected = 2 * 0.8 * 1.0 / 1.8
    assert rouge_l("今天天气好", "今天，气好。") == pytest.approx(expected)
    assert rouge_l("用 Python 写", "python 写") == pytest.approx(2 * (2 / 3) * 1 / (2 / 3 + 1))


def test_shared_prefix():
    assert shared_prefix([5, 6, 7, 8], [5, 6, 9, 8]) == 0.5
    assert shared_prefix([5, 6], [5, 6, 7, 8, 9]) == 0.4
    assert shared_prefix([], []) == 1.0
    assert shared_prefix([], [3]) == 0.0
    assert math.isclose(shared_prefix([4, 2, 1], [4, 2, 1]), 1.0)
