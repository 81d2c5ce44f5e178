import itertools
import math

import numpy as np
import pytest

from suri.study.intervals import (
    Interval,
    difference_interval,
    interval_of,
    mean_interval,
    ratio_interval,
    share_interval,
)
from suri.study.measures import MEASURES, size_of
from suri.study.statements import difference

T = {2: 4.303, 7: 2.365, 23: 2.069}
"""Student's t for 95 %, by degrees of freedom, from any table."""


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
    # Wider than the plain percentiles, as few rows ask for, and not by more than t does.
    assert 1.2 < (found.high - found.low) / (high - low) < 2
    assert found.low < low < high < found.high


def test_few_rows_and_few_seeds_are_as_wide_as_students_t():
    rows = np.random.default_rng(3).normal(5.0, 2.0, size=24)
    found = mean_interval(rows.tolist())
    reach = T[23] * rows.std(ddof=1) / math.sqrt(24)
    assert found.high - found.value == pytest.approx(reach, rel=0.08)
    seeds = mean_interval([[1.0], [2.0], [3.0]])
    assert (seeds.value, seeds.rows, seeds.seeds) == (2.0, 1, 3)
    assert seeds.high - 2 == pytest.approx(T[2] / math.sqrt(3), rel=0.15)
    assert size_of(seeds) == "n = 3 seeds"


def test_rows_and_seeds_both_widen_an_interval():
    random = np.random.default_rng(8)
    rows, seeds = random.normal(0, 1, 48), np.array([[-0.2], [0.05], [0.3]])
    both = mean_interval((rows + seeds).tolist())
    alone = mean_interval((rows + seeds).mean(axis=0).tolist())
    assert both.value == pytest.approx(alone.value)
    assert both.high - both.low > 1.5 * (alone.high - alone.low)
    assert size_of(both) == "n = 48 rows, 3 seeds"


def null(random, rows, seeds):
    """Differences of two methods that are the same: uneven rows, seeds, and both together."""
    ours, theirs = (random.exponential(1.0, rows) * random.choice([1, 4], rows) for _ in range(2))
    uneven = ours - theirs if rows > 1 else np.zeros(1)
    seed_noise = 0.3 * random.normal(size=(seeds, 1)) if seeds > 1 else 0.0
    return uneven + seed_noise + 0.5 * random.normal(size=(seeds, rows))


@pytest.mark.slow
@pytest.mark.parametrize(("rows", "seeds"), [(24, 1), (96, 1), (24, 3), (1, 3), (200, 2)])
def test_a_null_is_left_out_of_the_interval_about_as_often_as_it_says(rows, seeds):
    random = np.random.default_rng(1)
    found = [mean_interval(null(random, rows, seeds).tolist()) for _ in range(500)]
    # 5 %, and three times what the count of 500 draws varies by.
    assert sum(one.low > 0 or one.high < 0 for one in found) <= 500 * (0.05 + 3 * 0.0097)


@pytest.mark.slow
def test_of_two_hundred_nulls_of_a_study_five_percent_at_most_are_claimed():
    """Through the statements, at the size of task 2: 96 rows, 3 seeds."""
    random = np.random.default_rng(0)
    claims = 0
    for _ in range(200):
        theirs = random.gamma(2.0, 0.75, size=(1, 96)) + np.zeros((3, 1))
        ours = theirs + 0.1 * null(random, 96, 3)
        found = difference_interval(ours.tolist(), theirs.tolist())
        claims += difference(MEASURES["loss"], "one", "other", found).is_claim
    assert claims <= 10


def test_a_planted_gain_of_five_percent_is_found_and_of_a_thousandth_is_not():
    """Losses of 96 rows and 3 seeds, that vary between seeds by 0.3 %."""

    def judged(gain):
        random = np.random.default_rng(11)
        theirs = random.gamma(2.0, 0.75, 96) * (1 + 0.003 * random.normal(size=(3, 1)))
        ours = theirs * (1 - gain) * (1 + 0.003 * random.normal(size=(3, 1)))
        return difference_interval((ours + 0.02 * random.normal(size=(3, 96))).tolist(), theirs)

    assert judged(0.05).is_difference
    assert judged(0.05).high < 0
    assert not judged(0.001).is_difference


def test_a_ratio_is_the_geometric_mean_and_one_stall_does_not_make_it():
    found = ratio_interval([[2.0, 8.0], [4.0, 4.0]], [[1.0, 1.0], [1.0, 1.0]])
    assert found.value == pytest.approx(4.0)
    ours, theirs = np.full(40, 0.5), np.full(40, 1.0)
    theirs[7] = 60.0  # somebody else's minute
    assert ratio_interval(theirs.tolist(), ours.tolist()).value == pytest.approx(2 * 60 ** (1 / 40))


def test_an_interval_survives_json():
    kept = {"value": 1.5, "low": 1.0, "high": 2.0, "rows": 9, "seeds": 3, "measure": "loss"}
    assert interval_of(kept) == Interval(1.5, 1.0, 2.0, 9, 3)


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
