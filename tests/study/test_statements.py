from dataclasses import asdict

import pytest

from suri.study.intervals import Interval, difference_interval, mean_interval
from suri.study.measures import MEASURES, SPEEDS, number
from suri.study.statements import cost_statements, difference, speed_statements, threats

EXACT, LOSS = MEASURES["exact_match"], MEASURES["loss"]


def test_numbers_keep_their_decimals_and_never_show_as_zero():
    assert number(1234.567, 1) == "1,234.6"
    assert number(-0.25, 3) == "−0.250"
    assert number(0.0, 2) == "0.00"
    assert number(0.00004, 3) == "4.0e-05"
    assert EXACT.with_unit(0.834) == "83.4 %"
    assert SPEEDS["peak_memory_bytes"].with_unit(1.2345e9) == "1,234 MB"
    shown = EXACT.cell(asdict(Interval(0.5, 0.25, 0.875, 12)))
    assert shown == "50.0\n25.0\u00a0to\u00a087.5"
    assert EXACT.cell(None) == "–"


def test_a_clear_change_is_a_claim_with_its_direction():
    found = difference(EXACT, "adapter", "base", Interval(-0.5, -0.75, -0.2, 24))
    assert found.is_claim
    assert found.text == (
        "Exact match: lower with adapter than with base "
        "(−50.0 points; 95 % interval −75.0 to −20.0, n = 24)."
    )


def test_an_interval_around_zero_claims_nothing():
    found = difference(EXACT, "adapter", "base", Interval(0.04, -0.08, 0.17, 24))
    assert not found.is_claim
    assert "no difference found between base and adapter (4.0 points" in found.text


def test_identical_ways_are_equal_on_every_row():
    scores = [0.0, 1.0, 1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 1.0]
    found = difference(EXACT, "merged HF", "adapter", difference_interval(scores, scores))
    assert found.is_claim
    assert found.text == "Exact match: merged HF and adapter are equal on every row (n = 9)."


def test_a_difference_too_small_to_matter_is_called_equal():
    found = difference(LOSS, "merged HF", "adapter", Interval(3e-7, 1e-7, 5e-7, 24))
    assert found.is_claim
    assert "merged HF equals adapter to within 0.001 nats/token" in found.text
    assert "3.0e-07" in found.text


def test_opposite_changes_that_cancel_are_not_called_equal():
    # Four rows better, four worse, by as much: the mean is 0 and the ways are not the same.
    ours, theirs = [1.0, 0.0] * 4, [0.0, 1.0] * 4
    found = difference(EXACT, "merged HF", "adapter", difference_interval(ours, theirs))
    assert not found.is_claim
    assert "no difference found" in found.text


def test_one_row_gives_no_interval_and_no_claim_with_any_number_of_seeds():
    assert LOSS.cell(asdict(mean_interval([0.7]))) == "0.700\nno interval"
    for found in (mean_interval([0.7]), mean_interval([[0.7], [0.71], [0.69]])):
        said = difference(LOSS, "adapter", "base", found)
        assert said.text == "Response loss: 1 row is too few to tell adapter from base."
        assert not said.is_claim
    assert "a mean of one row has no interval" in threats({}, 1, {}, seeds=1)[0]


def test_rows_that_are_all_alike_are_told_as_such_and_without_an_interval():
    totals, weights = [0.3, 0.6, 0.9, 1.2] * 3, [1.0, 2.0, 3.0, 4.0] * 3
    found = mean_interval(totals, weights)
    assert LOSS.cell(asdict(found)) == "0.300\nall alike"
    said = difference(LOSS, "adapter", "base", found)
    assert said.is_claim
    assert said.text == (
        "Response loss: higher with adapter than with base (0.300 nats/token on every row, n = 12)."
    )


@pytest.mark.parametrize("value", [1.0, 0.0])
def test_too_few_rows_claim_nothing_however_large_the_change(value):
    found = difference(EXACT, "adapter", "base", Interval(value, value, value, 7))
    assert not found.is_claim
    assert "7 rows are too few" in found.text


