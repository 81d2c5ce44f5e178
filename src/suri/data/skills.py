"""The bundled rows: skills whose answers follow from a rule, so that each can be checked."""

from collections.abc import Iterable, Iterator
from itertools import islice
from random import Random
from typing import TypeVar

from suri.data.draws import SKILLS, Pick
from suri.data.records import Record
from suri.data.words import read_words
from suri.errors import UsageError

LICENCE = "CC0-1.0"
MOST_ROWS = 1_000_000
HELD_OUT_PHRASINGS = 2
WORDS = {language: read_words(language) for language in ("en", "zh")}
BOTH = "both"
LANGUAGES = (*WORDS, BOTH)

ROUNDS = 4

Item = TypeVar("Item")


def make_rows(
    rows: int, seed: int, *, held_out: bool = False, language: str = "en"
) -> list[Record]:
    """A list of what `draw_rows` draws."""
    return list(draw_rows(rows, seed, held_out=held_out, language=language))


def draw_rows(
    rows: int, seed: int, *, held_out: bool = False, language: str = "en"
) -> Iterator[Record]:
    """Draw `rows` different rows, every skill in turn; fewer rows of a seed are the first of more.

    `language` is en, zh, or both in turn, with the rows that each has alone. Held-out rows share no
    entry of a table and no phrasing with the others. A skill whose rows are used up is left out.
    Nothing that was drawn is remembered.

    Raises UsageError for another language, or for more rows than differ.
    """
    if language not in LANGUAGES:
        raise UsageError(f"no rows in language {language!r}", do=f"one of {', '.join(LANGUAGES)}")
    chosen = tuple(WORDS) if language == BOTH else (language,)
    skills = {one: tuple(WORDS[one].phrasings) for one in chosen}
    most = sum(count_rows(name, one, held_out) for one in chosen for name in skills[one])
    if rows > most:
        raise UsageError(
            f"{rows} rows are too many", found=f"{most} that differ", do="ask for fewer"
        )
    languages = [
        in_turn([_skill_rows(name, one, seed, held_out) for name in skills[one]]) for one in chosen
    ]
    return islice(in_turn(languages), rows)


def count_rows(name: str, language: str, held_out: bool) -> int:
    """How many different rows a skill has."""
    pick = Pick(WORDS[language], held_out)
    _row(name, pick)
    return pick.size


def is_correct(record: Record, answer: str) -> bool | None:
    """Whether the answer is exactly the record's, blanks around it apart; None: not checkable."""
    return answer.strip() == record.output.strip() if record.skill in SKILLS else None


def in_turn(streams: Iterable[Iterator[Item]]) -> Iterator[Item]:
    """One item of every stream in turn, until all have ended."""
    left = list(streams)
    while left:
        for stream in tuple(left):
            try:
                yield next(stream)
            except StopIteration:
                left.remove(stream)


def shuffle(size: int, random: Random) -> Iterator[int]:
    """The numbers below `size` in random order, in the memory of a few square roots of it.

    A Feistel network is a permutation of all numbers of so many bits; those outside the range go
    through again until they are inside (Black and Rogaway, Ciphers with Arbitrary Finite Domains).
    """
    bits = (size.bit_length() + 1) // 2
    rounds = [[random.getrandbits(bits) for _ in range(1 << bits)] for _ in range(ROUNDS)]
    for number in range(size):
        placed = size
        while placed >= size:
            left, right = number >> bits, number & (1 << bits) - 1
            for table in rounds:
                left, right = right, left ^ table[right]
            placed = number = left << bits | right
        yield placed


def _skill_rows(name: str, language: str, seed: int, held_out: bool) -> Iterator[Record]:
    """All rows of a skill, shuffled."""
    size = count_rows(name, language, held_out)
    random = Random(f"{seed} {language} {name}{' held out' * held_out}")
    for number in shuffle(size, random):
        yield _row(name, Pick(WORDS[language], held_out, number))


def _row(name: str, pick: Pick) -> Record:
    asked = pick.words.phrasings[name]
    mine = asked[-HELD_OUT_PHRASINGS:] if pick.held_out else asked[:-HELD_OUT_PHRASINGS]
    phrasing = pick.any(mine)
    content, answer = SKILLS[name](pick)
    if "{}" in phrasing:
        return Record(phrasing.replace("{}", content), "", answer, name)
    return Record(phrasing, content, answer, name)
