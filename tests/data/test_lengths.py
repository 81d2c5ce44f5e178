"""Lengths and the cost of cutoffs against what encoding really does with the same rows."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from suri.data.encode import Rules, encode_records
from suri.data.lengths import LengthMeter, Lengths
from suri.data.prompt import find_prompt
from suri.data.records import Record, read_records
from suri.data.tokenizer import Tokenizer
from suri.model.tokenizer import read_tokenizer

ALPACA = find_prompt("alpaca")


@pytest.fixture(scope="module")
def tokenizer(embedded: Path) -> Tokenizer:
    return read_tokenizer(embedded)


def measured(records: list[Record], tokenizer: Tokenizer) -> Lengths:
    meter = LengthMeter(tokenizer, ALPACA)
    assert list(meter.through(records)) == records
    lengths = meter.lengths()
    assert lengths is not None
    return lengths


@pytest.mark.slow
def test_the_cost_of_a_cutoff_is_what_encoding_does(real_rows: Path, tokenizer: Tokenizer) -> None:
    records = read_records(real_rows)[:400]
    talk = Record("And?", "", "Yes.", history=(("Is it?", "It is. " * 30), ("Why?", "So.")))
    records += [talk, replace(talk, output="Yes. " * 60)]
    lengths = measured(records, tokenizer)
    for cutoff in (64, 128, 256):
        cost = lengths.cost(cutoff)
        done = encode_records(records, tokenizer, ALPACA, Rules(cutoff)).counts
        answers_cut = cost["answer_cut_and_eos_lost"] + cost["nothing_left_to_learn"]
        assert cost["too_long"] == cost["shorter_input_is_enough"] + answers_cut
        assert answers_cut == done["trimmed_response"]
        assert cost["nothing_left_to_learn"] == done["without_learned_tokens"]
        assert cost["tokens_per_epoch"] == pytest.approx(done["tokens"], rel=0.02)
    whole = encode_records(records, tokenizer, ALPACA, Rules(4096))
    assert lengths.total.tolist() == whole.examples.lengths.tolist()
    assert lengths.as_json()["tokens"] == whole.counts["tokens"]


def test_figures_by_hand() -> None:
    total = np.array([10] * 98 + [40, 90], np.int32)
    shortest = np.array([10] * 98 + [40, 30], np.int32)
    answer = np.array([3] * 98 + [39, 20], np.int32)
    lengths = Lengths(total, shortest, answer)
    assert lengths.keeping(0.99) == 40
    assert lengths.keeping(0.5) == 16  # 10, rounded up to a multiple of 8
    assert lengths.cost(32) == {
        "cutoff_len": 32,
        "too_long": 2,
        "shorter_input_is_enough": 1,
        "answer_cut_and_eos_lost": 1,
        "nothing_left_to_learn": 0,
        "tokens_per_epoch": 98 * 10 + 32 + 32,
    }
    assert lengths.cost(7)["nothing_left_to_learn"] == 99  # 10 - 3 >= 7, and 30 - 20
    assert lengths.histogram() == [(0, 32, 98), (32, 64, 1), (64, 91, 1)]


def test_no_rows_have_no_lengths(tokenizer: Tokenizer) -> None:
    meter = LengthMeter(tokenizer, ALPACA)
    assert list(meter.through([])) == []
    assert meter.lengths() is None
