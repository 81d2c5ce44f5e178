"""What the bundled rows are made of in each language: words, forms, phrasings, numbers in words."""

import re
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Table = tuple[str, ...]

BUNDLED = Path(__file__).with_name("bundled")


@dataclass(frozen=True)
class Words:
    """One file of `bundled/`, which says what each of its entries is for."""

    described: str
    opposed: str
    measured: str
    date_form: str
    time_form: str
    comma: str
    person_keys: tuple[str, str]
    halves: tuple[str, str]
    review_forms: Table
    person_forms: Table
    year_forms: Table
    units: tuple[tuple[str, str, int], ...]
    months: Table
    qualities: Table
    reviewed: Table
    names: Table
    cities: Table
    places: Table
    opposites: tuple[tuple[str, str], ...]
    kinds: dict[str, Table]
    reviews: dict[str, Table]
    phrasings: dict[str, Table]
    spell: Callable[[int], str]
    """A number from 0 to 9999 in words."""
    classifiers: tuple[tuple[str, str], ...] = ()
    """Chinese nouns, each with its measure word."""

    @property
    def things(self) -> Table:
        """The words of all kinds."""
        return sum(self.kinds.values(), ())


def read_words(language: str) -> Words:
    """The words of `en` or `zh`."""
    read = tomllib.loads((BUNDLED / f"{language}.toml").read_text(encoding="utf-8"))
    found = {name: _entry(value) for name, value in read.items()}
    found["opposites"] = tuple(tuple(pair.split("/")) for pair in found["opposites"])
    nouns = read.get("classifiers", {})
    found["classifiers"] = tuple((noun, word) for word in nouns for noun in nouns[word].split())
    return Words(**found, spell=SPELL[language])


def _entry(value: Any) -> Any:
    """Tables and lists as tuples; any other text as it is."""
    if isinstance(value, dict):
        return {name: _entry(each) for name, each in value.items()}
    if isinstance(value, list):
        return tuple(_entry(each) for each in value)
    return tuple(value.split()) if isinstance(value, str) and "\n" in value else value


UNITS: Table = _entry("""
zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen
sixteen seventeen eighteen nineteen
""")
TENS: Table = _entry("\ntwenty thirty forty fifty sixty seventy eighty ninety")
DIGITS = "零一二三四五六七八九"


def spell_english(number: int) -> str:
    """A number from 0 to 9999 in English words, as in "three thousand seven hundred and five"."""
    if number < len(UNITS):
        return UNITS[number]
    if number < 100:
        tens, units = divmod(number, 10)
        return TENS[tens - 2] + (f"-{UNITS[units]}" if units else "")
    size, name, joint = (100, "hundred", " and ") if number < 1000 else (1000, "thousand", " ")
    many, rest = divmod(number, size)
    joint = " and " if rest < 100 else joint
    return f"{UNITS[many]} {name}" + (joint + spell_english(rest) if rest else "")


def spell_chinese(number: int) -> str:
    """A number from 0 to 9999 in Chinese, as in 三千七百零五."""
    places = zip(f"{number:04}", ("千", "百", "十", ""), strict=True)
    written = "".join("零" if digit == "0" else DIGITS[int(digit)] + unit for digit, unit in places)
    text = re.sub("零+", "零", written).strip("零").replace("二千", "两千") or "零"
    return text.removeprefix("一") if text.startswith("一十") else text


SPELL = {"en": spell_english, "zh": spell_chinese}
