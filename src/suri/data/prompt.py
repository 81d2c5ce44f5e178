"""The prompt: the one place where instruction and input become the text that a model reads."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from suri.data.records import Record
from suri.errors import Corrupt, UsageError
from suri.files import read_json, write_json

PROMPT_FILE = "prompt.json"
DEFAULT = "alpaca"
TEMPLATES = Path(__file__).with_name("templates")


@dataclass(frozen=True)
class Prompt:
    """A template in two variants, each up to where the response starts.

    The text is alpaca-lora's (templates/alpaca.json of github.com/tloen/alpaca-lora), and so is
    the file format: `prompt_input` and `prompt_no_input` with {instruction} and {input}.
    """

    name: str
    with_input: str
    without_input: str

    def render(self, record: Record) -> str:
        """The prompt text of a record, without the response."""
        template = self.with_input if record.input else self.without_input
        values = {"{instruction}": record.instruction, "{input}": record.input}
        # One pass over the template alone: braces in a user's text stay what they are.
        return re.sub(r"\{(?:instruction|input)\}", lambda found: values[found[0]], template)

    def save(self, folder: Path) -> None:
        """Write prompt.json, which `read_prompt` reads."""
        texts = {"prompt_input": self.with_input, "prompt_no_input": self.without_input}
        write_json(folder / PROMPT_FILE, {"name": self.name, **texts})


def find_prompt(name_or_path: str) -> Prompt:
    """The template of that name, or the one in a file of a user's.

    Raises UsageError with the names when there is neither, Corrupt when the file is no template.
    """
    names = sorted(path.stem for path in TEMPLATES.glob("*.json"))
    if name_or_path in names:
        return _read(TEMPLATES / f"{name_or_path}.json")
    if Path(name_or_path).is_file():
        return _read(Path(name_or_path))
    raise UsageError(
        f"there is no prompt template {name_or_path!r}",
        do=f"choose {' or '.join(names)}, or give the path of a JSON file with a template",
    )


def read_prompt(folder: Path) -> Prompt:
    """The template saved with a model or adapter; one without prompt.json has alpaca's."""
    path = folder / PROMPT_FILE
    return _read(path) if path.exists() else find_prompt(DEFAULT)


def _read(path: Path) -> Prompt:
    value = read_json(path)
    problems = list(_problems(value))
    if problems:
        raise Corrupt(f"{path} is not a prompt template", found="; ".join(problems))
    name = str(value.get("name") or path.stem)
    return Prompt(name, value["prompt_input"], value["prompt_no_input"])


def _problems(value: Any) -> list[str]:
    if not isinstance(value, dict):
        return ["it does not hold one JSON object"]
    needed = {"prompt_input": ("{instruction}", "{input}"), "prompt_no_input": ("{instruction}",)}
    return [
        f"{key} must be text with {' and '.join(places)}"
        for key, places in needed.items()
        if not isinstance(value.get(key), str) or not all(p in value[key] for p in places)
    ]
