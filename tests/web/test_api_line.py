"""The line before the model, and the pieces that come out of it."""

from threading import Event

import pytest

from suri.errors import UsageError
from suri.infer.pieces import Pieces
from suri.infer.served import open_served
from suri.recipe import Decoding
from suri.web.api_line import MOST_ROWS, Job, Line
from suri.web.api_metrics import Metrics
from suri.web.doors import is_loopback, refuse_open_door


@pytest.fixture(scope="module")
def served(tiny):
    return open_served(str(tiny))


@pytest.fixture
def line(served):
    line = Line(served, Metrics())
    yield line
    line.close()
    assert not line.thread.is_alive()


class Reader:
    """Takes the parts of one answer, and may do something at each."""

    def __init__(self, served, text, *, at_each=lambda reader: None, **settings):
        self.parts, self.done, self.at_each = [], Event(), at_each
        settings = {"temperature": 0, "max_new_tokens": 60} | settings
        self.job = Job(
            served.default, served.tokenizer.encode(text), Decoding(**settings),
            Pieces(served.tokenizer), self.take,
        )  # fmt: skip

    def take(self, part):
        assert not self.done.is_set()
        self.parts.append(part)
        self.at_each(self)
        if part.finish:
            self.done.set()

    def finish(self):
        assert self.done.wait(60)
        return self.parts[-1].finish


def holding(served, line):
    """A reader in whose first part the model waits until it is let go."""
    held, go = Event(), Event()

    def hold(_reader):
        held.set()
        assert go.wait(60)

    reader = Reader(served, "First", at_each=hold, temperature=0.5)
    line.join(reader.job)
    assert held.wait(60)
    return reader, go


def test_who_leaves_gets_no_further_token(served, line):
    def leave(reader):
        line.leave(reader.job)

    reader = Reader(served, "Say it", at_each=leave)
    other = Reader(served, "Say that")
    line.join(reader.job)
    line.join(other.job)
    assert reader.finish() == "gone"
    assert sum(bool(part.text) for part in reader.parts) == 1
    assert other.finish() == "length"
    assert other.job.tokens == 60


def test_who_waits_and_leaves_is_never_answered(served, line):
    first, go = holding(served, line)
    second = Reader(served, "Second")
    line.join(second.job)
    assert "suri_queue_length 1" in line.metrics.text()
    line.leave(second.job)
    assert "suri_queue_length 0" in line.metrics.text()
    go.set()
    assert first.finish() == "length"
    assert not second.parts


def test_the_end_is_told_to_all(served):
    line = Line(served, Metrics())
    first, go = holding(served, line)
    second, third = Reader(served, "Second"), Reader(served, "Third")
    line.join(second.job)
    line.end()
    assert second.finish() == "error"
    go.set()
    assert first.finish() == "error"
    assert first.job.tokens < 60
    line.join(third.job)
    assert third.finish() == "error"
    line.close()


def test_who_comes_later_joins_and_is_answered_as_alone(served, line):
    """More requests than places, of several settings, behind one that is being answered."""
    first, go = holding(served, line)
    greedy = [Reader(served, f"Greedy {n}", max_new_tokens=5 + n) for n in range(MOST_ROWS + 2)]
    sampled = [Reader(served, "Sampled", temperature=1.0, seed=n) for n in range(3)]
    mixed = [greedy[0], sampled[0], *greedy[1:], *sampled[1:]]
    for reader in mixed:
        line.join(reader.job)
    go.set()
    assert all(reader.finish() in ("stop", "length") for reader in [first, *mixed])
    together = sum(reader.job.tokens for reader in [first, *mixed])
    assert number(line, "suri_passes_total") < together / 4
    texts = {"".join(part.text for part in reader.parts) for reader in sampled}
    assert len(texts) == 3
    for reader in [*greedy[:3], *sampled]:
        alone = Reader(served, "")
        alone.job.ids, alone.job.decoding = reader.job.ids, reader.job.decoding
        line.join(alone.job)
        alone.finish()
        assert alone.job.pieces.ids == reader.job.pieces.ids


def test_who_wants_another_model_is_not_passed_for_ever(tiny):
    """While others keep asking for the first model, the second one's turn comes."""
    served = open_served(str(tiny))
    served.voices["other"] = served.voices[served.default]
    line, order = Line(served, Metrics()), []

    def note(reader):
        if reader.parts[-1].finish:
            order.append(reader)

    first, go = holding(served, line)
    before = Reader(served, "Before", at_each=note, max_new_tokens=2)
    stranger = Reader(served, "Stranger", at_each=note, max_new_tokens=2)
    stranger.job.model = "other"
    after = Reader(served, "After", at_each=note, max_new_tokens=2)
    for reader in (before, stranger, after):
        line.join(reader.job)
    go.set()
    assert all(reader.finish() for reader in (first, before, stranger, after))
    assert order == [before, stranger, after]
    line.close()


def number(line, name):
    """A figure of the line, as it is counted."""
    return next(
        float(text.split()[1])
        for text in line.metrics.text().splitlines()
        if text.startswith(name + " ")
    )


def test_a_pass_that_fails_ends_nothing_else(served, line, caplog):
    wrong, right = Reader(served, "Wrong"), Reader(served, "Right")
    wrong.job.ids = [10**6]  # no such token
    line.join(wrong.job)
    assert wrong.finish() == "error"
    line.join(right.job)
    assert right.finish() == "length"
    assert "a pass through the model failed" in caplog.text


class Letters:
    """A tokenizer whose tokens are bytes."""

    def decode(self, ids):
        return bytes(ids).decode(errors="replace")


@pytest.mark.parametrize(
    "text, stops, shown",
    [
        ("one two three", [], "one two three"),
        ("one two three", ["two"], "one "),
        ("one two three", ["three", "two"], "one "),
        ("one two three", ["four"], "one two three"),
        ("aaab", ["aab"], "a"),
        ("one tw", ["two"], "one tw"),
        ("æ→😀 end", ["😀"], "æ→"),
        ("æ→😀 end", ["→😁"], "æ→😀 end"),
        ("stop", ["stop"], ""),
        ("abcabd", ["abd"], "abc"),
    ],
)
def test_pieces_join_to_what_stands_before_the_stop(text, stops, shown):
    pieces = Pieces(Letters(), stops)
    came = []
    for byte in text.encode():
        came.append(pieces.take(byte))
        assert not any(stop in "".join(came) for stop in stops)
    came.append(pieces.rest())
    assert "".join(came) == pieces.text == shown
    assert pieces.stopped == any(stop in text for stop in stops)


def test_half_a_character_at_the_end_is_shown_in_the_end():
    pieces = Pieces(Letters())
    assert [pieces.take(byte) for byte in "é".encode()[:1]] == [""]
    assert pieces.rest() == "\ufffd"


def test_doors():
    assert all(map(is_loopback, ("localhost", "127.0.0.1", "127.9.9.9", "::1")))
    assert not any(map(is_loopback, ("", "0.0.0.0", "::", "localhost.example", "10.0.0.1")))
    refuse_open_door("API", "0.0.0.0", "fleece")
    with pytest.raises(UsageError, match="the API would be open to everybody who reaches it on ::"):
        refuse_open_door("API", "::", "")
