"""The bundled rows' answers, worked out from their text by other means than they were made."""

import re
from datetime import date, datetime

from suri.data.records import Record
from suri.data.skills import WORDS


def asked(record: Record, language: str) -> tuple[str, str]:
    """Phrasing and content; the phrasing is the closest of those that may wrap the content."""
    if record.input:
        return record.instruction, record.input
    found = []
    for phrasing in WORDS[language].phrasings[record.skill]:
        before, gap, after = phrasing.partition("{}")
        text = record.instruction
        if gap and text.startswith(before) and text.endswith(after):
            found.append((phrasing, text[len(before) : len(text) - len(after)]))
    return min(found, key=lambda pair: len(pair[1]))


def solve(record: Record, language: str) -> str:
    """The answer, worked out from the row's text in another way than it was made."""
    words, (_, text) = WORDS[language], asked(record, language)
    numbers = [int(number) for number in re.findall(r"\d+", text)]
    listed = re.split(r"[\s,、]+", text)
    return {
        "sentiment": lambda: table_of(text.rstrip(".。"), words.reviews),
        "kind": lambda: table_of(text, words.kinds),
        "opposite": lambda: opposite(text, words.opposites),
        "plural": lambda: re.sub(
            r"(s|x|ch|sh)s$", r"\1es", re.sub("([^aeiou])ys$", r"\1ies", text + "s")
        ),
        "classifier": lambda: dict(words.classifiers)[text.partition("）")[2]],
        "date": lambda: written_date(date.fromisoformat(text), language),
        "person": lambda: person(text, language),
        "swap": lambda: " ".join(reversed(text.split(" "))),
        "digits": lambda: str(value(text) if language == "en" else chinese_value(text)),
        "last": lambda: listed[-1],
        "array": lambda: '["' + '", "'.join(listed) + '"]',
        "year": lambda: str(numbers[0]),
        "unit": lambda: convert(text, language),
        "time": lambda: day_time(text, language),
        "larger": lambda: str(numbers[numbers[0] < numbers[1]]),
    }[record.skill]()


def table_of(text: str, tables: dict[str, tuple[str, ...]]) -> str:
    """The name of the table that has the longest end of the text."""
    ends = [text[start:] for start in range(len(text))]
    return next(name for end in ends for name, table in tables.items() if end in table)


def opposite(text: str, pairs: tuple[tuple[str, str], ...]) -> str:
    """The other word of the pair that the end of the text belongs to."""
    asked_for = re.split(r"，| ", text.replace(" and ...", "").replace("对……", ""))[-1]
    return next(b if a == asked_for else a for a, b in pairs if asked_for in (a, b))


def written_date(day: date, language: str) -> str:
    if language == "zh":
        return f"{day.year}年{day.month}月{day.day}日"
    return re.sub("^0", "", day.strftime("%d %B %Y"))


def person(text: str, language: str) -> str:
    if language == "en":
        name, *_, city = re.findall(r"\w+", text)
        return f'{{"name": "{name}", "city": "{city}"}}'
    name = text[:2]
    city = re.search("(?:住在|在|搬到了|来自|出生在)(.+?)(?:工作|上学)?。$", text[2:])
    assert city
    return f'{{"姓名": "{name}", "城市": "{city[1]}"}}'


def value(text: str) -> int:
    """The value of English words: the words before hundred and thousand multiply them."""
    total = part = 0
    for word in re.findall(r"\w+", text.replace(" and ", " ")):
        if word == "thousand":
            total, part = part * 1000, 0
        elif word == "hundred":
            part *= 100
        else:
            part += WORD_VALUES[word]
    return total + part


WORD_VALUES = {"zero": 0, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6,
    "seven": 7, "eight": 8, "nine": 9, "ten": 10, "eleven": 11, "twelve": 12, "thirteen": 13,
    "fourteen": 14, "fifteen": 15, "sixteen": 16, "seventeen": 17, "eighteen": 18, "nineteen": 19,
    "twenty": 20, "thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "seventy": 70, "eighty": 80,
    "ninety": 90}  # fmt: skip


def chinese_value(text: str) -> int:
    """The value of Chinese words: each unit takes the digit before it, or one."""
    units, total, digit = {"十": 10, "百": 100, "千": 1000}, 0, 0
    for sign in text:
        if sign in units:
            total, digit = total + (digit or 1) * units[sign], 0
        else:
            digit = 2 if sign == "两" else "零一二三四五六七八九".index(sign)
    return total + digit


METRES_LITRES_GRAMS = {
    "km": 1_000_000, "m": 1000, "cm": 10, "mm": 1, "l": 1000, "ml": 1, "t": 1_000_000, "kg": 1000,
    "g": 1, "公里": 1_000_000, "米": 1000, "厘米": 10, "毫米": 1, "升": 1000, "毫升": 1,
    "吨": 1_000_000, "千克": 1000, "克": 1,
}  # fmt: skip
"""Every unit in the smallest of its kind."""


def convert(text: str, language: str) -> str:
    found = re.fullmatch(r"(\d+) ?(\D+?) = \? ?(\D+)", text)
    assert found
    number, given, wanted = int(found[1]), found[2], found[3]
    quotient, rest = divmod(number * METRES_LITRES_GRAMS[given], METRES_LITRES_GRAMS[wanted])
    assert rest == 0
    return f"{quotient}{' ' * (language == 'en')}{wanted}"


def day_time(text: str, language: str) -> str:
    """The time as the standard library reads it."""
    if language == "zh":
        half, hour, minute = re.fullmatch("(..)(.+)点(.+)分", text).groups()
        text = f"{hour}:{minute} {'am' if half == '上午' else 'pm'}"
    return datetime.strptime(text, "%I:%M %p").strftime("%H:%M")
