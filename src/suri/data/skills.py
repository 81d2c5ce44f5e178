"""The bundled rows: skills whose answers follow from a rule, so that each can be checked."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle
from random import Random
from typing import TypeVar

from suri.data import words
from suri.data.records import Record

LICENCE = "CC0-1.0"
HELD_OUT_EVERY = 5
HELD_OUT_PHRASINGS = 2

Entry = TypeVar("Entry")


@dataclass(frozen=True)
class Pick:
    """Draws from tables, either their entries for training or the ones for held-out rows."""

    random: Random
    held_out: bool

    def some(self, table: Sequence[Entry], count: int) -> list[Entry]:
        """Different entries of a table; every fifth belongs to the held-out rows alone."""
        last = HELD_OUT_EVERY - 1
        mine = [e for i, e in enumerate(table) if (i % HELD_OUT_EVERY == last) == self.held_out]
        return self.random.sample(mine, count)

    def one(self, table: Sequence[Entry]) -> Entry:
        """One entry of a table."""
        return self.some(table, 1)[0]

    def any(self, choices: Sequence[Entry]) -> Entry:
        """One of several classes or forms, which training and held-out rows share."""
        return self.random.choice(choices)


@dataclass(frozen=True)
class Skill:
    """How to draw content with its answer, and how to ask.

    A phrasing with {} takes the content into the instruction, otherwise the content is the input.
    The last two phrasings, one of each form, are for held-out rows.
    """

    draw: Callable[[Pick], tuple[str, str]]
    phrasings: tuple[str, ...]


SKILLS: dict[str, Skill] = {}


def skill(*phrasings: str) -> Callable[[Callable[[Pick], tuple[str, str]]], object]:
    """Register a function that draws (content, answer) as a skill of its name."""

    def register(draw: Callable[[Pick], tuple[str, str]]) -> object:
        SKILLS[draw.__name__] = Skill(draw, phrasings)
        return draw

    return register


@skill(
    "Is this review positive or negative?",
    "Positive or negative? {}",
    "Rate the review as positive or negative.",
    "Tell if the review is positive or negative.",
    "Is it positive or negative? {}",
)
def sentiment(pick: Pick) -> tuple[str, str]:
    """A review, and whether it is positive or negative."""
    label, table = pick.any([("positive", words.POSITIVE), ("negative", words.NEGATIVE)])
    form = pick.any(["The {} was {}.", "I found the {} {}.", "This {} is {}."])
    return form.format(pick.one(words.REVIEWED), pick.one(table)), label


@skill(
    "Is this an animal, a food or a tool?",
    "Animal, food or tool: {}?",
    "Name the kind: animal, food or tool.",
    "Choose animal, food or tool.",
    "Name the kind of {}: animal, food or tool.",
)
def kind(pick: Pick) -> tuple[str, str]:
    """A word, and its kind."""
    name = pick.any(list(words.KINDS))
    return pick.one(words.KINDS[name]), name


@skill(
    "Write the opposite.",
    "What is the opposite of {}?",
    "Give the opposite word.",
    "Name the opposite of this word.",
    "Write the opposite of {}.",
)
def opposite(pick: Pick) -> tuple[str, str]:
    """A word, and its opposite."""
    one, other = pick.random.sample(pick.one(words.OPPOSITES), 2)
    return one, other


@skill(
    "Write the plural.",
    "What is the plural of {}?",
    "Give the plural form.",
    "Name the plural of this word.",
    "Write the plural of {}.",
)
def plural(pick: Pick) -> tuple[str, str]:
    """A noun, and its plural."""
    noun = pick.one(words.THINGS)
    return noun, pluralise(noun)


@skill(
    "Write the date in words.",
    "Write {} with the month in words.",
    "Rewrite this date with the month's name.",
    "Put the month of this date in words.",
    "Write the date {} in words.",
)
def date(pick: Pick) -> tuple[str, str]:
    """A date as 2024-03-05, and as 5 March 2024."""
    year, month, day = pick.one(range(1960, 2040)), pick.any(range(1, 13)), pick.any(range(1, 29))
    return f"{year}-{month:02}-{day:02}", f"{day} {words.MONTHS[month - 1]} {year}"


@skill(
    "Extract name and city as JSON.",
    "Give name and city as JSON: {}",
    "Write the name and the city as JSON.",
    "Turn it into JSON with name and city.",
    "Extract name and city as JSON: {}",
)
def person(pick: Pick) -> tuple[str, str]:
    """A sentence about a person, and the person as JSON."""
    name, city = pick.one(words.NAMES), pick.one(words.CITIES)
    form = pick.any(["{} lives in {}.", "{} moved to {}.", "{} works in {}.", "{} is from {}."])
    return form.format(name, city), json.dumps({"name": name, "city": city})


@skill(
    "Swap the two words.",
    "Swap these words: {}",
    "Write the words in reverse order.",
    "Reverse the order of the two words.",
    "Swap the words: {}",
)
def swap(pick: Pick) -> tuple[str, str]:
    """Two words, and the same in the other order."""
    one, other = pick.some(words.THINGS, 2)
    return f"{one} {other}", f"{other} {one}"


@skill(
    "Count the words.",
    "How many words are here: {}",
    "How many words are there?",
    "Give the number of words.",
    "Count the words: {}",
)
def count(pick: Pick) -> tuple[str, str]:
    """Two to six words, and their number."""
    number = pick.any(range(2, 7))
    return " ".join(pick.some(words.THINGS, number)), str(number)


@skill(
    "Is the first word in the list?",
    "Is the word in the list? {}",
    "Tell if the list has the word.",
    "Does the list have the first word?",
    "Is the first word in the list? {}",
)
def member(pick: Pick) -> tuple[str, str]:
    """A word with a list, and whether the word is in it."""
    asked, *listed = pick.some(words.THINGS, 4)
    answer = pick.any(["yes", "no"])
    if answer == "yes":
        listed[pick.any(range(3))] = asked
    return f"{asked}: {', '.join(listed)}", answer


@skill(
    "Write the number in digits.",
    "Write {} in digits.",
    "Use digits for this number.",
    "Give the number in digits.",
    "Write the number {} in digits.",
)
def digits(pick: Pick) -> tuple[str, str]:
    """A number below 100 in words, and in digits."""
    number = pick.one(range(100))
    return spell(number), str(number)


@skill(
    "Write the last word of the list.",
    "What is the last word? {}",
    "Name the last word.",
    "Give the last word of the list.",
    "Write the last word: {}",
)
def last(pick: Pick) -> tuple[str, str]:
    """Three words, and the last of them."""
    listed = pick.some(words.THINGS, 3)
    return ", ".join(listed), listed[-1]


def make_rows(rows: int, seed: int, *, held_out: bool = False) -> list[Record]:
    """Make `rows` different rows, every skill in turn; fewer rows of a seed are the first of more.

    Held-out rows share no entry of a table and no phrasing with the others. Of many thousands of
    rows more are of the skills with long contents, since the others have no more that differ.
    """
    pick = Pick(Random(f"{seed} held out" if held_out else f"{seed}"), held_out)
    made: dict[tuple[str, str], Record] = {}
    skills = cycle(SKILLS)
    while len(made) < rows:
        record = _draw(next(skills), pick)
        made.setdefault((record.instruction, record.input), record)
    return list(made.values())


def is_correct(record: Record, answer: str) -> bool | None:
    """Whether the answer is exactly the record's, blanks around it apart; None: not checkable."""
    return answer.strip() == record.output.strip() if record.skill in SKILLS else None


def pluralise(noun: str) -> str:
    """The regular English plural."""
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + ("es" if noun.endswith(("s", "x", "ch", "sh")) else "s")


def spell(number: int) -> str:
    """A number from 0 to 99 in English words."""
    if number < len(words.UNITS):
        return words.UNITS[number]
    tens, units = divmod(number, 10)
    return words.TENS[tens - 2] + (f"-{words.UNITS[units]}" if units else "")


def _draw(name: str, pick: Pick) -> Record:
    """One row of the skill."""
    asked = SKILLS[name].phrasings
    shared = len(asked) - HELD_OUT_PHRASINGS
    phrasing = pick.any(asked[shared:] if pick.held_out else asked[:shared])
    content, answer = SKILLS[name].draw(pick)
    if "{}" in phrasing:
        return Record(phrasing.replace("{}", content), "", answer, name)
    return Record(phrasing, content, answer, name)
