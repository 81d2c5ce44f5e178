"""What each skill of the bundled rows is about: content drawn from tables, and its answer."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from suri.data.words import Words

EVERY_WORD = 5
EVERY_NUMBER = 7
"""Coprime to ten, so that held-out numbers end in every digit, as the others do."""

Entry = TypeVar("Entry")


@dataclass
class Pick:
    """Choices read off a number, as its digits in a mixed base: another number, other choices.

    `size` is the product of the bases so far, so that after a row it is how many numbers, and
    rows, there are. That holds as long as no base depends on an earlier choice.
    """

    words: Words
    held_out: bool
    number: int = 0
    size: int = 1

    def any(self, choices: Sequence[Entry]) -> Entry:
        """One of several classes or forms, which training and held-out rows share."""
        return choices[self._digit(len(choices))]

    def one(self, table: Sequence[Entry]) -> Entry:
        """One entry of a table."""
        return self.some(table, 1)[0]

    def some(self, table: Sequence[Entry], count: int) -> list[Entry]:
        """Different entries; every fifth word, or seventh number, is for held-out rows alone."""
        every = EVERY_NUMBER if isinstance(table, range) else EVERY_WORD
        held_out = len(table) // every
        mine = held_out if self.held_out else len(table) - held_out
        places: list[int] = []
        for used in range(count):
            place = self._digit(mine - used)
            for taken in sorted(places):
                place += place >= taken
            places.append(place)
        if self.held_out:
            return [table[(place + 1) * every - 1] for place in places]
        return [table[place + place // (every - 1)] for place in places]

    def _digit(self, base: int) -> int:
        self.size *= base
        self.number, digit = divmod(self.number, base)
        return digit


def sentiment(pick: Pick) -> tuple[str, str]:
    """A review, and whether it is positive or negative."""
    label, table = pick.any(list(pick.words.reviews.items()))
    form = pick.any(pick.words.review_forms)
    return form.format(pick.one(pick.words.reviewed), pick.one(table)), label


def kind(pick: Pick) -> tuple[str, str]:
    """A thing with a quality, and its kind."""
    name, table = pick.any(list(pick.words.kinds.items()))
    return pick.words.described.format(pick.one(pick.words.qualities), pick.one(table)), name


def opposite(pick: Pick) -> tuple[str, str]:
    """A pair of opposites and a word, and the word's opposite."""
    shown, asked = pick.some(pick.words.opposites, 2)
    one, other = pick.any((asked, asked[::-1]))
    return pick.words.opposed.format(*pick.any((shown, shown[::-1])), one), other


def plural(pick: Pick) -> tuple[str, str]:
    """A number with a noun in the singular, and in the plural."""
    number, noun = pick.one(range(2, 100)), pick.one(pick.words.things)
    return f"{number} {noun}", f"{number} {pluralise(noun)}"


def classifier(pick: Pick) -> tuple[str, str]:
    """A number and a noun with a gap between them, and the measure word that fills it."""
    number, (noun, word) = pick.one(range(3, 100)), pick.one(pick.words.classifiers)
    return f"{pick.words.spell(number)}（）{noun}", word


def date(pick: Pick) -> tuple[str, str]:
    """A date as 2024-03-05, and as people write it."""
    year, month, day = pick.one(range(1900, 2100)), pick.any(range(1, 13)), pick.any(range(1, 29))
    name = pick.words.months[month - 1]
    written = pick.words.date_form.format(year=year, month=name, day=day)
    return f"{year}-{month:02}-{day:02}", written


def person(pick: Pick) -> tuple[str, str]:
    """A sentence about a person, and the person as JSON."""
    facts = pick.one(pick.words.names), pick.one(pick.words.cities)
    answer = dict(zip(pick.words.person_keys, facts, strict=True))
    form = pick.any(pick.words.person_forms)
    return form.format(*facts), json.dumps(answer, ensure_ascii=False)


def swap(pick: Pick) -> tuple[str, str]:
    """Two words, and the same in the other order."""
    one, other = pick.some(pick.words.things, 2)
    return f"{one} {other}", f"{other} {one}"


def digits(pick: Pick) -> tuple[str, str]:
    """A number below 10000 in words, and in digits."""
    number = pick.one(range(10000))
    return pick.words.spell(number), str(number)


def last(pick: Pick) -> tuple[str, str]:
    """Three words, and the last of them."""
    listed = pick.some(pick.words.things, 3)
    return pick.words.comma.join(listed), listed[-1]


def array(pick: Pick) -> tuple[str, str]:
    """Three words, and the same as JSON."""
    listed = pick.some(pick.words.things, 3)
    return pick.words.comma.join(listed), json.dumps(listed, ensure_ascii=False)


def year(pick: Pick) -> tuple[str, str]:
    """A sentence about a place, and the year that it names."""
    place, number = pick.one(pick.words.places), pick.one(range(1800, 2025))
    return pick.any(pick.words.year_forms).format(place, number), str(number)


def unit(pick: Pick) -> tuple[str, str]:
    """A measure with the unit that is asked for, and the measure in that unit."""
    number, (large, small, zeros) = pick.one(range(1, 5000)), pick.any(pick.words.units)
    form = pick.words.measured.format
    return f"{form(number, large)} = {form('?', small)}", form(number * 10**zeros, small)


def time(pick: Pick) -> tuple[str, str]:
    """A time of the 12-hour clock, and of the 24-hour clock; not at 12, which people confuse."""
    half, hour, minute = pick.any((0, 1)), pick.any(range(1, 12)), pick.one(range(1, 60))
    name = pick.words.halves[half]
    given = pick.words.time_form.format(half=name, hour=hour, minute=minute)
    return given, f"{hour + 12 * half:02}:{minute:02}"


def larger(pick: Pick) -> tuple[str, str]:
    """Two numbers below 10000, and the larger of them."""
    numbers = pick.some(range(10000), 2)
    return pick.words.comma.join(map(str, numbers)), str(max(numbers))


def pluralise(noun: str) -> str:
    """The regular English plural."""
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + ("es" if noun.endswith(("s", "x", "ch", "sh")) else "s")


Draw = Callable[[Pick], tuple[str, str]]
SKILLS: dict[str, Draw] = {
    draw.__name__: draw
    for draw in (
        *(sentiment, kind, opposite, plural, classifier, date, person, swap, digits),
        *(last, array, year, unit, time, larger),
    )
}
