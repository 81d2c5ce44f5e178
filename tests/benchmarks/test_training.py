"""The training benchmark runs every way on a tiny model, and its figures are those of its runs."""

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "training.py"
WAYS = ["hf", "exact", "int8", "nf4"]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a tiny run wrote."""
    out = tmp_path_factory.mktemp("training") / "tiny.json"
    command = [sys.executable, str(SCRIPT), "--tiny", "--out", str(out)]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "| HF Trainer + PEFT |" in done.stdout
    return out


@pytest.fixture(scope="module")
def result(file: Path) -> dict[str, Any]:
    """The same, read."""
    return json.loads(file.read_text(encoding="utf-8"))


def test_every_way_has_its_figures(result: dict[str, Any]) -> None:
    speed, command = result["speed"], result["command"]
    assert list(speed["summary"]) == WAYS
    assert list(command["summary"]) == WAYS[:3]
    assert len(speed["search"]) == 2
    assert {"missing"} == set(speed["trl_packed"]) or speed["trl_packed"]["train_seconds"] > 0
    for each in [*speed["search"], *(each[way] for each in speed["rounds"] for way in WAYS)]:
        assert each["train_seconds"] > 0
        assert each["peak_memory_bytes"] > 10_000_000
        tokens = each["tokens_per_second"] * each["train_seconds"]
        assert tokens == pytest.approx(speed["data"]["tokens"])
    fastest = max(speed["search"], key=lambda each: each["tokens_per_second"])
    assert speed["best"].items() <= fastest.items()


@pytest.mark.parametrize(
    ("part", "time"), [("speed", "train_seconds"), ("command", "seconds")], ids=["speed", "command"]
)
def test_ratios_are_those_of_the_raw_times(result: dict[str, Any], part: str, time: str) -> None:
    found = result[part]
    for way, figures in found["summary"].items():
        ratios = [each["hf"][time] / each[way][time] for each in found["rounds"]]
        assert figures["times_hf"] == {
            "median": statistics.median(ratios),
            "low": min(ratios),
            "high": max(ratios),
        }


def test_all_learn_the_same_tokens(result: dict[str, Any]) -> None:
    for each in result["command"]["rounds"]:
        assert len({figures["tokens"] for figures in each.values()}) == 1


def test_the_referee_finds_ours_where_it_finds_hf(result: dict[str, Any]) -> None:
    losses = result["speed"]["held_out_loss"]
    assert losses["exact"] == pytest.approx(losses["hf"], rel=0.02)
    # From one start over one order both learned the same, and they did learn.
    gain = losses["base"] - losses["hf"]
    assert gain > 0
    assert losses["base"] - losses["exact"] == pytest.approx(gain, rel=0.02)


def test_what_is_kept_is_the_share_of_the_gain(result: dict[str, Any]) -> None:
    quality = result["quality"]
    losses = quality["held_out_loss"]
    for way, kept in quality["kept"].items():
        share = (losses["base"] - losses[way]) / (losses["base"] - losses["exact"])
        assert kept["value"] == pytest.approx(share)
        assert kept["low"] < kept["value"] < kept["high"]
        assert kept["rows"] == quality["data"]["held_out_rows"]
    assert {len(each["training_loss"]) for each in quality["methods"].values()} == {4}


def test_no_row_and_no_folder_is_kept(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert "instruction" not in text
    assert str(ROOT) not in text
    assert "/tmp" not in text


def test_the_figures_are_drawn(file: Path, tmp_path: Path) -> None:
    script = SCRIPT.with_name("figure.py")
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, str(script), str(file), str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True, env=environment)
    for name in ("training-speed", "training-loss"):
        svg = (tmp_path / f"{name}.svg").read_text(encoding="utf-8")
        assert svg.startswith("<svg")
        assert "var(--" not in svg
