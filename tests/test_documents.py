"""What the documents say of the project is true: paths, verbs, flags, recipes."""

import importlib.util
import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from suri.cli.main import HIDDEN, VERBS
from suri.recipe import ALPACA_LORA, LINEARS, Recipe, recipe_from_toml

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *ROOT.glob("docs/*.md")])


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_and_verb_exists(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (document.parent / target).exists(), target
    verbs = set(re.findall(r"(?:^|`)suri ([a-z]+)", text, flags=re.MULTILINE))
    assert verbs <= VERBS.keys() | HIDDEN.keys(), verbs
    for path in re.findall(r"\b(?:recipes|benchmarks|docs)/[\w./-]+\.\w+", text):
        assert (ROOT / path).exists(), path


def test_the_readme_leads_with_a_command() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert lines.index("make demo") < 25
    run = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "make test" in lines
    assert run.rstrip().endswith("make test")


def test_the_readmes_tree_names_every_room() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    rooms = {path.name for path in (ROOT / "src" / "suri").iterdir() if path.is_dir()}
    for room in rooms - {"__pycache__"}:
        assert f"\n  {room}/" in text, room


def test_the_table_of_defaults_is_the_codes() -> None:
    text = (ROOT / "docs" / "handout.md").read_text(encoding="utf-8")
    default = Recipe()
    for name in ("batch_size", "micro_batch_size", "cutoff_len"):
        row = re.search(rf"\| `{name}` \| (\d+) \| (\d+)", text)
        assert row is not None, name
        assert (int(row[1]), int(row[2])) == (ALPACA_LORA[name], getattr(default, name))


def test_the_training_settings_are_the_codes() -> None:
    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| ([^|]+) \|.*\| ([^|]+) \|$", text, flags=re.MULTILINE)
    settings = {item.name for item in fields(Recipe)}
    table = {name: (ours, theirs) for name, ours, theirs in rows if name in settings}
    assert len(table) == 18
    for name, (ours, theirs) in table.items():
        default = getattr(Recipe(), name)
        words = {LINEARS: "all seven", (): "none"}
        assert ours == words.get(default, str(default)), name
        if not theirs.startswith("same"):
            value = ALPACA_LORA[name]
            assert theirs == (", ".join(value) if isinstance(value, tuple) else str(value)), name
        else:
            assert ALPACA_LORA.get(name, default) == default, name


@pytest.mark.parametrize("path", sorted(ROOT.glob("recipes/*.toml")), ids=lambda path: path.name)
def test_every_recipe_is_of_known_settings(path: Path) -> None:
    assert isinstance(recipe_from_toml(path), Recipe)


def test_every_setting_explains_itself() -> None:
    source = (ROOT / "src" / "suri" / "recipe.py").read_text(encoding="utf-8")
    for item in fields(Recipe):
        assert re.search(rf"    {item.name}: .+\n    \"\"\"", source), item.name


def benchmark(name: str) -> Any:
    """A script of the folder benchmarks, as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_figures_of_a_7b_merge_are_the_committed_ones() -> None:
    result = json.loads((ROOT / "benchmarks" / "results" / "merging.json").read_text("utf-8"))
    assert benchmark("merging").table(result) in (ROOT / "docs" / "merging.md").read_text("utf-8")
    ours, peft = (result["lines"][n] for n in ("suri merge --to hf", "PEFT merge_and_unload"))
    said = f"in {ours['seconds']:.0f} s within {ours['gb']:.1f} GB of memory"
    other = f"PEFT takes {peft['seconds']:.0f} s and {peft['gb']:.1f} GB"
    for words in (said, other):
        assert words in (ROOT / "README.md").read_text("utf-8")


def test_the_figures_of_decoding_are_the_committed_ones() -> None:
    result = json.loads((ROOT / "benchmarks" / "results" / "decoding.json").read_text("utf-8"))
    assert benchmark("decoding").table(result) in (ROOT / "docs" / "log.md").read_text("utf-8")


def test_the_readmes_figures_are_the_committed_ones() -> None:
    demo = benchmark("demo")
    result = json.loads((ROOT / "benchmarks" / "results" / "demo.json").read_text("utf-8"))
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert demo.table(result) in text
    assert f"{result['total_seconds']:.0f} seconds in all" in text


def test_the_architecture_names_every_module() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    for module in (ROOT / "src" / "suri").glob("*/*.py"):
        if module.name != "__init__.py":
            assert f"`{module.name}`" in text, module


def test_every_promise_names_a_test_that_exists() -> None:
    text = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(test_\w+)`", text))
    assert len(named) > 40
    sources = "\n".join(path.read_text(encoding="utf-8") for path in ROOT.glob("tests/**/*.py"))
    assert sorted(name for name in named if f"def {name}(" not in sources) == []


def test_the_readmes_figures_of_task_2_are_the_committed_ones() -> None:
    summary = json.loads((ROOT / "docs/results/task2/summary.json").read_text(encoding="utf-8"))
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert any("been through 4 bits before" in threat for threat in summary["threats"])
    for group in summary["groups"]:
        if group["rows"] in (64, 1024):
            loss, right = group["loss"]["value"], group["exact_match"]["value"]
            assert re.search(rf"\| {loss:.3f} [^|]*\| {100 * right:.1f} % \|", text), group["rows"]
    for found in summary["methods"]:
        assert found["unequal"] == []
        if found["ours"]["rows"] in (64, 1024):
            ratio = found["speed_up"]
            ends = f"({ratio['low']:.2f} to {ratio['high']:.2f})"
            assert f"{ratio['value']:.2f}" in text
            assert ends in text, ends


def test_the_four_programs_answers_are_the_same_as_the_readme_says() -> None:
    file = ROOT / "benchmarks" / "results" / "same-answers.json"
    result = json.loads(file.read_text("utf-8"))
    assert f"{result['prompts']} greedy answers of a trained" in (ROOT / "README.md").read_text()
    assert len(result["readers"]) == 3
    for reader in result["readers"].values():
        assert reader["same_up_to_a_tie"] == result["prompts"]
