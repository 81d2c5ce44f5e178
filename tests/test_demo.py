"""The demo as a user starts it: every step ends well, and training is worth its while."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_the_demo_ends_in_a_report_and_a_better_model(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    done = subprocess.run(
        [sys.executable, "-m", "suri", "demo", "--output_dir", str(folder)],
        capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = folder / "compare" / "report.html"
    assert f"report: {report}" in done.stdout
    assert f"suri chat {folder / 'run'}" in done.stdout
    assert [line for line in done.stdout.splitlines() if line.startswith("PASS")] == [
        f"PASS hf {folder / 'merged-hf'}", f"PASS meta {folder / 'merged-meta'}"
    ]  # fmt: skip
    ways = json.loads((folder / "compare" / "compare.json").read_text(encoding="utf-8"))["ways"]
    exact = {name: way["quality"]["exact_match"]["value"] for name, way in ways.items()}
    assert exact["adapter"] >= exact["base"] + 0.2
    assert exact["adapter"] == exact["hf"] == exact["meta"]
    assert ways["hf"]["agreement"]["identical"] == ways["hf"]["agreement"]["rows"] == 24
    page = report.read_text(encoding="utf-8")
    assert "<script src" not in page
    assert "http://" not in page.replace("http://www.w3.org", "")
