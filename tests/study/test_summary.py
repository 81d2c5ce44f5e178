import math

import pytest

from results import make_comparison, make_entries, make_study, trial
from suri.study.compare_summary import row_scores, summarise_ways
from suri.study.forms import ways_of
from suri.study.intervals import interval_of
from suri.study.measures import SPEEDS, method_label
from suri.study.statements import cost_statements, loss_statements
from suri.study.study_summary import summarise_trials


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
    measured = {way: [{"speed": dict.fromkeys(SPEEDS, 1.0)}] for way in comparison["ways"]}
    ways = [way for way in ways_of("", "suri", "float32", "none") if way.name in measured]
    summary = summarise_ways(entries, ways, measured)
    found = summary["ways"]["adapter"]["quality"]["exact_match"]
    assert found["rows"] == 7
    assert found["value"] == pytest.approx(5 / 7)  # of rows 5 to 11, the rows 7 and 11 are wrong


def test_differences_are_signed_and_named(comparison):
    found = {(d["measure"], d["ours"], d["theirs"]): d for d in comparison["differences"]}
    assert len(found) == 5 * 5  # measures, and every way but the base
    assert ("loss", "int8", "adapter") in found
    assert ("loss", "hf-suri-bfloat16", "hf") in found
    loss = found["loss", "adapter", "base"]
    expected = sum(1.2 + row / 10 - 8.5 - row / 7 for row in range(12)) / 36
    assert loss["value"] == pytest.approx(expected)
    assert loss["low"] < loss["value"] < loss["high"] < 0


def test_repeated_measurements_become_median_and_range(entries, comparison):
    rates = [3.0, 11.0, 5.0]
    measured = {
        "base": [
            {"speed": dict.fromkeys(SPEEDS, 1.0) | {"tokens_per_second": rate}} for rate in rates
        ]
    }
    ways = ways_of("base", "suri", "float32", "none")
    found = summarise_ways(entries, ways, measured)["ways"]["base"]["speed"]["tokens_per_second"]
    assert found == {"median": 5.0, "low": 3.0, "high": 11.0, "repeats": 3}


def test_agreement_by_hand(comparison):
    found = {name: way["agreement"] for name, way in comparison["ways"].items()}
    # The base shares the first of five tokens, but in row 2 the second too.
    assert found["base"]["identical"] == 0
    assert found["base"]["shared_prefix"] == pytest.approx((11 * 1 / 5 + 2 / 5) / 12)
    assert found["base"]["first_difference"] == 1
    # 8-bit differs in the last of three tokens.
    assert found["int8"]["shared_prefix"] == pytest.approx(2 / 3)
    assert found["int8"]["first_difference"] == 2
    assert (found["hf"]["identical"], found["hf"]["first_difference"]) == (12, None)
    names = list(comparison["ways"])
    shares = comparison["prefixes"]
    assert shares[names.index("hf")][names.index("meta")] == 1
    assert shares[names.index("int8")][names.index("adapter")] == pytest.approx(2 / 3)
    assert all(shares[i][j] == shares[j][i] for i in range(6) for j in range(6))


def test_methods_pair_their_steps_and_skip_the_first(study):
    # The first step is slow in one method only, as the first step of a process is.
    for one in study["trials"]:
        if one["quantize"] == "none":
            one["token_seconds"][0] = 9.0
    found = summarise_trials(study["trials"])["methods"]
    assert [(one["ours"]["rows"], one["ours"]["quantize"]) for one in found] == [
        (96, "int8"), (96, "nf4"), (192, "int8"), (192, "nf4"),
    ]  # fmt: skip
    for one in found:
        is_nf4 = one["ours"]["quantize"] == "nf4"
        speed_up = interval_of(one["speed_up"])
        assert speed_up.value == pytest.approx(1 / (1.5 if is_nf4 else 0.7))
        assert speed_up.low == pytest.approx(speed_up.high)
        assert one["memory_saved"]["value"] == pytest.approx(1 - 1 / 1.3 if is_nf4 else 0.0)
        steps = one["ours"]["rows"] // 8
        times = [7.7 + 3.3 * steps * slower for slower in (1.0, 1.5 if is_nf4 else 0.7)]
        assert one["speed_up_to_adapter"]["value"] == pytest.approx(times[0] / times[1])


@pytest.mark.parametrize("fact", ["micro_batches", "rows_seen", "initial_adapter", "steps"])
def test_runs_that_were_not_equal_are_not_compared(fact):
    trials = [trial(96, "none"), trial(96, "nf4")]
    assert summarise_trials(trials)["methods"][0]["speed_up"]
    trials[1]["facts"][fact] = "another"
    (found,) = summarise_trials(trials)["methods"]
    assert found["unequal"] == [fact]
    assert not any(found[name] for name in ("speed_up", "memory_saved", "loss_difference"))


def test_two_identical_methods_are_no_difference():
    trials = [trial(96, "none", seed) for seed in range(3)]
    twins = [one | {"quantize": "nf4"} for one in trials]
    (found,) = summarise_trials([*trials, *twins])["methods"]
    for name, same in (("speed_up", 1), ("memory_saved", 0), ("loss_difference", 0)):
        interval = interval_of(found[name])
        assert (interval.low, interval.value, interval.high) == pytest.approx((same,) * 3)
    said = [*cost_statements({"methods": [found]})]
    assert not any(one.is_claim for one in said)
    text = loss_statements({"methods": [found], "sizes": [], "settings": []})[0].text
    assert "are equal on every row (n = 12 rows, 3 seeds)" in text


def test_another_setting_is_held_against_the_plans_first():
    rates = [{"learning_rate": 1e-3}, {"learning_rate": 1e-4}]
    trials = [trial(96, method, settings=rate) for rate in rates for method in ("none", "nf4")]
    found = summarise_trials(trials)
    assert [method_label(one) for one in found["groups"]] == [
        "LoRA, learning_rate 0.001", "QLoRA, learning_rate 0.001",
        "LoRA, learning_rate 0.0001", "QLoRA, learning_rate 0.0001",
    ]  # fmt: skip
    assert len(found["methods"]) == 2
    pairs = [(one["ours"], one["theirs"]) for one in found["settings"]]
    assert [tuple(map(method_label, pair)) for pair in pairs] == [
        ("LoRA, learning_rate 0.0001", "LoRA, learning_rate 0.001"),
        ("QLoRA, learning_rate 0.0001", "QLoRA, learning_rate 0.001"),
    ]


def test_a_trial_that_was_cut_and_went_on_lends_its_steps_but_not_its_whole_time():
    trials = [trial(96, "none"), trial(96, "nf4", total_seconds=None)]
    found = summarise_trials(trials)
    assert found["groups"][1]["total_seconds"] is None
    assert found["methods"][0]["speed_up"]
    assert found["methods"][0]["speed_up_to_adapter"] is None


def test_right_answers_are_shared_over_rows_and_seeds():
    trials = [trial(96, "none", seed) for seed in range(2)]
    exact = interval_of(summarise_trials(trials)["groups"][0]["exact_match"])
    # Rows 1, 4, 7 and 10 cannot be checked; the other 8 are right in both seeds.
    assert (exact.value, exact.rows, exact.seeds) == (1.0, 8, 2)
    assert 0.6 < exact.low < 0.75, "Wilson's interval: eight of eight is not certainty"


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
    pairs = [(one["ours"]["rows"], one["ours"]["quantize"]) for one in found["methods"]]
    assert pairs == [(96, "int8"), (192, "int8"), (192, "nf4")]
    assert [one["ours"]["quantize"] for one in found["sizes"]] == ["none", "int8"]
    assert len(found["groups"]) == 5
