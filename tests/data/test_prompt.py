"""The alpaca prompt letter for letter, users' own templates, and texts full of braces."""

import json
from pathlib import Path

import pytest

from suri.data.prompt import find_prompt, read_prompt
from suri.data.records import Record
from suri.errors import Corrupt, UsageError

HEAD = "Below is an instruction that describes a task"
TAIL = "Write a response that appropriately completes the request.\n\n### Instruction:\n"


def test_the_alpaca_prompt_has_the_published_wording() -> None:
    prompt = find_prompt("alpaca")
    assert prompt.render(Record("Add.", "2, 3", "5")) == (
        f"{HEAD}, paired with an input that provides further context. {TAIL}"
        "Add.\n\n### Input:\n2, 3\n\n### Response:\n"
    )
    assert prompt.render(Record("Name a sea.", "", "")) == (
        f"{HEAD}. {TAIL}Name a sea.\n\n### Response:\n"
    )


@pytest.mark.parametrize("text", ["{input}", "{instruction} {0} {", "}}{{", r"\1 \g<0> %s $x"])
def test_braces_in_a_users_text_stay_text(text: str) -> None:
    rendered = find_prompt("alpaca").render(Record(text, f"<{text}>", ""))
    assert rendered.endswith(f"{TAIL}{text}\n\n### Input:\n<{text}>\n\n### Response:\n")


def test_a_saved_prompt_is_read_back_and_a_folder_without_one_has_alpacas(tmp_path: Path) -> None:
    assert read_prompt(tmp_path) == find_prompt("alpaca")
    own = tmp_path / "short.json"
    template = {"prompt_input": "{instruction}|{input}>", "prompt_no_input": "{instruction}>"}
    own.write_text(json.dumps(template), encoding="utf-8")
    prompt = find_prompt(str(own))
    assert (prompt.name, prompt.render(Record("a", "b", ""))) == ("short", "a|b>")
    prompt.save(tmp_path)
    assert read_prompt(tmp_path) == prompt


def test_an_unknown_name_lists_what_there_is() -> None:
    with pytest.raises(UsageError, match="choose alpaca"):
        find_prompt("alpacca")


@pytest.mark.parametrize(
    "content, expected",
    [
        ("{", "not readable as JSON"),
        ("[]", "does not hold one JSON object"),
        ('{"prompt_input": "{instruction}", "prompt_no_input": "{instruction}"}', "prompt_input"),
        ('{"prompt_input": "{instruction}{input}", "prompt_no_input": 3}', "prompt_no_input must"),
    ],
)
def test_a_file_that_is_no_template_is_explained(
    tmp_path: Path, content: str, expected: str
) -> None:
    path = tmp_path / "mine.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(Corrupt, match=expected):
        find_prompt(str(path))