def speeds(ours, theirs, repeats):
    def spread(values):
        same = dict(zip(("low", "median", "high"), values, strict=True), repeats=repeats)
        return {"speed": dict.fromkeys(SPEEDS, same)}

    ways = {"adapter": spread(theirs), "hf": spread(ours)}
    return {"ways": {name: way | {"form": name, "is_main": True} for name, way in ways.items()}}


def test_one_timing_claims_nothing_and_says_so():
    found = speed_statements(speeds((20.0,) * 3, (10.0,) * 3, repeats=1), ["hf"])[0]
    assert not found.is_claim
    assert "2.00 times as much (measured 1 × each, too seldom for a claim)." in found.text


def test_repeated_timings_claim_only_what_lies_apart():
    apart = speed_statements(speeds((19, 20, 21), (9, 10, 11), repeats=3), ["hf"])[0]
    assert apart.is_claim
    assert "medians of 3 processes each" in apart.text
    overlapping = speed_statements(speeds((10, 20, 21), (9, 10, 11), repeats=3), ["hf"])[0]
    assert not overlapping.is_claim
    assert "no difference found" in overlapping.text


def compared(low, high, seeds=(0, 1, 2), memory=(0.2, 0.3), unequal=()):
    count = {"rows": 30, "seeds": len(seeds)}
    speed_up = {"value": (low + high) / 2, "low": low, "high": high} | count
    saved = {"value": sum(memory) / 2, "low": memory[0], "high": memory[1], "rows": 1}
    found = {
        "ours": {"quantize": "nf4", "settings": {}, "rows": 64},
        "theirs": {"quantize": "none", "settings": {}, "rows": 64},
        "seeds": list(seeds),
        "speed_up": speed_up,
        "speed_up_to_adapter": None,
        "memory_saved": saved | {"seeds": len(seeds)},
        "unequal": list(unequal),
    }
    return cost_statements({"methods": [found]})


def test_a_speed_up_of_too_few_runs_or_around_one_is_no_claim():
    assert compared(1.1, 1.3)[0].is_claim
    assert not compared(0.9, 1.3)[0].is_claim
    assert "shows no difference between QLoRA and LoRA" in compared(0.9, 1.3)[0].text
    assert not compared(1.1, 1.3, seeds=(0, 1))[0].is_claim


def test_a_speed_up_of_a_thousandth_is_no_claim_however_sure_it_looks():
    assert not compared(1.0009, 1.0011)[0].is_claim
    assert not compared(0.9989, 0.9991)[0].is_claim
    assert compared(1.045, 1.055)[0].is_claim


def test_steps_that_are_all_alike_show_no_interval():
    said = compared(1.2, 1.2)[0]
    assert said.is_claim
    assert said.text.endswith("with QLoRA as with LoRA (90 paired steps, all alike, 3 runs each).")


def test_memory_is_claimed_where_every_run_says_so():
    claim, vague, single = (
        compared(1.1, 1.3)[1],
        compared(1.1, 1.3, memory=(-0.1, 0.3))[1],
        compared(1.1, 1.3, seeds=(0,))[1],
    )
    assert claim.text == (
        "At 64 rows QLoRA peaks at 25 % less memory than LoRA (saved: 95 % interval 20 to 30 %, "
        "3 runs each)."
    )
    assert (claim.is_claim, vague.is_claim, single.is_claim) == (True, False, False)
    assert "as far as can be told (saved: 10 %, 95 % interval −10 to 30 %" in vague.text
    equal = compared(1.1, 1.3, memory=(0.0, 0.0), seeds=(0,))[1]
    assert equal.text == "At 64 rows QLoRA peaks at as much memory as LoRA (one run each)."
    alike = compared(1.1, 1.3, memory=(0.2, 0.2))[1]
    assert alike.text.endswith("20 % less memory than LoRA (the same in every run, 3 runs each).")
    more = compared(1.1, 1.3, memory=(-0.3, 0.1))[1]
    assert "(saved: −10 %, 95 % interval −30 to 10 %" in more.text
    assert single.text.endswith("25 % less memory than LoRA (one run each).")


def test_what_was_not_equal_is_not_compared():
    (found,) = compared(1.1, 1.3, unequal=["micro_batches"])
    assert not found.is_claim
    assert found.text == (
        "At 64 rows QLoRA and LoRA are not compared, their runs differ in: micro-batches."
    )
