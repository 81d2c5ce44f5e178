"""What the documents say of the project is true: paths, verbs, flags, recipes."""

import ast
import importlib.util
import io
import json
import os
import re
import subprocess
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from conftest import need
from suri.recipe import ALPACA_LORA, LINEARS, Recipe, recipe_from_toml

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])


LINK = re.compile(r"\]\(([^)#:\s]*)(?:#([^)\s]*))?(?: \"([^\"]*)\")?\)")
"""Path, anchor and title of a link within the repository."""


def anchors(document: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and the site make them."""
    text = re.sub(r"^```.*?^```", "", document.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    plain = (re.sub(r"[^\w\s-]", "", heading).strip().lower() for heading in headings)
    return {re.sub(r"[\s-]+", "-", heading) for heading in plain}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_and_path_exists(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    for target, anchor, _ in LINK.findall(text):
        place = document.parent / target if target else document
        assert place.exists(), target
        if anchor:
            assert anchor in anchors(place), f"{target}#{anchor}"
    here = re.sub(r"https?://\S+", "", text)
    for path in re.findall(r"\b(?:recipes|benchmarks|docs|tools|tests)/[\w./-]+\.\w+", here):
        assert (ROOT / path).exists(), path


FIGURE = re.compile(r"\[([\d.,]+)( [GM]B| %| ms)?\]\(([^)\s]+\.json) \"([^\"]+)\"\)")
SCALE = {" %": 100, " ms": 1000, "": 1}
UNITS = (1, 100, 1000, 1e-3, 1e-6, 1e-9)


def committed(file: Path, place: str) -> Any:
    """What a result holds at a place such as "lines / cp / seconds"."""
    value = json.loads(file.read_text(encoding="utf-8"))
    for key in place.split(" / "):
        value = value[int(key)] if isinstance(value, list) else value[key]
    return value


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_figure_that_is_a_link_is_the_committed_one(document: Path) -> None:
    """[526](results/x.json "speed / median") says what stands there, rounded as it is written."""
    text = document.read_text(encoding="utf-8")
    found = FIGURE.findall(text)
    assert len(found) == len(re.findall(r"\.json \"", text)), "a figure of another form"
    for said, unit, file, place in found:
        value = committed(document.parent / file, place)
        if unit in (" GB", " MB"):
            value /= {" GB": 1e9, " MB": 1e6}[unit] if value > 1e6 else 1
        else:
            value *= SCALE[unit]
        decimals = len(said.partition(".")[2])
        assert f"{value:,.{decimals}f}" == said, f"{said}{unit}: {place}"


def numbers_in(value: Any) -> Iterator[float]:
    """Every number of a result."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for part in value:
            yield from numbers_in(part)
    elif isinstance(value, int | float):
        yield abs(value)


def beside_results(document: Path) -> Iterator[tuple[list[Path], str]]:
    """Paragraphs that link to results, each with the tables next to it, links and code left out.

    Neither figures that are said to be uncommitted nor versions of packages are results.
    """
    parts = document.read_text(encoding="utf-8").split("\n\n")
    for place, part in enumerate(parts):
        files = re.findall(r"\]\(((?:\.\./)?benchmarks/results/[\w.-]+\.json)\)", part)
        near = [] if "not kept as figures" in part else parts[max(0, place - 1) : place + 2]
        tables = [other for other in near if other.lstrip().startswith("|")]
        text = re.sub(r"\]\([^)]*\)|`[^`]*`|(?:torch|transformers|peft|trl) [\d.]+", "",
                      "\n".join([part, *tables]))  # fmt: skip
        if files and "not kept as figures" not in part:
            yield [document.parent / file for file in files], text


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_figures_beside_a_result_are_in_it(document: Path) -> None:
    """Every number with a decimal point, as written, in some unit (%, GB, MB, ms)."""
    for files, text in beside_results(document):
        results = [json.loads(file.read_text(encoding="utf-8")) for file in files]
        values = [value * unit for value in numbers_in(results) for unit in UNITS]
        for said in set(re.findall(r"(?<![\w.])\d[\d,]*\.\d+(?![\w.])", text)):
            half = 0.5 * 10.0 ** -len(said.partition(".")[2]) + 1e-9
            number = float(said.replace(",", ""))
            assert any(abs(value - number) <= half for value in values), f"{said} beside {files}"


def test_the_page_of_figures_has_one_of_every_result() -> None:
    text = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    named = {Path(file).name for _, _, file, _ in FIGURE.findall(text)}
    assert len(named) > 8
    scripts = re.findall(r"python (benchmarks/\w+\.py)", text)
    assert {name.split("-")[0].split(".")[0] for name in named if "-" not in name} <= {
        Path(script).stem for script in scripts
    }


def test_both_readmes_say_the_same() -> None:
    english, chinese = ((ROOT / name).read_text("utf-8") for name in ("README.md", "README.zh.md"))

    def commands(text: str) -> list[str]:
        blocks = re.findall(r"^```bash\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
        return [line.partition("#")[0].rstrip() for block in blocks for line in block.splitlines()]

    def targets(text: str) -> list[str]:
        return re.findall(r"\]\(([^)]+)\)", text)

    def numbers(text: str) -> Counter[str]:
        return Counter(re.findall(r"\d+(?:[.,]\d+)*", text))

    assert commands(english) == commands(chinese)
    there, here = targets(english), targets(chinese)
    assert (there[0], here[0]) == ("README.zh.md", "README.md")
    assert there[1:] == here[1:]
    assert numbers(english) == numbers(chinese)
    assert max(len(text.splitlines()) for text in (english, chinese)) <= 120


def test_every_page_is_in_the_sites_menu() -> None:
    menu = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for page in ROOT.glob("docs/*.md"):
        assert f": {page.name}\n" in menu, f"mkdocs.yml names no {page.name}"


@pytest.mark.slow
def test_the_site_is_built_without_a_warning_and_fetches_nothing(tmp_path: Path) -> None:
    need("mkdocs")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(tmp_path)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, check=False,
                          env=os.environ | {"NO_MKDOCS_2_WARNING": "1"})  # fmt: skip
    assert done.returncode == 0, done.stderr
    pages = sorted(tmp_path.glob("*.html"))
    assert len(pages) > len(DOCUMENTS) - 1
    for page in [*pages, *tmp_path.glob("assets/**/*.css")]:
        text = page.read_text(encoding="utf-8")
        fetched = re.findall(r"<(?:script|img|iframe|source)[^>]* src=\"?(?:https?:)?//", text)
        fetched += re.findall(r"<link[^>]* rel=\"?(?:stylesheet|preconnect|icon)[^>]*//", text)
        fetched += re.findall(r"(?:url\(|@import )[\"']?(?:https?:)?//", text)
        assert fetched == [], page


def test_the_readme_leads_with_a_command() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert lines.index("make demo") < 25
    run = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "make test" in lines
    assert run.rstrip().endswith("make test")


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


def test_the_figures_of_task_2_are_the_committed_ones() -> None:
    summary = json.loads((ROOT / "docs/results/task2/summary.json").read_text(encoding="utf-8"))
    text = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
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


def test_the_lines_of_code_are_as_many_as_is_said() -> None:
    """By room, within a tenth; a room that grew says so."""
    found: Counter[str] = Counter()
    for file in (ROOT / "src" / "suri").rglob("*.py"):
        room = file.relative_to(ROOT / "src" / "suri").parts
        found[room[0] if len(room) > 1 else "below"] += lines_of_code(file.read_text("utf-8"))
    text = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    said = re.search(
        r"Lines of code by room.*?: (.*?) below\s+them; ([\d,]+) in all", text, re.DOTALL
    )
    assert said
    rooms = dict(re.findall(r"(\w+) ([\d,]+)", said[1].replace("and ", "below ")))
    assert rooms.keys() == found.keys()
    for room, count in (rooms | {"all": said[2]}).items():
        real = found[room] if room != "all" else found.total()
        assert abs(int(count.replace(",", "")) - real) < 0.1 * real, room


def lines_of_code(text: str) -> int:
    """Lines with anything but blanks, comments and strings that stand alone."""
    nothing = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT,
               tokenize.ENDMARKER}  # fmt: skip
    lines = {
        number
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type not in nothing
        for number in range(token.start[0], token.end[0] + 1)
    }
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            lines -= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(lines)
