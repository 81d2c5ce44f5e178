"""The demo as a user starts it: every step ends well, and training is worth its while."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from conftest import as_fp32, make_model, write_tokenizer


def demo(folder: Path, **variables: str) -> dict[str, Any]:
    """Run the demo into a folder; the ways of its comparison, its report being as it should."""
    done = subprocess.run(
        [sys.executable, "-m", "suri", "demo", "--output_dir", str(folder)],
        capture_output=True, text=True, env=os.environ | variables,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = folder / "compare" / "report.html"
    assert f"report: {report}" in done.stdout
    assert f"suri chat {folder / 'run'}" in done.stdout
    assert [line for line in done.stdout.splitlines() if line.startswith("PASS")] == [
        f"PASS hf {folder / 'merged-hf'}", f"PASS meta {folder / 'merged-meta'}"
    ]  # fmt: skip
    page = report.read_text(encoding="utf-8")
    assert "<script src" not in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    ways = json.loads((folder / "compare" / "compare.json").read_text(encoding="utf-8"))["ways"]
    assert list(ways) == ["base", "adapter", "hf", "meta"]
    for merged in ("hf", "meta"):
        assert ways[merged]["agreement"]["identical"] == ways[merged]["agreement"]["rows"] == 24
        exact, merged_exact = (ways[w]["quality"]["exact_match"] for w in ("adapter", merged))
        assert exact == merged_exact
    return ways


@pytest.mark.slow
def test_the_demo_ends_in_a_report(embedded: Path, tmp_path: Path) -> None:
    """Its commands and rows, over a model of some thousand numbers as the embedded base."""
    base = tmp_path / "cache" / embedded.name
    as_fp32(make_model(base, max_position_embeddings=1024))
    write_tokenizer(base)
    shutil.copy(embedded / "source.json", base)
    ways = demo(tmp_path / "demo", SURI_CACHE=str(base.parent))
    losses = {way: found["quality"]["loss"]["value"] for way, found in ways.items()}
    assert losses["adapter"] < 0.95 * losses["base"]


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_the_demo_ends_in_a_better_model(tmp_path: Path) -> None:
    ways = demo(tmp_path / "demo")
    exact = {way: found["quality"]["exact_match"]["value"] for way, found in ways.items()}
    assert exact["adapter"] >= exact["base"] + 0.2
