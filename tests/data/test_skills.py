"""The bundled rows: answers worked out again by other means, no leaks, no repeats."""

import json
import re
from collections import Counter
from itertools import islice
from random import Random

import pytest
from solve import asked, chinese_value, solve, value

from suri.data.draws import Pick
from suri.data.records import Record
from suri.data.skills import (
    SKILLS,
    WORDS,
    count_rows,
    draw_rows,
    in_turn,
    is_correct,
    make_rows,
    shuffle,
)
from suri.errors import UsageError

LANGUAGES = tuple(WORDS)
TRAIN = {language: make_rows(3000, 42, language=language) for language in LANGUAGES}
HELD_OUT = {
    language: make_rows(600, 42, held_out=True, language=language) for language in LANGUAGES
}
both_languages = pytest.mark.parametrize("language", LANGUAGES)


@both_languages
def test_a_language_has_enough_skills_in_equal_numbers(language: str) -> None:
    for rows in (TRAIN[language], HELD_OUT[language], make_rows(20_000, 7, language=language)):
        counts = Counter(row.skill for row in rows)
        assert set(counts) == set(WORDS[language].phrasings) <= set(SKILLS)
        assert len(counts) >= 12
        assert max(counts.values()) - min(counts.values()) <= 1
        assert len({(row.instruction, row.input) for row in rows}) == len(rows)
        assert 0.4 < sum(not row.input for row in rows) / len(rows) < 0.6


@both_languages
def test_no_answer_is_the_usual_one(language: str) -> None:
    for skill in WORDS[language].phrasings:
        answers = Counter(row.output for row in TRAIN[language] if row.skill == skill)
        assert answers.most_common(1)[0][1] < 0.62 * answers.total()


def entries(record: Record, language: str) -> set[str]:
    """The entries of tables in a row, and its numbers as far as they are entries."""
    words, (_, text) = WORDS[language], asked(record, language)
    tables = {
        "sentiment": [words.reviewed, *words.reviews.values()],
        "kind": [words.things, words.qualities],
        "opposite": words.opposites,
        "person": [words.names, words.cities],
        "year": [words.places],
        "classifier": [[noun for noun, _ in words.classifiers]],
    }.get(record.skill, [words.things])
    if record.skill == "digits":
        return {record.output}
    if record.skill == "classifier":
        number, _, noun = re.split("([（）]+)", text)
        return {number, noun}
    numbers = re.findall(r"\d+", text)
    numbers = {"date": numbers[:1], "time": numbers[1:]}.get(record.skill, numbers)
    longest = sorted((word for table in tables for word in table), key=len, reverse=True)
    boundary = r"\b" if language == "en" else ""
    pattern = "|".join(boundary + re.escape(word) + boundary for word in longest)
    return {*re.findall(pattern, text), *numbers}


@both_languages
def test_held_out_rows_share_neither_content_nor_wording(language: str) -> None:
    wordings = [{asked(row, language)[0] for row in rows[language]} for rows in (TRAIN, HELD_OUT)]
    assert not wordings[0] & wordings[1]
    assert wordings[0] | wordings[1] == {
        p for all_ in WORDS[language].phrasings.values() for p in all_
    }
    for skill in WORDS[language].phrasings:
        seen, held_out = (
            set().union(*(entries(row, language) for row in rows[language] if row.skill == skill))
            for rows in (TRAIN, HELD_OUT)
        )
        assert seen
        assert held_out
        assert not seen & held_out, skill


@pytest.mark.parametrize("skill", ["digits", "larger", "unit", "year"])
def test_numbers_end_in_every_digit_held_out_or_not(skill: str) -> None:
    for rows in (TRAIN["en"], HELD_OUT["en"], make_rows(2000, 5, held_out=True)):
        numbers = [
            row.output if skill == "digits" else re.findall(r"\d+", asked(row, "en")[1])[0]
            for row in rows
            if row.skill == skill
        ]
        assert {number[-1] for number in numbers} == {*"0123456789"}


@both_languages
def test_no_two_wordings_are_the_same(language: str) -> None:
    wordings = [phrasing for all_ in WORDS[language].phrasings.values() for phrasing in all_]
    assert len(set(wordings)) == len(wordings)
    for skill, phrasings in WORDS[language].phrasings.items():
        assert len(phrasings) == 6, skill
        assert sum("{}" in phrasing for phrasing in phrasings[-2:]) == 1


@both_languages
def test_the_tables_repeat_nothing(language: str) -> None:
    words = WORDS[language]
    reviews = sum(words.reviews.values(), ())
    paired = [word for pair in words.opposites for word in pair]
    nouns = [noun for noun, _ in words.classifiers]
    tables = [words.things, words.names, words.cities, words.reviewed, words.places, reviews]
    for table in (*tables, words.qualities, paired, nouns):
        assert len(set(table)) == len(table)
    for tables in (words.kinds, words.reviews):  # one size, so that each is as likely
        assert len({len(table) for table in tables.values()}) == 1


@pytest.mark.parametrize("language", [*LANGUAGES, "both"])
def test_fewer_rows_are_the_first_of_more_and_a_seed_is_its_own(language: str) -> None:
    rows = make_rows(300, 42, language=language)
    assert make_rows(70, 42, language=language) == rows[:70]
    assert not {row.input for row in make_rows(70, 43, language=language)[:9]} & {
        row.input for row in rows[:9] if row.input
    }
    assert make_rows(0, 42, language=language) == []
    assert list(islice(draw_rows(10**6, 42, language=language), 70)) == rows[:70]


