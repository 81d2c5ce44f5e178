"""Ids and labels against the tokenizer's own character offsets, and against counts by hand."""

import random
from array import array
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Backend

from suri.data.encode import Rules, encode_prompt, encode_records
from suri.data.examples import Encoded
from suri.data.prompt import TextPrompt, find_prompt
from suri.data.records import Record, read_records
from suri.data.tokenizer import Tokenizer
from suri.errors import DataError
from suri.model.tokenizer import read_tokenizer

ALPACA = find_prompt("alpaca")
LETTERS = "ab \n\t.:#é漢🙂{}'7</s><s>"


class Marked:
    """Any tokenizer, with a BOS of its own choice."""

    def __init__(self, tokenizer: Tokenizer, bos_id: int | None) -> None:
        self.bos_id, self.eos_id = bos_id, tokenizer.eos_id
        self.encode, self.encode_many = tokenizer.encode, tokenizer.encode_many
        self.decode = tokenizer.decode


@pytest.fixture(scope="module")
def tokenizer(embedded: Path) -> Tokenizer:
    return read_tokenizer(embedded)


@pytest.fixture(scope="module")
def merging() -> Tokenizer:
    """A byte-level tokenizer of the kind that joins blank space and newlines into one token."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ċ", "Ċ"), (":", "Ċ"), ("ĊĊ", "Ċ"), ("a", "b"), (":Ċ", "Ċ"), ("Ġ", "a")]
    vocab = ["<s>", "</s>", *letters, *("".join(pair) for pair in merges)]
    backend = Backend(models.BPE(vocab={t: i for i, t in enumerate(vocab)}, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r" ?[^\s\w]+\s*|\s*\w+|\s+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken("<s>"), AddedToken("</s>")])
    backend.encode_special_tokens = True

    class Plain:
        bos_id, eos_id = 0, 1

        def encode(self, text: str) -> list[int]:
            return list(self.encode_many([text])[0])

        def encode_many(self, texts: list[str]) -> list["array[int]"]:
            encoded = backend.encode_batch(texts, add_special_tokens=False)
            return [array("i", each.ids) for each in encoded]

        def decode(self, ids: list[int]) -> str:
            return backend.decode(list(ids), skip_special_tokens=False)

    return Plain()  # type: ignore[return-value]


def encode(records: list[Record], tokenizer: Tokenizer, **changes: object) -> Encoded:
    rules = Rules(**({"cutoff_len": 4096} | changes))  # type: ignore[arg-type]
    return encode_records(records, tokenizer, ALPACA, rules)


def random_records(count: int) -> list[Record]:
    draw = random.Random(5)

    def text(least: int) -> str:
        return "".join(draw.choices(LETTERS, k=draw.randint(least, 12)))

    return [Record(f"x{text(0)}", text(0), text(0)) for _ in range(count)]


def test_labels_decode_to_the_real_response_and_end_with_eos(
    real_rows: Path, tokenizer: Tokenizer
) -> None:
    records = read_records(real_rows)
    encoded = encode(records, tokenizer)
    assert encoded.counts["trimmed_response"] == encoded.counts["without_learned_tokens"] == 0
    for example, record in zip(encoded.examples, records, strict=True):
        learned = example.labels[example.labels != -100]
        assert learned[-1] == tokenizer.eos_id
        assert tokenizer.decode(learned[:-1].tolist()) == record.output
        assert tokenizer.decode(example.ids[:-1].tolist()) == ALPACA.render(record) + record.output


def test_the_offsets_of_one_tokenisation_agree_on_what_is_learned(
    real_rows: Path, tokenizer: Tokenizer, embedded: Path
) -> None:
    records = read_records(real_rows)[:200]
    backend = Backend.from_file(str(embedded / "tokenizer.json"))
    backend.encode_special_tokens = True
    for example, record in zip(encode(records, tokenizer).examples, records, strict=True):
        start = len(ALPACA.render(record))
        whole = backend.encode(ALPACA.render(record) + record.output, add_special_tokens=False)
        assert example.ids.tolist() == [*whole.ids, tokenizer.eos_id]
        in_response = [begin >= start for begin, _ in whole.offsets]
        assert (example.labels != -100).tolist() == [*in_response, True]


@pytest.mark.slow
@pytest.mark.parametrize("bos_id", [None, 3])
@pytest.mark.parametrize("kind", ["tokenizer", "merging"])
def test_the_prompt_in_use_is_the_prompt_in_training(
    kind: str, bos_id: int | None, request: pytest.FixtureRequest
) -> None:
    tokenizer = Marked(request.getfixturevalue(kind), bos_id)
    records = random_records(400)
    joined = 0
    for example, record in zip(encode(records, tokenizer).examples, records, strict=True):
        asked = encode_prompt(record, tokenizer, ALPACA)
        n = len(asked)
        assert asked.dtype == example.ids.dtype == example.labels.dtype == np.int32
        assert example.ids[:n].tolist() == asked.tolist()
        assert (example.labels != -100).tolist() == [False] * n + [True] * (len(example.ids) - n)
        assert tokenizer.decode(example.ids[n:-1].tolist()) == record.output
        assert (asked[0] == 3) == (bos_id is not None)
        whole = tokenizer.encode(ALPACA.render(record) + record.output)
        joined += whole != example.ids[bos_id is not None : -1].tolist()
    assert joined > 10  # the rows did contain responses that join with the prompt's end


def test_text_that_looks_like_a_special_token_stays_text(tokenizer: Tokenizer) -> None:
    (example,) = encode([Record("Say <|im_end|>", "", "<|im_end|>")], tokenizer).examples
    assert example.ids.tolist().count(tokenizer.eos_id) == 1


def test_train_on_inputs_learns_every_token_that_another_precedes(tokenizer: Tokenizer) -> None:
    record = Record("Add.", "2, 3", "5")
    for bos_id in (None, 3):
        marked = Marked(tokenizer, bos_id)
        (example,) = encode([record], marked, train_on_inputs=True).examples
        assert example.labels.tolist() == [-100, *example.ids[1:].tolist()]


def test_a_long_row_loses_its_end_and_eos_and_is_counted(tokenizer: Tokenizer) -> None:
    record = Record("Count.", "", "one two three four five six")
    (whole,) = encode([record], tokenizer).examples
    n, asked = len(whole.ids), len(encode_prompt(record, tokenizer, ALPACA))
    for cutoff in range(asked - 1, n + 2):
        encoded = encode([record], tokenizer, cutoff_len=cutoff)
        kept = [whole.ids[:cutoff].tolist()] if cutoff > asked else []
        assert [example.ids.tolist() for example in encoded.examples] == kept
        assert encoded.counts == {
            "rows": 1,
            "trimmed_input": 0,
            "trimmed_response": int(cutoff < n),
            "dropped": 0,
            "without_learned_tokens": int(cutoff <= asked),
            "tokens": sum(map(len, kept)),
            "learned_tokens": max(0, min(cutoff, n) - asked),
        }


def test_rows_that_are_left_out_leave_the_others_their_index(tokenizer: Tokenizer) -> None:
    long = Record("Repeat. " * 50, "", "b")
    short = Record("Add.", "", "c")
    encoded = encode([long, short, long, short], tokenizer, cutoff_len=60)
    assert [example.row for example in encoded.examples] == [1, 3]
    assert encoded.counts["without_learned_tokens"] == 2
    assert encoded.left_out == [0, 2]


def test_an_empty_response_teaches_to_stop(tokenizer: Tokenizer) -> None:
    (example,) = encode([Record("Say nothing.", "", "")], tokenizer).examples
    assert example.labels[example.labels != -100].tolist() == [tokenizer.eos_id]


def test_more_rows_than_are_encoded_at_once_keep_their_order(tokenizer: Tokenizer) -> None:
    records = [Record(f"Say {i}.", "", str(i)) for i in range(2003)]
    prompt = TextPrompt("short", "{instruction}{input}>", "{instruction}>")
    encoded = encode_records(records, tokenizer, prompt, Rules(64))
    said = [tokenizer.decode(e.labels[e.labels != -100][:-1].tolist()) for e in encoded.examples]
    assert said == [str(i) for i in range(2003)]
    assert [example.row for example in encoded.examples] == list(range(2003))


LONG_INPUT = Record("Repeat the words.", "one two three four five six seven eight", "a b c d e f g")


def lengths_of(record: Record, tokenizer: Tokenizer) -> tuple[int, int]:
    """Tokens before the answer, and of the whole row."""
    (example,) = encode([record], tokenizer).examples
    return len(encode_prompt(record, tokenizer, ALPACA)), len(example.ids)


def test_a_long_row_is_fitted_by_as_much_input_as_goes_in(tokenizer: Tokenizer) -> None:
    _, whole = lengths_of(LONG_INPUT, tokenizer)
    without = lengths_of(replace(LONG_INPUT, input=""), tokenizer)[1]
    for cutoff in range(without, whole):
        encoded = encode([LONG_INPUT], tokenizer, cutoff_len=cutoff)
        (example,) = encoded.examples
        text = tokenizer.decode(example.ids[:-1].tolist())
        shortened = text.partition("### Input:\n")[2].partition("\n\n### Response:")[0]
        assert LONG_INPUT.input.startswith(shortened)
        assert text == ALPACA.render(replace(LONG_INPUT, input=shortened)) + LONG_INPUT.output
        assert example.ids[-1] == example.labels[-1] == tokenizer.eos_id
        # No more is lost than must be; the template for an input is longer itself.
        assert cutoff - (3 if shortened else 17) < len(example.ids) <= cutoff
        learned = example.labels[example.labels != -100]
        assert tokenizer.decode(learned[:-1].tolist()) == LONG_INPUT.output
        assert encoded.counts["trimmed_input"] == 1
        assert encoded.counts["trimmed_response"] == 0


def test_an_answer_is_cut_only_when_no_input_is_left(tokenizer: Tokenizer) -> None:
    asked, without = lengths_of(replace(LONG_INPUT, input=""), tokenizer)
    for cutoff in range(asked - 1, without):
        encoded = encode([LONG_INPUT], tokenizer, cutoff_len=cutoff)
        assert encoded.counts["trimmed_input"] == encoded.counts["trimmed_response"] == 1
        assert encoded.counts["without_learned_tokens"] == (cutoff <= asked)
        for example in encoded.examples:
            assert len(example.ids) == cutoff
            assert tokenizer.eos_id not in example.ids.tolist()


def test_other_ways_with_rows_that_are_too_long(tokenizer: Tokenizer) -> None:
    _, whole = lengths_of(LONG_INPUT, tokenizer)
    records = [LONG_INPUT, Record("Add.", "", "5")]
    cut = encode(records, tokenizer, cutoff_len=whole - 3, overlong="trim-response")
    assert cut.examples[0].ids.tolist() == encode(records, tokenizer).examples[0].ids[:-3].tolist()
    assert cut.counts["trimmed_response"] == 1
    dropped = encode(records, tokenizer, cutoff_len=whole - 3, overlong="drop")
    assert [example.row for example in dropped.examples] == [1]
    assert (dropped.left_out, dropped.counts["dropped"]) == ([0], 1)
    with pytest.raises(DataError, match=r"rows of more than \d+ tokens: 1") as caught:
        encode(records, tokenizer, cutoff_len=whole - 3, overlong="error")
    assert "rows 1\n" in str(caught.value)
    kept = encode(records, tokenizer, cutoff_len=whole, overlong="error")
    assert len(kept.examples) == 2


TALK = Record("And 2?", "", "7", history=(("Add 2 and 3.", "5"), ("Why?", "So.")))


@pytest.mark.parametrize("bos_id", [None, 3])
def test_every_answer_of_a_conversation_is_learned(tokenizer: Tokenizer, bos_id: int) -> None:
    marked = Marked(tokenizer, bos_id)
    (example,) = encode([TALK], marked).examples
    ends = np.flatnonzero(example.ids == tokenizer.eos_id)
    assert len(ends) == 3
    learned = np.flatnonzero(example.labels != -100)
    runs = np.split(learned, np.flatnonzero(np.diff(learned) > 1) + 1)
    assert [tokenizer.decode(example.ids[run[:-1]].tolist()) for run in runs] == ["5", "So.", "7"]
    assert [run[-1] for run in runs] == ends.tolist()
    asked = encode_prompt(TALK, marked, ALPACA)
    assert example.ids[: len(asked)].tolist() == asked.tolist()
    assert example.ids.tolist().count(3) == (bos_id is not None)


def test_a_long_conversation_loses_its_first_turns(tokenizer: Tokenizer) -> None:
    (whole,) = encode([TALK], tokenizer).examples
    (later,) = encode([replace(TALK, history=TALK.history[1:])], tokenizer).examples
    encoded = encode([TALK], tokenizer, cutoff_len=len(whole.ids) - 1)
    assert encoded.examples[0].ids.tolist() == later.ids.tolist()
    assert encoded.counts["trimmed_input"] == 1


@pytest.mark.parametrize("name", ["alpaca", "alpaca_short", "alpaca_legacy", "vigogne", "chat"])
def test_ids_are_the_same_in_training_and_in_chat_for_every_template(
    name: str, tokenizer: Tokenizer
) -> None:
    prompt = find_prompt(name, tokenizer)
    records = [*random_records(60), TALK, replace(TALK, input="x", system="Be brief.")]
    examples = encode_records(records, tokenizer, prompt, Rules(4096)).examples
    for example, record in zip(examples, records, strict=True):
        asked = encode_prompt(replace(record, output=""), tokenizer, prompt)
        assert example.ids[: len(asked)].tolist() == asked.tolist()
        assert (example.labels[: len(asked)] == -100).sum() >= len(asked) - 8
        answer = example.labels[len(asked) :]
        assert answer.tolist() == example.ids[len(asked) :].tolist()
        assert tokenizer.decode(answer[:-1].tolist()) == record.output
        assert answer[-1] == tokenizer.eos_id
