"""What is mended, what is left out, and what is left alone."""

import pytest

from suri.data.check import cleaned
from suri.data.records import Record

GOOD = Record("Add\tthem.\n", "2 and 3", "5", "sum", (("a", "b"),), "Be brief.")


def test_a_row_in_order_is_left_as_it_is() -> None:
    assert cleaned(GOOD) == (GOOD, [])


@pytest.mark.parametrize(
    "record, expected, change",
    [
        (Record("a\r\nb", "c\rd", "e"), Record("a\nb", "c\nd", "e"), "Windows line ends"),
        (Record("a\x00", "", "\ufeffe\x9f"), Record("a", "", "e"), "control characters"),
        (Record("a", "<noinput>", "e"), Record("a", "", "e"), "is now empty"),
        (Record("a", " No Input. ", "e"), Record("a", "", "e"), "is now empty"),
        (Record("a", "", "e", history=(("q\x07", "r\r"),)),
         Record("a", "", "e", history=(("q", "r\n"),)), "history"),
    ],
)  # fmt: skip
def test_what_can_be_mended_is(record: Record, expected: Record, change: str) -> None:
    mended, changes = cleaned(record)
    assert mended == expected
    assert change in " ".join(changes)


@pytest.mark.parametrize(
    "record, why",
    [
        (Record("a", "", " \n"), "empty response"),
        (Record("\x00", "", "e"), "no instruction"),
        (Record("a", "", "e\n###\n20. Instruction: b"), "another instruction"),
    ],
)
def test_what_cannot_be_mended_is_left_out(record: Record, why: str) -> None:
    mended, changes = cleaned(record)
    assert mended is None
    assert why in changes[0]


def test_a_row_that_was_there_before_is_left_out() -> None:
    assert cleaned(GOOD, is_new=False) == (None, ["left out: the same as an earlier row"])


@pytest.mark.parametrize("text", ["no input device found", "noinputs", "input", "N/A", "No"])
def test_inputs_that_only_look_like_placeholders_stay(text: str) -> None:
    assert cleaned(Record("a", text, "e")) == (Record("a", text, "e"), [])
