"""The loss curve: drawn by hand on small grids, and as a real training prints it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from suri.cli.curve import Canvas, loss_curve, smooth
from suri.data.records import Record, write_records


def training(*losses: float) -> list[dict[str, Any]]:
    return [{"step": step, "train/loss": loss} for step, loss in enumerate(losses, start=1)]


FALLING = training(8, 7, 6, 5, 4, 3, 2, 1)


def test_a_falling_line_is_a_diagonal_of_dots() -> None:
    assert loss_curve(FALLING, width=4, height=2) == [
        "   8.000 ┤⠑⢄",
        "   1.000 ┤  ⠑⢄",
        "         └────",
        "    step  1 48",
        "          ⠒ training loss",
    ]


def test_without_unicode_the_same_in_plain_characters_and_held_out_points_on_top() -> None:
    held_out = [{"step": step, "eval/loss": loss} for step, loss in ((0, 8.0), (4, 4.0), (8, 1.0))]
    lines = loss_curve([*held_out, *FALLING], width=9, height=4, ascii_only=True)
    # Steps 0 to 8 over 18 columns of dots, two to a character; losses 8 to 1 over 16 rows, four
    # to a character: step 3, say, lies in column 6.4 and row 4.3, the second line's fourth place.
    assert lines == [
        "   8.000 |o**",
        "         |   **",
        "   3.333 |    o**",
        "   1.000 |       *o",
        "         +---------",
        "    step  0   4   8",
        "          * training loss   o held-out loss",
    ]


def test_points_far_apart_are_joined() -> None:
    lines = loss_curve(training(1, 1, 1, 9, 9, 1, 1, 1), width=16, height=5, ascii_only=True)
    columns = [{line[10:][c : c + 1] for line in lines[:5]} for c in range(16)]
    assert all("*" in column for column in columns)


def test_smoothing_by_hand() -> None:
    points = [(1, 1.0), (2, 2.0), (3, 6.0), (4, 1.0)]
    assert smooth(points, 0) == points
    assert smooth(points, 1) == [(1, 1.5), (2, 3.0), (3, 3.0), (4, 3.5)]
    assert "mean of 9 steps" in loss_curve(training(*[3.0, 1.0] * 30))[-1]


def test_the_corners_of_the_canvas() -> None:
    canvas = Canvas([(5, 2.0), (105, -1.0)], width=10, height=3)
    assert (canvas.dot(5, 2.0), canvas.dot(105, -1.0)) == ((0, 0), (11, 19))
    assert (canvas.cell(5, -1.0), canvas.cell(105, 2.0)) == ((2, 0), (0, 9))
    flat = Canvas([(1, 2.0), (9, 2.0)], width=10, height=3)
    assert flat.cell(9, 2.0) == (1, 9)


def test_few_steps_have_no_curve() -> None:
    assert loss_curve(FALLING[:7]) == []
    assert len(loss_curve(FALLING)) == 13


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_training_ends_with_its_curve(tiny: Path, tmp_path: Path, encoding: str) -> None:
    rows = [Record(f"say {n}", "", "y" * (n % 7 + 1)) for n in range(20)]
    write_records(tmp_path / "rows.json", rows)
    done = subprocess.run(
        [sys.executable, "-m", "suri", "train", "--base_model", str(tiny), "--data_path",
         str(tmp_path / "rows.json"), "--output_dir", str(tmp_path / "run"), "--val_set_size", "4",
         "--batch_size", "4", "--learning_rate", "3e-3"],
        capture_output=True, check=True, env=os.environ | {"PYTHONIOENCODING": encoding},
    )  # fmt: skip
    lines = done.stdout.decode(encoding).splitlines()
    recorded = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line) for line in recorded]
    highest = max(line.get("train/loss", line.get("eval/loss")) for line in losses)
    ticks = [line for line in lines if line[9:10] == ("┤" if encoding == "utf-8" else "|")]
    assert ticks[0].startswith(f"{highest:8.3f} ")
    assert any(line.strip().startswith("step  0") and line.endswith("12") for line in lines)
    assert ("⠒ training" if encoding == "utf-8" else "* training") in "\n".join(lines)
