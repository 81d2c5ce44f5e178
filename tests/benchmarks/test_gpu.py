"""The script that fills the GPU's rows runs all of them on a tiny model, and compares for real."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "gpu.py"
ROWS = ["rates", "attention", "gradients", "lora", "elementwise", "qlora", "fp8", "decode",
        "commands", "hf", "unsloth", "vllm", "quality"]  # fmt: skip
CHECKED = {"attention", "gradients", "fp8", "decode", "commands"}


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a tiny run wrote."""
    out = tmp_path_factory.mktemp("gpu") / "tiny.json"
    command = [sys.executable, str(SCRIPT), "--tiny", "--out", str(out)]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "own LoRA, micro-batch" in done.stdout
    return json.loads(out.read_text(encoding="utf-8"))


@pytest.mark.slow
def test_every_row_says_something_with_its_raw_values(result: dict[str, Any]) -> None:
    figures = result["figures"]
    assert list(dict.fromkeys(f["row"] for f in figures)) == ROWS
    assert set(result["seconds"]) == set(ROWS)
    for figure in figures:
        assert not figure.get("failed"), figure
        kinds = [kind for kind in ("median", "passed", "missing") if kind in figure]
        assert len(kinds) == 1, figure
        if kinds == ["median"]:
            assert figure["unit"]
            assert figure["raw"]
            assert all(math.isfinite(value) for value in figure["raw"])
            assert min(figure["raw"]) <= figure["median"] <= max(figure["raw"])
        if kinds == ["missing"]:
            assert figure["missing"]
    assert result["tiny"] is True
    assert result["environment"]["torch"]


@pytest.mark.slow
def test_every_check_compared_numbers_and_could_have_failed(result: dict[str, Any]) -> None:
    checks = [figure for figure in result["figures"] if "passed" in figure]
    assert {check["row"] for check in checks} >= CHECKED
    for check in checks:
        assert check["passed"], check
        assert check["compared"] >= 1
        assert 0 <= check["error"] < check["bound"] < check["control"]
    # Of the same numbers computed twice nothing would be learned.
    assert all(check["error"] > 0 for check in checks if "loss" not in check["what"])


@pytest.mark.slow
def test_a_difference_is_found(tmp_path: Path) -> None:
    code = """
import sys
sys.path[:0] = [{benchmarks!r}, {src!r}]
from pathlib import Path
import torch
from gpu_rows.bench import Bench, Row
def measure(bench):
    bench.check("near", torch.ones(3), torch.tensor([1.0, 1.0, 1.2]), 1e-2)
def broken(bench):
    raise RuntimeError("no such kernel in /somewhere/of-mine/kernel.py")
bench = Bench(Path({out!r}), Path(), True)
assert bench.run("check", Row(measure, 5), 60) and bench.failed()
bench.result["figures"].clear()
assert bench.run("broken", Row(broken, 5), 60) and bench.failed()
"""
    places = {"benchmarks": str(SCRIPT.parent), "src": str(ROOT / "src")}
    code = code.format(out=str(tmp_path / "out.json"), **places)
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    figures = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))["figures"]
    assert figures[0]["failed"].startswith("RuntimeError: no such kernel in kernel.py\n")
    assert "bench.py" in figures[0]["failed"]
    assert str(ROOT) not in figures[0]["failed"]


def test_lengths_are_numbers_only() -> None:
    table = json.loads((SCRIPT.parent / "alpaca_lengths.json").read_text(encoding="utf-8"))
    assert len(table["rows"]) == 999
    assert all(asked > 0 and answered > 0 for asked, answered in table["rows"])
    assert "CC BY-NC 4.0" in table["source"]
