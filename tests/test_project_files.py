"""What stands around the program names what exists: workflow, citation, notebook."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import pytest
from packaging.specifiers import SpecifierSet

from conftest import missing, need
from test_document_commands import check, commands_in

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "notebooks" / "handout.ipynb"


def read_yaml(name: str) -> Any:
    need("yaml")
    import yaml

    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def test_the_workflow_runs_what_the_makefile_has() -> None:
    workflow = read_yaml(".github/workflows/ci.yml")
    assert workflow["permissions"] == {"contents": "read"}
    assert workflow[True].keys() == {"push", "pull_request"}  # YAML takes `on` for a truth
    jobs = workflow["jobs"]
    assert jobs["fast"]["strategy"]["matrix"]["python"] == ["3.11", "3.13"]
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    runs = {name: [step["run"] for step in job["steps"] if "run" in step]
            for name, job in jobs.items()}  # fmt: skip
    assert runs.keys() == {"fast", "slow"}
    for command in [command for commands in runs.values() for command in commands]:
        program, target, *settings = command.split()
        assert (program, target in targets) == ("make", True), command
        assert all(re.fullmatch(r"CI=\w*", setting) for setting in settings), command
    for name, job in jobs.items():
        python = next(step for step in job["steps"] if "setup-python" in step.get("uses", ""))
        files = python["with"]["cache-dependency-path"].split()
        assert [file for file in files if not (ROOT / file).is_file()] == [], name


@pytest.mark.parametrize(("words", "slow"), [(["CI="], False), (["CI=github"], True)])
def test_the_workflows_words_choose_the_tests(words: list[str], slow: bool) -> None:
    if shutil.which("make") is None:
        missing("make is not installed here")
    environment = os.environ | {"CI": "true"}  # as the service sets it
    told = subprocess.run(["make", "-n", "test", *words], cwd=ROOT, env=environment, check=True,
                          capture_output=True, text=True)  # fmt: skip
    (line,) = (line for line in told.stdout.splitlines() if "-m pytest" in line)
    assert ('"not soak"' in line) is slow


def test_the_first_python_of_all_may_install_every_pinned_version() -> None:
    """Debian 12 has 3.11.2; with a pin that asks for more pip searched for over ten minutes."""
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.M))
    pinned = [d for d in distributions() if pins.get(d.name) == d.version]
    named = {d.name: d.metadata.get("Requires-Python") for d in pinned}
    asked = {name: python for name, python in named.items() if python}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert asked
    assert project["requires-python"] == ">=3.11"
    assert [name for name, python in asked.items() if "3.11.0" not in SpecifierSet(python)] == []


def test_the_citation_has_what_the_format_asks_for() -> None:
    citation = read_yaml("CITATION.cff")
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert citation["cff-version"] == "1.2.0"
    assert citation["license"] == "Apache-2.0"


def cells(kind: str) -> list[str]:
    """The texts of the notebook's cells of one kind."""
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == kind]


def test_the_notebook_is_kept_without_results_and_its_commands_are_taken() -> None:
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["metadata"]["kernelspec"]["name"]) == (4, "python3")
    for cell in notebook["cells"]:
        assert not cell.get("outputs"), "clear the outputs before it is kept"
        assert cell.get("execution_count") is None
    shell = [text.partition("\n")[2] for text in cells("code") if text.startswith("%%bash -e\n")]
    commands = [words for text in shell for words in commands_in(f"```bash\n{text}\n```")]
    assert [words[1] for words in commands] == [
        "finetune.py", "data", "generate", "merge", "merge", "compare", "study", "report"
    ]  # fmt: skip
    for words in commands:
        check(words)
    for path in re.findall(r"\]\(([^)]+)\)", "\n".join(cells("markdown"))):
        assert (NOTEBOOK.parent / path).exists(), path


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_the_notebook_runs_from_its_first_cell_to_its_last(tmp_path: Path) -> None:
    """In a folder as a checkout has it; a command that fails ends its cell, and the notebook."""
    need("nbclient")
    need("ipykernel")
    (tmp_path / "notebooks").mkdir()
    for name in ("finetune.py", "generate.py", "mini_data.json", "notebooks/handout.ipynb"):
        shutil.copy(ROOT / name, tmp_path / name)
    program = Path(sys.executable).with_name("jupyter-execute")
    ran = subprocess.run([program, "--inplace", "notebooks/handout.ipynb"], cwd=tmp_path,
                         capture_output=True, text=True, check=False)  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-4000:]
    notebook = json.loads((tmp_path / "notebooks" / "handout.ipynb").read_text(encoding="utf-8"))
    printed = "".join(
        "".join(output.get("text", []))
        for cell in notebook["cells"] for output in cell.get("outputs", [])
    )  # fmt: skip
    assert "PASS hf alpaca-lora-hf" in printed
    assert "PASS meta alpaca-lora-statedict" in printed
    answers = (tmp_path / "questions.answers.jsonl").read_text(encoding="utf-8")
    assert len(answers.splitlines()) == 3
    ways = json.loads((tmp_path / "task1" / "compare.json").read_text(encoding="utf-8"))["ways"]
    assert ways.keys() == {"base", "adapter", "hf", "meta"}
    assert (tmp_path / "report" / "report-zh.html").is_file()
    assert (tmp_path / "report" / "report-zh.docx").is_file()
