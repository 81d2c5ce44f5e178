"""Signals, locks, changed inputs and numbers that are none."""

import json
import os
import shutil
import signal
import socket
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from children import mine, no_answers, recipe, rows, run, start, wait
from safetensors.torch import load_file, save_file

from suri.data.records import Record, write_records
from suri.errors import Diverged, UsageError
from suri.model.adapter_file import WEIGHTS_FILE
from suri.recipe import Recipe
from suri.train.run import train

PREEMPTED, USAGE = 75, 2


def silent(*_):
    return None


def started(recipe):
    """A child in the middle of its run."""
    pid = start(lambda: train(recipe, silent, no_answers))
    metrics = Path(recipe.output_dir) / "metrics.jsonl"
    until = time.monotonic() + 60
    while not (metrics.is_file() and len(metrics.read_text().splitlines()) > 3):
        assert time.monotonic() < until
        time.sleep(0.01)
    return pid


def going_on(folder):
    return Recipe(output_dir=str(folder), resume=True)


@pytest.fixture
def long(mine):
    """Long enough to be met in its middle."""
    return replace(mine, num_epochs=400.0, save_steps=500, eval_steps=700)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_request_to_stop_saves_and_neither_finishes_nor_reports(long, number):
    pid = started(long)
    os.kill(pid, number)
    assert wait(pid) == PREEMPTED
    folder = Path(long.output_dir)
    assert not (folder / "result.json").exists()
    assert not (folder / WEIGHTS_FILE).exists()
    (saved,) = (folder / "checkpoints").glob("step-*")
    step = json.loads((saved / "state.json").read_text())["progress"]["step"]
    trained = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert step == trained[-1]["step"] >= 3
    assert (folder / ".lock").read_text() == "", "given back"


@pytest.mark.slow
def test_a_second_run_in_the_same_folder_is_refused_by_name(long):
    pid = started(long)
    try:
        with pytest.raises(UsageError, match="is writing into") as caught:
            train(going_on(long.output_dir), silent, no_answers)
        assert f"process {pid} on {socket.gethostname()}" in caught.value.found
    finally:
        os.kill(pid, signal.SIGTERM)
        wait(pid)


@pytest.mark.slow
def test_a_killed_runs_lock_is_taken_over(long):
    pid = started(long)
    os.kill(pid, signal.SIGKILL)
    wait(pid)
    held = json.loads((Path(long.output_dir) / ".lock").read_text())
    assert held["pid"] == pid
    assert run(replace(long, num_epochs=1.0, overwrite=True)) == 0


@pytest.mark.slow
@pytest.mark.parametrize("text", ["{half", "[1]", "7", "{]}"])
def test_an_unreadable_lock_file_that_nobody_holds_is_no_hindrance(mine, text):
    folder = Path(mine.output_dir)
    folder.mkdir()
    (folder / ".lock").write_text(text)
    assert run(replace(mine, max_steps=1)) == 0


@pytest.mark.slow
def test_another_machines_lock_is_not(mine):
    assert run(mine, "checkpoint.adapter*3=kill") == -9
    lock = Path(mine.output_dir) / ".lock"
    lock.write_text(json.dumps({"pid": 7, "host": "elsewhere", "boot": "x"}))
    assert run(going_on(mine.output_dir)) == USAGE
    lock.unlink()
    assert run(going_on(mine.output_dir)) == 0


@pytest.fixture
def cut(mine):
    assert run(mine, "checkpoint.adapter*4=kill") == -9
    return mine


def refusal(recipe):
    with pytest.raises(UsageError) as caught:
        train(recipe, silent, no_answers)
    return caught.value.found


def with_rows(cut, tmp_path, rows):
    """The cut run as if it had been started on a file that has other rows by now."""
    file = tmp_path / "mine.json"
    recorded = Path(cut.output_dir) / "recipe.toml"
    recorded.write_text(recorded.read_text().replace(cut.data_path, str(file)))
    write_records(file, rows)


