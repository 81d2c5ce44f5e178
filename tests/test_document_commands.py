"""What the documents tell people to type can be typed; the code that they quote is the code."""

import functools
import importlib.util
import itertools
import re
import shlex
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from suri.cli.data import VERBS as DATA_VERBS
from suri.cli.main import HIDDEN, VERBS
from suri.model.config import read_config
from suri.recipe import Recipe
from suri.train.budget import Memory, estimate

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
SCRIPTS = {"finetune.py": "finetune", "generate.py": "chat"}
OPERATORS = ("&", "&&", "|", "||", ";", ">")
"""Where a command ends for the shell."""
ELSEWHERE = {
    *("--wandb_watch", "--wandb_log_model"),  # accepted, not used
    *("--flag-name", "--flag_name", "--flag"),  # examples
    *("--tiny", "--no-deps"),  # a benchmark's, pip's
    # vLLM's
    *("--host", "--api-key", "--tokenizer", "--chat-template", "--enable-lora", "--lora-modules"),
    *("--max-lora-rank", "--max-model-len", "--served-model-name"),
}
"""Flags in the text that no verb declares."""


def module(path: str) -> ModuleType:
    """A script of the repository, as a module."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = made
    spec.loader.exec_module(made)
    return made


reference = module("tools/make_reference.py")


def blocks(text: str, language: str) -> Iterator[str]:
    yield from re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def commands_in(text: str) -> Iterator[list[str]]:
    """Every command of the fenced blocks as words, its prompt, comment and line breaks removed."""
    for block in [*blocks(text, "bash"), *blocks(text, "")]:
        joined = re.sub(r"\\\n *", " ", block)
        for line in joined.splitlines():
            line = line.removeprefix("$ ").removeprefix(".venv/bin/")
            if re.match(r"(suri|python|make) \S", line):
                words = shlex.split(line, comments=True)
                yield list(itertools.takewhile(lambda word: word not in OPERATORS, words))


def check(words: list[str]) -> None:
    """Raise unless the program takes these words; nothing is run."""
    program, first, *rest = words
    if program == "suri":
        assert first in VERBS, words
        reference.parse_only([first, *rest])
    elif program == "make":
        targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
        assert {first, *rest} <= set(targets), words
    elif first in SCRIPTS:
        reference.parse_only([SCRIPTS[first], *rest])
    else:
        source = (ROOT / first).read_text(encoding="utf-8")
        assert [word for word in rest if word.startswith("--") and word not in source] == [], words


COMMANDS = {
    (document, tuple(words))
    for document in DOCUMENTS
    for words in commands_in(document.read_text(encoding="utf-8"))
}


def test_every_command_of_the_documents_parses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert len(COMMANDS) > 60
    for words in sorted({words for _, words in COMMANDS}):
        try:
            check(list(words))
        except SystemExit:
            pytest.fail(f"{' '.join(words)} does not parse")


@pytest.mark.parametrize("wrong", ["suri tarin", "suri merge ./x --to onnx", "suri fit --memry 4GB",
                                   "make cake", "python benchmarks/demo.py --nothing"])  # fmt: skip
def test_a_command_that_nobody_takes_is_found(wrong: str) -> None:
    with pytest.raises((SystemExit, AssertionError)):
        check(wrong.split())


@functools.cache
def flags(verb: str, *more: str) -> frozenset[str]:
    if verb == "data" and not more:
        return frozenset().union(*(flags("data", name) for name in DATA_VERBS))
    parsed = reference.parse_only([verb, *more], words=False)
    own = {flag.name for flag in reference.flags_of(parsed)}
    return frozenset(own | {"--help"} | ({"--recipe"} if verb in ("train", "fit") else set()))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_flags_in_the_text_exist(document: Path) -> None:
    text = re.sub(r"^```.*?^```", "", document.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    anywhere = frozenset().union(*(flags(verb) for verb in VERBS)) | ELSEWHERE
    for span in re.findall(r"`([^`\n]+)`", text):
        words = [word.strip("|,…").partition("=")[0] for word in span.split()]
        known = anywhere
        if words[0] == "suri" and words[1:] and words[1].isalpha() and words[1].islower():
            assert words[1] in VERBS.keys() | HIDDEN.keys(), span
            known = flags(words[1])
        elif not words[0].startswith("--"):
            continue
        named = [word for word in words if re.fullmatch(r"--[a-z][\w-]+", word)]
        assert [word for word in named if word.replace("-", "_").replace("__", "--", 1) not in known
                and word not in known] == [], span  # fmt: skip


def test_the_reference_is_the_codes() -> None:
    page = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    assert page == reference.page(), "python tools/make_reference.py writes it again"
    assert "--lora_r" in page
    assert "`--max_new_tokens`" in page  # of a group within a verb


def quotes() -> list[tuple[str, str]]:
    """Blocks of Python in the documents, each with the file that is linked to before it."""
    found = []
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        for match in re.finditer(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            files = re.findall(r"\]\(\.\./(src/[\w/]+\.py)\)", text[: match.start()])
            found.append((files[-1], match[1]))
    return found


def test_quoted_code_is_in_the_file_that_is_named() -> None:
    assert len(quotes()) > 8
    for file, code in quotes():
        source = "".join((ROOT / file).read_text(encoding="utf-8").split())
        assert "".join(code.split()) in source, f"{file}:\n{code}"


def test_the_handouts_computed_memory_is_what_fit_computes() -> None:
    text = (ROOT / "docs" / "handout.md").read_text(encoding="utf-8")
    config = read_config(ROOT / "recipes" / "shapes" / "llama-7b")
    for start, tokens, quantize in (("2.2", 256, "none"), ("task 2, LoRA", 1024, "none"),
                                    ("task 2, QLoRA", 1024, "nf4")):  # fmt: skip
        recipe = Recipe(lora_target_modules=("q_proj", "v_proj"), quantize=quantize)
        found = estimate(config, recipe, tokens, Memory("cuda"))
        row = next(line for line in text.splitlines() if line.startswith(f"| {start}"))
        assert f"| {found.total / 1e9:.1f} GB | {found.parts['base'] / 1e9:.1f} GB |" in row


def test_pycharms_configurations_run_what_exists() -> None:
    files = sorted((ROOT / ".run").glob("*.run.xml"))
    assert [file.name.split(".")[0] for file in files] == ["demo", "finetune", "generate", "tests"]
    howto = (ROOT / "docs" / "howto.md").read_text(encoding="utf-8")
    for file in files:
        root = ElementTree.parse(file).getroot()
        options = {one.get("name"): one.get("value") or "" for one in root.iter("option")}
        script = options["SCRIPT_NAME"].removeprefix("$PROJECT_DIR$/")
        words = shlex.split(options["PARAMETERS"])
        if script in SCRIPTS:
            check(["python", script, *words])
        elif script == "suri":
            check(["suri", *words])
        else:
            assert importlib.util.find_spec(script)
            assert all((ROOT / word).exists() for word in words)
        assert f"| {file.name.split('.')[0]} |" in howto
