"""The prompt: the one place where instruction and input become the text that a model reads."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from suri.data.chat_template import (
    MAX_LENGTH,
    PROMPT_FILE,
    ChatPrompt,
    Special,
    Turn,
    chat_prompt,
    question_of,
    saved_chat_prompt,
)
from suri.data.records import Record
from suri.data.tokenizer import Tokenizer
from suri.errors import Corrupt, UsageError
from suri.files import write_json
from suri.reading import read_json

__all__ = ["PROMPT_FILE", "Prompt", "Special", "TextPrompt", "Turn", "find_prompt", "read_prompt"]

DEFAULT = "alpaca"
TEMPLATES = Path(__file__).with_name("templates")


@dataclass(frozen=True)
class TextPrompt:
    """A template in two variants, each up to where the response starts.

    The file format is alpaca-lora's (templates/ of github.com/tloen/alpaca-lora): `prompt_input`
    and `prompt_no_input` with {instruction} and {input}. `next_turn`, with {instruction}, asks the
    later turns of a conversation; without it, they are asked like the first one.
    """

    name: str
    with_input: str
    without_input: str
    next_turn: str = ""
    adds_bos: ClassVar[bool] = True
    """Encoding puts the tokenizer's BOS, if it has one, before the first turn."""

    def render(self, record: Record) -> str:
        """The prompt text of a record by itself, without the response."""
        template = self.with_input if record.input else self.without_input
        return _fill(template, {"{instruction}": record.instruction, "{input}": record.input})

    def turns(self, record: Record) -> list[Turn]:
        """The record's turns; the system text stands before the first, above a blank line."""
        opening, *later = [*(Record(asked, "", said) for asked, said in record.history), record]
        system = f"{record.system}\n\n" if record.system else ""
        first = Turn((system + self.render(opening),), opening.output)
        return [first, *(Turn((self._later(each),), each.output) for each in later)]

    def save(self, folder: Path) -> None:
        """Write prompt.json, which `read_prompt` reads."""
        texts = {"prompt_input": self.with_input, "prompt_no_input": self.without_input}
        texts |= {"next_turn": self.next_turn} if self.next_turn else {}
        write_json(folder / PROMPT_FILE, {"name": self.name, **texts})

    def _later(self, record: Record) -> str:
        if not self.next_turn:
            return "\n\n" + self.render(record)
        return _fill(self.next_turn, {"{instruction}": question_of(record)})


Prompt = TextPrompt | ChatPrompt
"""How a record is put to a model: as turns, of which EOS ends each."""


def find_prompt(name_or_path: str, tokenizer: Tokenizer | None = None) -> Prompt:
    """The template of that name, or the one in a file of a user's.

    "chat" is the chat template that the base's `tokenizer` comes with.

    Raises UsageError with the names when there is neither, or when the base's chat template is of
    no use, and Corrupt when the file is no template.
    """
    names = sorted(path.stem for path in TEMPLATES.glob("*.json"))
    choices = f"choose {' or '.join([*names, ChatPrompt.name])}"
    if name_or_path in names:
        return _read(TEMPLATES / f"{name_or_path}.json")
    if name_or_path == ChatPrompt.name:
        template = tokenizer.chat_template if tokenizer else None
        if tokenizer is None or template is None:
            raise UsageError("the base has no chat template", do=f"choose {' or '.join(names)}")
        return chat_prompt(template, tokenizer)
    path = Path(name_or_path)
    if not path.is_file():
        raise UsageError(
            f"there is no prompt template {name_or_path!r}",
            do=f"{choices}, or give the path of a JSON file with a template",
        )
    if path.stat().st_size > MAX_LENGTH:
        raise UsageError(f"{path} is too large for a prompt template", found="over 1 MB")
    return _read(path)


def read_prompt(folder: Path) -> Prompt:
    """The template saved with a model or adapter; one without prompt.json has alpaca's."""
    path = folder / PROMPT_FILE
    return _read(path) if path.exists() else find_prompt(DEFAULT)


def _fill(template: str, values: dict[str, str]) -> str:
    # One pass over the template alone: braces in a user's text stay what they are.
    return re.sub("|".join(map(re.escape, values)), lambda found: values[found[0]], template)


def _read(path: Path) -> Prompt:
    value = read_json(path)
    if isinstance(value, dict) and "chat_template" in value:
        return saved_chat_prompt(value, path)
    problems = list(_problems(value))
    if problems:
        raise Corrupt(
            f"{path} is not a prompt template",
            found="; ".join(problems),
            do='write {"prompt_input": "… {instruction} … {input} …", '
            '"prompt_no_input": "… {instruction} …"}',
        )
    name, later = str(value.get("name") or path.stem), value.get("next_turn", "")
    return TextPrompt(name, value["prompt_input"], value["prompt_no_input"], later)


def _problems(value: Any) -> list[str]:
    if not isinstance(value, dict):
        return ["it does not hold one JSON object"]
    needed = {"prompt_input": ("{instruction}", "{input}"), "prompt_no_input": ("{instruction}",)}
    if "next_turn" in value:
        needed["next_turn"] = ("{instruction}",)
    return [
        f"{key} must be text with {' and '.join(places)}"
        for key, places in needed.items()
        if not isinstance(value.get(key), str) or not all(p in value[key] for p in places)
    ]
