"""The shipped prompts letter for letter, users' own templates, and texts full of braces."""

import json
from pathlib import Path

import pytest

from suri.data.prompt import Prompt, Turn, find_prompt, read_prompt
from suri.data.records import Record
from suri.errors import Corrupt, UsageError

HEAD = "Below is an instruction that describes a task"
TAIL = "Write a response that appropriately completes the request.\n\n### Instruction:\n"
FRENCH = "Ci-dessous se trouve une instruction qui décrit une tâche"
FRENCH_TAIL = "Écrivez une réponse qui complète correctement la demande.\n\n### Instruction:\n"

# Each prompt for "Add." with the input "2, 3", then for "Name a sea." alone, then a later turn.
WORDING = {
    "alpaca": (
        f"{HEAD}, paired with an input that provides further context. {TAIL}"
        "Add.\n\n### Input:\n2, 3\n\n### Response:\n",
        f"{HEAD}. {TAIL}Name a sea.\n\n### Response:\n",
        "\n\n### Instruction:\nAdd.\n\n2, 3\n\n### Response:\n",
    ),
    "alpaca_legacy": (
        f"{HEAD}, paired with an input that provides further context. {TAIL}"
        "Add.\n\n### Input:\n2, 3\n\n### Response:",
        f"{HEAD}. {TAIL}Name a sea.\n\n### Response:",
        "\n\n### Instruction:\nAdd.\n\n2, 3\n\n### Response:",
    ),
    "alpaca_short": (
        "### Instruction:\nAdd.\n\n### Input:\n2, 3\n\n### Response:\n",
        "### Instruction:\nName a sea.\n\n### Response:\n",
        "\n\n### Instruction:\nAdd.\n\n2, 3\n\n### Response:\n",
    ),
    "vigogne": (
        f"{FRENCH}, associée à une entrée qui fournit un contexte supplémentaire. {FRENCH_TAIL}"
        "Add.\n\n### Entrée:\n2, 3\n\n### Réponse:\n",
        f"{FRENCH}. {FRENCH_TAIL}Name a sea.\n\n### Réponse:\n",
        "\n\n### Instruction:\nAdd.\n\n2, 3\n\n### Réponse:\n",
    ),
}
TALK = Record("Add.", "2, 3", "5", history=(("Name a sea.", "Baltic"), ("{input}", "!")))


@pytest.mark.parametrize("name", WORDING)
def test_the_shipped_prompts_have_the_published_wording(name: str, tmp_path: Path) -> None:
    prompt = find_prompt(name)
    with_input, alone, later = WORDING[name]
    assert (prompt.name, prompt.adds_bos) == (name, True)
    assert prompt.turns(Record("Add.", "2, 3", "5")) == [Turn((with_input,), "5")]
    assert prompt.turns(Record("Name a sea.", "", "")) == [Turn((alone,), "")]
    assert prompt.turns(TALK) == [
        Turn((alone,), "Baltic"),
        Turn((later.replace("Add.\n\n2, 3", "{input}"),), "!"),
        Turn((later,), "5"),
    ]
    prompt.save(tmp_path)
    assert read_prompt(tmp_path) == prompt


def test_a_system_text_stands_before_the_first_turn_alone() -> None:
    said = Record("b", "", "B", history=(("a", "A"),), system="Be {input}.")
    heading = "### Instruction:\n{}\n\n### Response:\n"
    assert find_prompt("alpaca_short").turns(said) == [
        Turn(("Be {input}.\n\n" + heading.format("a"),), "A"),
        Turn(("\n\n" + heading.format("b"),), "B"),
    ]


def test_without_a_next_turn_each_is_asked_like_the_first(tmp_path: Path) -> None:
    own = write(tmp_path / "own.json", prompt_input="{instruction}|{input}>")
    assert own.turns(TALK) == [
        Turn(("Name a sea.>",), "Baltic"),
        Turn(("\n\n{input}>",), "!"),
        Turn(("\n\nAdd.|2, 3>",), "5"),
    ]
    own = write(tmp_path / "own.json", next_turn="; {instruction} {input}>")
    assert own.turns(TALK)[2] == Turn(("; Add.\n\n2, 3 {input}>",), "5")


def write(path: Path, **changes: object) -> Prompt:
    template = {"prompt_input": "{instruction}{input}>", "prompt_no_input": "{instruction}>"}
    path.write_text(json.dumps(template | changes), encoding="utf-8")
    return find_prompt(str(path))


@pytest.mark.parametrize("text", ["{input}", "{instruction} {0} {", "}}{{", r"\1 \g<0> %s $x"])
def test_braces_in_a_users_text_stay_text(text: str) -> None:
    rendered = find_prompt("alpaca").render(Record(text, f"<{text}>", ""))
    assert rendered.endswith(f"{TAIL}{text}\n\n### Input:\n<{text}>\n\n### Response:\n")


def test_a_saved_prompt_is_read_back_and_a_folder_without_one_has_alpacas(tmp_path: Path) -> None:
    assert read_prompt(tmp_path) == find_prompt("alpaca")
    prompt = write(tmp_path / "short.json", prompt_input="{instruction}|{input}>")
    assert (prompt.name, prompt.render(Record("a", "b", ""))) == ("short", "a|b>")
    prompt.save(tmp_path)
    assert read_prompt(tmp_path) == prompt


def test_an_unknown_name_lists_what_there_is() -> None:
    names = "choose alpaca or alpaca_legacy or alpaca_short or vigogne or chat, or give the path"
    with pytest.raises(UsageError, match=names):
        find_prompt("alpacca")


def test_a_huge_file_is_no_template(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="too large"):
        write(tmp_path / "huge.json", description="x" * 1_000_000)


@pytest.mark.parametrize(
    "content, expected",
    [
        ("{", "not readable as JSON"),
        ("[]", "does not hold one JSON object"),
        ('{"prompt_input": "{instruction}", "prompt_no_input": "{instruction}"}', "prompt_input"),
        ('{"prompt_input": "{instruction}{input}", "prompt_no_input": 3}', "prompt_no_input must"),
        (
            '{"prompt_input": "{instruction}{input}", "prompt_no_input": "{instruction}", '
            '"next_turn": "{input}"}',
            "next_turn must be text with {instruction}",
        ),
    ],
)
def test_a_file_that_is_no_template_is_explained(
    tmp_path: Path, content: str, expected: str
) -> None:
    path = tmp_path / "mine.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(Corrupt, match=expected):
        find_prompt(str(path))
