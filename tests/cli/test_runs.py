"""`suri runs`: finding runs, choosing among them, and two side by side."""

import json
from io import StringIO

import pytest
from rich.console import Console

from suri.cli.curve import two_curves
from suri.cli.main import main as suri
from suri.cli.runs import LEAVING, show_list
from suri.data.records import Record, write_records
from suri.errors import UsageError
from suri.train.runs import differing, find_runs, read_run

ALWAYS = ("run", "state", "method", "loss")
ROWS = [Record("Say it.", f"{n}", f"x{n}") for n in range(12)]


@pytest.fixture(scope="module")
def place(tiny, tmp_path_factory):
    """Two finished trainings that differ in rank and seed, one below the other's sibling."""
    place = tmp_path_factory.mktemp("runs")
    write_records(place / "rows.json", ROWS)
    for name, rank, seed in (("first", 3, 1), ("deep/er/second", 5, 2)):
        suri(
            ["train", "--base_model", str(tiny), "--data_path", str(place / "rows.json"),
             "--val_set_size", "3", "--output_dir", str(place / name), "--batch_size", "3",
             "--num_epochs", "4", "--lora_r", str(rank), "--seed", str(seed), "--device", "cpu"]
        )  # fmt: skip
    return place


@pytest.mark.slow
def test_runs_are_found_below_a_folder_with_their_figures(place):
    first, second = find_runs(place)
    assert first.folder == place / "first"
    assert second.folder == place / "deep" / "er" / "second"
    result = json.loads((place / "first" / "result.json").read_text())
    assert first.state == "finished"
    assert first.figures["held_out_loss"] == result["held_out_loss"]
    assert first.figures["peak_memory_bytes"] == result["peak_memory_bytes"]


@pytest.mark.slow
def test_conditions_choose_and_wrong_ones_are_refused(place):
    assert [run.folder.name for run in find_runs(place, ["lora_r=5"])] == ["second"]
    assert find_runs(place, ["lora_r=5", "seed=1"]) == []
    for wrong in ("lora_r", "rank=3"):
        with pytest.raises(UsageError, match="setting=value"):
            find_runs(place, [wrong])


def test_an_unfinished_run_says_how_far_it_came(place, tmp_path):
    copy = tmp_path / "cut"
    copy.mkdir()
    for name in ("recipe.toml", "environment.json"):
        (copy / name).write_bytes((place / "first" / name).read_bytes())
    assert read_run(copy).state == "not finished"
    lines = (place / "first" / "metrics.jsonl").read_text().splitlines()
    (copy / "metrics.jsonl").write_text("\n".join(lines[:4]) + "\n")
    run = read_run(copy)
    assert run.state == f"step {json.loads(lines[3])['step']}, not finished"
    assert run.figures["base_loss"] == json.loads(lines[0])["eval/loss"]
    done = [json.loads(line) for line in lines[:4]]
    assert run.figures["steps"] == done[-1]["step"]
    assert run.figures["train_seconds"] == done[-1]["seconds"]
    peaks = [line["memory/peak_bytes"] for line in done if "memory/peak_bytes" in line]
    assert run.figures["peak_memory_bytes"] == max(peaks)


def test_what_is_no_run_is_passed_over_or_refused(place, tmp_path):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "recipe.toml").write_text("= nothing")
    (tmp_path / "broken" / "environment.json").write_text("{}")
    assert find_runs(tmp_path) == []
    with pytest.raises(UsageError, match="is no run folder"):
        read_run(tmp_path)
    with pytest.raises(UsageError, match="no such folder"):
        find_runs(tmp_path / "nowhere")


def test_two_runs_differ_in_what_was_set_and_in_nothing_else(place):
    found = differing(*find_runs(place))
    assert found == [("lora_r", 3, 5), ("seed", 1, 2)]


@pytest.mark.parametrize("width", [200, 64, 50])
def test_a_narrow_terminal_shows_fewer_figures_and_wraps_no_line(place, width):
    console = Console(width=width, file=StringIO(), highlight=False)
    show_list(console, find_runs(place), place)
    head, first, second, _, *note = console.file.getvalue().splitlines()
    assert first.startswith("first ")
    assert second.startswith("deep/er/second ")
    left_out = " ".join("".join(note).split()).rpartition(": ")[2].split(", ") if note else []
    assert left_out == list(LEAVING[: {200: 0, 64: 4, 50: 6}[width]])
    assert {*head.split(), *left_out} == {*ALWAYS, *LEAVING}


def test_the_command_lists_and_sets_side_by_side(place, capsys):
    suri(["runs", str(place)])
    shown = capsys.readouterr().out
    assert "deep/er/second" in shown
    assert "2 runs" in shown
    suri(["runs", str(place / "first"), str(place / "deep" / "er" / "second")])
    shown = capsys.readouterr().out
    assert "lora_r" in shown
    assert "learning_rate" not in shown
    assert "training loss" in shown
    suri(["runs", str(place), "--where", "seed=7"])
    assert "no runs below" in capsys.readouterr().out


def test_two_curves_share_their_axes_and_show_where_they_meet():
    def falling(start):
        return [{"step": step, "train/loss": start - step} for step in range(1, 9)]

    lines = two_curves(falling(9), falling(12), width=8, height=4, ascii_only=True)
    assert "11.000" in lines[0]
    assert "1.000" in lines[3]
    text = "".join(lines)
    assert text.index("[yellow]+[/]") < text.index("[blue]*[/]"), "the higher curve is the second"
    meeting = two_curves(falling(9), falling(9), width=8, height=4, ascii_only=True)
    assert "[bold]#[/]" in meeting[0]
    assert two_curves(falling(9), falling(9)[:5]) == []