@pytest.mark.slow
def test_changed_rows_are_named(cut, tmp_path, rows):
    records = [Record("Say it.", f"{n}", f"x{n} y") for n in range(13)]
    with_rows(cut, tmp_path, [*records[:-1], Record("Say it.", "12", "other")])
    found = refusal(going_on(cut.output_dir))
    assert "sha256 is " in found
    assert ", was " in found


@pytest.mark.slow
def test_a_changed_base_is_named(cut, tmp_path, tiny):
    base = tmp_path / "base"
    shutil.copytree(tiny, base)
    tensors = load_file(base / "model.safetensors")
    tensors["model.norm.weight"][3] += 0.5
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    recorded = Path(cut.output_dir) / "recipe.toml"
    recorded.write_text(recorded.read_text().replace(str(tiny), str(base)))
    assert "the base's fingerprint is " in refusal(going_on(cut.output_dir))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"seed": 7}, "seed is 42, asked for 7"),
        ({"lora_r": 5}, "lora_r is 3, asked for 5"),
        ({"quantize": "nf4"}, "quantize is none, asked for nf4"),
        ({"batch_size": 4}, "batch_size is 3, asked for 4"),
    ],
)
def test_changed_settings_are_named(cut, change, told):
    assert told in refusal(replace(going_on(cut.output_dir), **change))


@pytest.fixture
def poisoned(mine, tiny, tmp_path):
    """A base where one letter, that stands in one row alone, has an embedding of infinity."""
    from suri.model.tokenizer import read_tokenizer

    base = tmp_path / "base"
    shutil.copytree(tiny, base)
    (letter,) = read_tokenizer(base).encode("Z")
    tensors = load_file(base / "model.safetensors")
    tensors["model.embed_tokens.weight"][letter] = float("inf")
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    records = [Record("Say it.", f"{n}", f"x{n} y") for n in range(12)]
    write_records(tmp_path / "rows.json", [*records, Record("Say it.", "Z", "x y")])
    write_records(tmp_path / "held_out.json", records[:2])
    return replace(
        mine, base_model=str(base), data_path=str(tmp_path / "rows.json"), val_set_size=0.0,
        val_set_path=str(tmp_path / "held_out.json"),
    )  # fmt: skip


@pytest.mark.slow
def test_a_step_that_is_no_number_is_left_out_and_counted(poisoned):
    said = []
    train(
        replace(poisoned, on_divergence="skip"),
        lambda _, numbers: said.append(numbers.get("text", "")),
        no_answers,
    )
    told = [text for text in said if "left out (loss nan" in text]
    assert len(told) == 3, "once in each epoch"
    assert "rows " in told[0]
    assert told[2].endswith("3 so far")
    folder = Path(poisoned.output_dir)
    weights = load_file(folder / WEIGHTS_FILE)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in weights.values())
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert sum("train/skipped" in line for line in lines) == 3
    assert not [line for line in lines if line.get("train/loss") == 0.0]


@pytest.mark.slow
def test_going_back_halves_the_rate_and_gives_up_in_the_end(poisoned):
    said = []
    with pytest.raises(Diverged):
        train(
            replace(poisoned, on_divergence="back", save_steps=1, seed=44),
            lambda _, numbers: said.append(numbers.get("text", "")),
            no_answers,
        )
    back = [text for text in said if "learning rate halved" in text]
    assert len(back) == 5
    rates = [
        json.loads(line).get("train/learning_rate")
        for line in (Path(poisoned.output_dir) / "metrics.jsonl").read_text().splitlines()
    ]
    assert all(rate is None or rate > 0 for rate in rates)


@pytest.mark.slow
def test_by_default_such_a_step_stops_the_run_and_names_the_rows(poisoned):
    with pytest.raises(Diverged, match="stopped being a number") as caught:
        train(poisoned, silent, no_answers)
    assert "13" in caught.value.do.rpartition("rows:")[2]
    assert "--on_divergence skip" in caught.value.do
