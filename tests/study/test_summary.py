import math

import pytest

from results import make_comparison, make_entries, make_study
from suri.study.summary import interval_of, row_scores, summarise_trials, summarise_ways


@pytest.fixture
def entries():
    return make_entries()


@pytest.fixture
def comparison():
    return make_comparison()


@pytest.fixture
def study():
    return make_study()


def test_quality_by_hand(comparison):
    quality = comparison["ways"]["adapter"]["quality"]
    by_hand = {"exact_match": 9 / 12, "stop_rate": 1.0, "answer_tokens": 3.0}
    for measure, value in by_hand.items():
        assert quality[measure]["value"] == pytest.approx(value)
    # Losses 1.2, 1.3 .. 2.3 over 3 tokens each: 21 / 36.
    assert quality["loss"]["value"] == pytest.approx(21 / 36)
    assert quality["perplexity"]["value"] == pytest.approx(math.exp(21 / 36))
    assert quality["perplexity"]["low"] == pytest.approx(math.exp(quality["loss"]["low"]))


def test_loss_weighs_tokens_and_leaves_out_rows_without_any(entries):
    entries[0]["answers"]["base"].update(loss_sum=0.0, learned_tokens=0)
    entries[1]["answers"]["base"].update(loss_sum=40.0, learned_tokens=20)
    scores = row_scores(entries, "loss", "base")
    assert len(scores) == 11
    assert scores[0] == (40.0, 20)


def test_rows_that_no_rule_checks_do_not_count_as_wrong(entries, comparison):
    for entry in entries[:5]:
        for answer in entry["answers"].values():
            answer["correct"] = None
    speeds = {
        way: [{name: 1.0 for name in found["speed"]}] for way, found in comparison["ways"].items()
    }
    summary = summarise_ways(entries, speeds, {})
    found = summary["ways"]["adapter"]["quality"]["exact_match"]
    assert found["rows"] == 7
    assert found["value"] == pytest.approx(5 / 7)  # of rows 5 to 11, the rows 7 and 11 are wrong


def test_differences_are_signed_and_named(comparison):
    found = {(d["measure"], d["ours"], d["theirs"]): d for d in comparison["differences"]}
    assert len(found) == 9
    loss = found["loss", "adapter", "base"]
    expected = sum(1.2 + row / 10 - 8.5 - row / 7 for row in range(12)) / 36
    assert loss["value"] == pytest.approx(expected)
    assert loss["low"] < loss["value"] < loss["high"] < 0


def test_repeated_measurements_become_median_and_range(entries, comparison):
    rates = [3.0, 11.0, 5.0]
    names = comparison["ways"]["base"]["speed"]
    speeds = {"base": [dict.fromkeys(names, 1.0) | {"tokens_per_second": rate} for rate in rates]}
    found = summarise_ways(entries, speeds, {})["ways"]["base"]["speed"]["tokens_per_second"]
    assert found == {"median": 5.0, "low": 3.0, "high": 11.0, "repeats": 3}


def test_methods_pair_their_steps_and_skip_the_first(study):
    # The first step is slow in one method only, as the first step of a process is.
    for trial in study["trials"]:
        if trial["quantize"] == "none":
            trial.get("token_seconds", [0])[0] = 9.0
    found = summarise_trials(study["trials"])["methods"]
    assert [one["rows"] for one in found] == [96, 192]
    for one in found:
        speed_up = interval_of(one["speed_up"])
        assert speed_up.value == pytest.approx(1 / 1.5)
        assert speed_up.low == pytest.approx(speed_up.high)
        assert one["memory_saved"] == pytest.approx(1 - 1 / 1.3)


def test_losses_are_averaged_over_seeds_and_paired_by_row(study):
    first = study["trials"][0]
    other = first | {"seed": 3, "losses": [dict(one) for one in first["losses"]]}
    for one in other["losses"]:
        one["loss_sum"] += 2.0
    groups = summarise_trials([first, other])["groups"]
    tokens = sum(one["learned_tokens"] for one in first["losses"])
    expected = sum(one["loss_sum"] + 1.0 for one in first["losses"]) / tokens
    assert groups[0]["seeds"] == [0, 3]
    assert groups[0]["loss"]["value"] == pytest.approx(expected)


def test_a_failed_trial_leaves_its_partner_uncompared(study):
    trials = [trial for trial in study["trials"] if trial["name"] != "nf4-rows96-seed0"]
    found = summarise_trials(trials)
    assert [one["rows"] for one in found["methods"]] == [192]
    assert [one["quantize"] for one in found["sizes"]] == ["none"]
    assert len(found["groups"]) == 3