def test_both_languages_take_turns() -> None:
    rows = make_rows(200, 42, language="both")
    assert rows[::2] == TRAIN["en"][:100]
    assert rows[1::2] == TRAIN["zh"][:100]


def test_a_skill_whose_rows_are_used_up_is_left_out() -> None:
    rows = make_rows(20_000, 1, held_out=True)
    counts = Counter(row.skill for row in rows)
    assert len({(row.instruction, row.input) for row in rows}) == len(rows)
    for skill, count in counts.items():
        assert count <= count_rows(skill, "en", held_out=True)
    # 2 wordings, 20 words of each kind and 6 qualities; 22 hours and 8 minutes
    assert counts["kind"] == 2 * 3 * 12 * 6
    assert counts["time"] == 2 * 22 * 8
    assert counts["larger"] < 20_000 / 4


def test_more_rows_than_there_are_and_unknown_languages_are_refused() -> None:
    with pytest.raises(UsageError, match="too many"):
        make_rows(10**9, 1)
    with pytest.raises(UsageError, match="en, zh, both"):
        make_rows(10, 1, language="de")


@both_languages
@pytest.mark.parametrize("held_out", [False, True])
def test_every_number_below_the_size_is_a_row_of_its_own(language: str, held_out: bool) -> None:
    for skill in WORDS[language].phrasings:
        size = count_rows(skill, language, held_out)
        phrasings = 2 if held_out else 4
        drawn = set()
        for number in Random(1).sample(range(size // phrasings), 150):
            pick = Pick(WORDS[language], held_out, number)
            drawn.add(SKILLS[skill](pick))
            assert pick.size * phrasings == size
            assert pick.number == 0
        assert len(drawn) == 150


@pytest.mark.parametrize("size", [1, 2, 3, 100, 1023, 1024, 1025])
def test_a_shuffle_has_every_number_once(size: int) -> None:
    assert sorted(shuffle(size, Random(5))) == list(range(size))


def test_a_shuffle_starts_anywhere() -> None:
    first = [next(shuffle(1000, Random(seed))) for seed in range(1000)]
    assert 450 < sum(first) / len(first) < 550
    assert all(60 < sum(n // 100 == tenth for n in first) < 140 for tenth in range(10))


def test_streams_take_turns_until_all_have_ended() -> None:
    assert list(in_turn([iter("ab"), iter(""), iter("cdef")])) == list("acbdef")


@pytest.mark.slow
@pytest.mark.parametrize("language", LANGUAGES)
def test_a_million_rows_differ_and_no_skill_crowds_the_others_out(language: str) -> None:
    seen, counts = set(), Counter()
    for row in draw_rows(10**6, 3, language=language):
        seen.add(hash((row.instruction, row.input)))
        counts[row.skill] += 1
    assert len(seen) > 10**6 - 3  # 64 bits of a hash may meet by chance
    assert max(counts.values()) < 10**6 / 10


@both_languages
def test_every_answer_is_what_the_row_asks_for(language: str) -> None:
    for record in TRAIN[language] + HELD_OUT[language]:
        assert record.output == solve(record, language), record


@pytest.mark.parametrize(
    "language, number, written",
    [
        ("en", 0, "zero"), ("en", 19, "nineteen"), ("en", 40, "forty"), ("en", 37, "thirty-seven"),
        ("en", 100, "one hundred"), ("en", 305, "three hundred and five"),
        ("en", 1054, "one thousand and fifty-four"), ("en", 7000, "seven thousand"),
        ("en", 3705, "three thousand seven hundred and five"),
        ("zh", 0, "零"), ("zh", 10, "十"), ("zh", 12, "十二"), ("zh", 20, "二十"),
        ("zh", 37, "三十七"), ("zh", 110, "一百一十"), ("zh", 205, "二百零五"),
        ("zh", 2000, "两千"), ("zh", 3005, "三千零五"), ("zh", 1010, "一千零一十"),
        ("zh", 9990, "九千九百九十"), ("zh", 3705, "三千七百零五"),
    ],
)  # fmt: skip
def test_numbers_are_written_as_people_do(language: str, number: int, written: str) -> None:
    assert WORDS[language].spell(number) == written


@pytest.mark.parametrize("language, read", [("en", value), ("zh", chinese_value)])
def test_every_number_is_read_back(language: str, read) -> None:
    assert [read(WORDS[language].spell(number)) for number in range(10_000)] == [*range(10_000)]


def test_the_json_answers_are_json() -> None:
    for language, keys in (("en", {"name", "city"}), ("zh", {"姓名", "城市"})):
        for row in TRAIN[language]:
            if row.skill == "person":
                assert json.loads(row.output).keys() == keys
            if row.skill == "array":
                assert all(word in WORDS[language].things for word in json.loads(row.output))


def test_answers_are_compared_exactly_and_only_where_a_rule_decides() -> None:
    record = Record("Animal, food or tool: the red hen?", "", "animal", "kind")
    assert is_correct(record, " animal\n") is True
    for wrong in ("Animal", "animal.", "It is an animal", ""):
        assert is_correct(record, wrong) is False
    assert is_correct(Record("填量词：三（）书", "", "本", "classifier"), "本") is True
    assert is_correct(Record("Say it.", "", "it"), "it") is None
    assert is_correct(Record("Say it.", "", "it", "unknown"), "it") is None
