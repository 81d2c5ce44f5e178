"""Kills, full disks and damage around saved states: the run ends as if nothing had happened."""

import json
import os
import random
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from children import kill_after, mine, no_answers, recipe, rows, run, start, whole

from suri.errors import UsageError
from suri.model.adapter_file import WEIGHTS_FILE
from suri.recipe import Recipe
from suri.train.run import train

PLACES = ("adapter", "optimizer", "state", "manifest", "clean")


def going_on(folder):
    return Recipe(output_dir=str(folder), resume=True)


def checkpoints(folder):
    return sorted(path.name for path in (Path(folder) / "checkpoints").glob("step-*"))


def hidden(folder):
    return [path for path in Path(folder).rglob(".*") if path.name != ".lock"]


def assert_same(folder, whole):
    for name in (WEIGHTS_FILE, "best/" + WEIGHTS_FILE):
        assert (Path(folder) / name).read_bytes() == (whole / name).read_bytes()
    ours, theirs = (losses(place) for place in (folder, whole))
    assert ours == theirs


def losses(folder):
    lines = (Path(folder) / "metrics.jsonl").read_text().splitlines()
    return [
        (entry["step"], entry.get("train/loss"), entry.get("eval/loss"))
        for entry in map(json.loads, lines)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("place", [*(f"checkpoint.{name}" for name in PLACES), "rename"])
@pytest.mark.parametrize("time", [1, 3])
def test_a_kill_at_every_write_of_a_checkpoint_loses_nothing(mine, whole, place, time):
    assert run(mine, f"{place}*{time}=kill") == -9
    left = checkpoints(mine.output_dir)
    assert len(left) >= time - 1, "what was complete stays"
    again = mine if not left else going_on(mine.output_dir)
    if not left:
        shutil.rmtree(mine.output_dir)
    assert run(again) == 0
    assert_same(mine.output_dir, whole)
    assert hidden(mine.output_dir) == []


@pytest.mark.slow
@pytest.mark.parametrize("place", [f"checkpoint.{name}" for name in PLACES[:4]])
def test_a_full_disk_leaves_the_older_states_and_no_half_ones(mine, whole, place):
    assert run(mine, f"{place}*3=full") == 2
    assert checkpoints(mine.output_dir) == ["step-000002", "step-000004"]
    assert hidden(mine.output_dir) == []
    assert run(going_on(mine.output_dir)) == 0
    assert_same(mine.output_dir, whole)


@pytest.fixture(scope="module")
def killed(recipe, tmp_path_factory):
    """The folder of a run that was killed while it saved step 8: 4 and 6 are whole."""
    folder = tmp_path_factory.mktemp("killed") / "run"
    assert run(replace(recipe, output_dir=str(folder)), "checkpoint.adapter*4=kill") == -9
    assert checkpoints(folder) == ["step-000004", "step-000006"]
    return folder


@pytest.fixture
def cut(killed, tmp_path):
    """The same folder for one test to damage."""
    return Path(shutil.copytree(killed, tmp_path / "run"))


FILES = ("adapter_model.safetensors", "adapter_config.json", "base.json",
         "optimizer.safetensors", "state.json", "manifest.json")  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "gone"])
def test_a_damaged_newest_state_is_set_aside_and_the_one_before_taken(cut, whole, name, damage):
    file = cut / "checkpoints" / "step-000006" / name
    content = bytearray(file.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
    changed = {"flip": content, "cut": content[: len(content) // 2], "empty": b""}
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(changed[damage])
    said = []

    def listen(event, numbers):
        with (cut / "said").open("a") as stream:
            stream.write(str(numbers.get("text", "")) + "\n")

    assert run(going_on(cut), listen=listen) == 0
    said = (cut / "said").read_text()
    assert "step-000006 passed over: " in said
    assert "going on after step 4" in said
    assert (cut / "checkpoints" / "step-000006.corrupt").is_dir()
    assert_same(cut, whole)


@pytest.mark.slow
def test_what_is_no_checkpoint_is_none(cut, whole, tmp_path):
    place = cut / "checkpoints"
    (place / "step-000900").mkdir()
    (place / "step-latest").mkdir()
    shutil.copytree(place / "step-000006", tmp_path / "elsewhere")
    (place / "step-000800").symlink_to(tmp_path / "elsewhere")
    (place / "step-000700").write_text("a file")
    assert run(going_on(cut)) == 0
    assert_same(cut, whole)
    assert (tmp_path / "elsewhere" / "manifest.json").is_file(), "a link's target is not ours"


@pytest.mark.slow
@pytest.mark.parametrize("newest", ["step-000004", "step-000006"])
def test_steps_are_ordered_by_their_numbers_and_not_by_the_clock(cut, whole, newest):
    for name in ("step-000004", "step-000006"):
        for file in (cut / "checkpoints" / name).iterdir():
            os.utime(file, (1e9, 2e9 if name == newest else 1e9))
    assert run(going_on(cut)) == 0
    assert_same(cut, whole)


@pytest.mark.slow
def test_without_any_whole_state_the_remedy_is_named(cut):
    for name in ("step-000004", "step-000006"):
        (cut / "checkpoints" / name / "state.json").unlink()
    with pytest.raises(UsageError, match="no whole checkpoint") as caught:
        train(going_on(cut), lambda *_: None, no_answers)
    assert "--overwrite" in caught.value.do
    assert "state.json is missing" in caught.value.found


def soak(mine, whole, cycles, seed):
    """Kill and go on again and again at random moments, until the run is through that often."""
    chance, folder = random.Random(seed), Path(mine.output_dir)
    finished = killed = 0
    while killed < cycles:
        states = checkpoints(folder)
        if not states:
            shutil.rmtree(folder, ignore_errors=True)
        recipe = going_on(folder) if states else mine
        pid = start(partial(train, recipe, lambda *_: None, no_answers))
        code = kill_after(pid, chance.uniform(0.05, 1.2))
        assert code in (0, -9)
        killed += code != 0
        if (folder / "manifest.json").is_file():
            finished += 1
            assert_same(folder, whole)
            shutil.rmtree(folder)
    if checkpoints(folder):
        assert run(going_on(folder)) == 0
        assert_same(folder, whole)
    return finished


@pytest.mark.slow
def test_twenty_kills_at_random_moments_end_in_the_same_adapter(mine, whole):
    soak(mine, whole, 20, seed=5)


@pytest.mark.soak
def test_two_hundred_kills_end_in_the_same_adapter(mine, whole):
    assert soak(mine, whole, 200, seed=6) >= 1
