"""The bundled rows: answers worked out again by other means, no leaks, no repeats."""

import json
import re
from collections import Counter
from datetime import date

from suri.data import words
from suri.data.records import Record
from suri.data.skills import SKILLS, is_correct, make_rows

TRAIN = make_rows(2000, 42)
HELD_OUT = make_rows(200, 42, held_out=True)


def content(record: Record) -> str:
    """What the row is about, taken out of the closest of the phrasings that may wrap it."""
    if record.input:
        return record.input
    asked = (phrasing.partition("{}") for phrasing in SKILLS[record.skill].phrasings)
    wrapped = [
        record.instruction[len(before) : len(record.instruction) - len(after)]
        for before, found, after in asked
        if found and record.instruction.startswith(before) and record.instruction.endswith(after)
    ]
    return min(wrapped, key=len)


def table_words(text: str) -> set[str]:
    """The words of a row that come from the tables."""
    tables = {*words.THINGS, *words.POSITIVE, *words.NEGATIVE, *words.REVIEWED}
    tables |= {*words.NAMES, *words.CITIES, *(word for pair in words.OPPOSITES for word in pair)}
    return set(re.findall(r"\w+", text)) & tables


def test_there_are_enough_different_rows_of_every_skill() -> None:
    for rows, count in ((TRAIN, 2000), (HELD_OUT, 200)):
        assert len({(row.instruction, row.input) for row in rows}) == len(rows) == count
        by_skill = Counter(row.skill for row in rows)
        assert set(by_skill) == set(SKILLS)
        assert min(by_skill.values()) > count / len(SKILLS) / 2
        assert 0.2 < sum(not row.input for row in rows) / count < 0.7


def test_held_out_rows_share_neither_content_nor_wording() -> None:
    seen = {(row.skill, content(row)) for row in TRAIN}
    assert not seen & {(row.skill, content(row)) for row in HELD_OUT}
    assert not words_of(TRAIN) & words_of(HELD_OUT)
    for one in SKILLS.values():
        assert len(set(one.phrasings)) == len(one.phrasings) == 5
        assert sum("{}" in phrasing for phrasing in one.phrasings[-2:]) == 1


def words_of(rows: list[Record]) -> set[str]:
    return set().union(*(table_words(content(row)) for row in rows))


def test_fewer_rows_are_the_first_of_more_and_a_seed_is_its_own() -> None:
    assert make_rows(70, 42) == TRAIN[:70]
    assert make_rows(70, 43) != TRAIN[:70]
    assert make_rows(0, 42) == []


def solve(record: Record) -> str:
    """The answer, worked out from the row's text in another way than it was made."""
    text = content(record)
    listed = re.findall(r"\w+", text)
    return {
        "sentiment": lambda: "positive" if {*listed} & {*words.POSITIVE} else "negative",
        "kind": lambda: next(k for k, table in words.KINDS.items() if text in table),
        "opposite": lambda: next(
            {*pair}.difference([text]).pop() for pair in words.OPPOSITES if text in pair
        ),
        "plural": lambda: re.sub(
            r"(s|x|ch|sh)s$", r"\1es", re.sub("([^aeiou])ys$", r"\1ies", text + "s")
        ),
        "date": lambda: re.sub("^0", "", date.fromisoformat(text).strftime("%d %B %Y")),
        "person": lambda: f'{{"name": "{listed[0]}", "city": "{listed[-1]}"}}',
        "swap": lambda: " ".join(reversed(text.split(" "))),
        "count": lambda: str(text.count(" ") + 1),
        "member": lambda: "yes" if listed[0] in listed[1:] else "no",
        "digits": lambda: str(number(text)),
        "last": lambda: text.rpartition(", ")[2],
    }[record.skill]()


def number(text: str) -> int:
    tens, _, units = text.rpartition("-")
    if text in words.TENS:
        tens, units = text, "zero"
    return 10 * (words.TENS.index(tens) + 2 if tens else 0) + words.UNITS.index(units)


def test_every_answer_is_what_the_row_asks_for() -> None:
    for record in TRAIN + HELD_OUT:
        assert record.output == solve(record), record


def test_answers_are_compared_exactly_and_only_where_a_rule_decides() -> None:
    record = Record("Animal, food or tool: hen?", "", "animal", "kind")
    assert is_correct(record, " animal\n") is True
    for wrong in ("Animal", "animal.", "It is an animal", ""):
        assert is_correct(record, wrong) is False
    assert is_correct(Record("Say it.", "", "it"), "it") is None
    assert is_correct(Record("Say it.", "", "it", "unknown"), "it") is None


def test_the_tables_repeat_nothing() -> None:
    for table in (words.THINGS, words.NAMES, words.CITIES, words.REVIEWED):
        assert len(set(table)) == len(table)
    both = words.POSITIVE + words.NEGATIVE
    assert len(set(both)) == len(both)
    paired = [word for pair in words.OPPOSITES for word in pair]
    assert len(set(paired)) == len(paired)
    assert json.loads(next(r.output for r in TRAIN if r.skill == "person")).keys() == {
        "name",
        "city",
    }
