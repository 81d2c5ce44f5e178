"""Stops at every moment of a run, and the ways in which one begins again."""

import json
import os
import pty
import select
import shutil
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from children import mine, no_answers, recipe, rows, run, start, wait, whole
from safetensors.torch import load_file

from suri.errors import UsageError
from suri.model.adapter_file import WEIGHTS_FILE, read_adapter
from suri.recipe import Recipe
from suri.train import loop
from suri.train.run import train

PREEMPTED = 75


def going_on(folder):
    return Recipe(output_dir=str(folder), resume=True)


def weights(folder):
    return (Path(folder) / WEIGHTS_FILE).read_bytes()


def result(folder):
    return json.loads((Path(folder) / "result.json").read_text())


def states(folder):
    return sorted(path.name for path in (Path(folder) / "checkpoints").glob("step-*"))


def losses(folder):
    lines = (Path(folder) / "metrics.jsonl").read_text().splitlines()
    return [(line["step"], line.get("train/loss")) for line in map(json.loads, lines)]


def asking(moment, number=signal.SIGTERM, times=1):
    """A listener that asks its own process to stop at the first event that `moment` knows."""
    left = [times]

    def listen(event, numbers):
        if left[0] and moment(event, numbers):
            left[0] = 0
            for _ in range(times):
                os.kill(os.getpid(), number)

    return listen


# 13 rows less 3 held out in batches of 3: four steps an epoch, twelve in the run.
MOMENTS = {
    "before the first step is whole": (lambda e, n: e == "batch" and n["step"] == 1, 0),
    "between two micro-batches": (lambda e, n: e == "batch" and n["step"] == 6, 5),
    "at an epoch's last step": (lambda e, n: e == "step" and n["step"] == 4, 4),
    "in the last step, of one row": (lambda e, n: e == "batch" and n["step"] == 12, 12),
}


@pytest.mark.slow
@pytest.mark.parametrize("when", MOMENTS)
def test_a_run_that_is_stopped_at_any_moment_ends_as_if_it_had_not_been(mine, tmp_path, when):
    """One row in a micro-batch, so that every step has several; the same rows in every step."""
    moment, step = MOMENTS[when]
    mine = replace(mine, micro_batch_size=1)
    unbroken = replace(mine, output_dir=str(tmp_path / "unbroken"))
    assert run(unbroken) == 0
    assert run(mine, listen=asking(moment)) == PREEMPTED
    assert states(mine.output_dir)[-1] == f"step-{step:06d}"
    assert not (Path(mine.output_dir) / WEIGHTS_FILE).exists()
    assert run(going_on(mine.output_dir)) == 0
    assert weights(mine.output_dir) == weights(unbroken.output_dir)
    assert losses(mine.output_dir) == losses(unbroken.output_dir)
    ours, theirs = (result(folder)["facts"] for folder in (mine.output_dir, unbroken.output_dir))
    assert ours == theirs, "no row twice and none left out"


@pytest.mark.slow
@pytest.mark.parametrize("place", ["_evaluate", "save_checkpoint"])
def test_a_stop_within_an_evaluation_or_a_save_is_kept(mine, whole, monkeypatch, place):
    """The signal comes before the first line of either, the second time it is called."""
    owner = loop.Run if place == "_evaluate" else loop
    done, called = getattr(owner, place), []

    def interrupted(*args):
        called.append(1)
        if len(called) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return done(*args)

    monkeypatch.setattr(owner, place, interrupted)
    assert run(mine) == PREEMPTED
    monkeypatch.undo()
    assert states(mine.output_dir)
    assert run(going_on(mine.output_dir)) == 0
    assert weights(mine.output_dir) == weights(whole)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_request_ends_the_run_at_once_and_what_was_saved_stays(mine, whole, number):
    moment = MOMENTS["between two micro-batches"][0]
    code = run(mine, listen=asking(moment, number, times=2))
    assert code == 130
    assert states(mine.output_dir) == ["step-000002", "step-000004"]
    assert run(going_on(mine.output_dir)) == 0
    assert weights(mine.output_dir) == weights(whole)


@pytest.mark.slow
def test_nothing_is_left_of_a_run_that_is_stopped_while_rows_are_read(mine, monkeypatch):
    from suri.train import prepare

    def stopped(*_):
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(prepare, "load_rows", stopped)
    assert run(mine) == -signal.SIGTERM
    monkeypatch.undo()
    left = {path.name for path in Path(mine.output_dir).iterdir()}
    assert left == {".lock"}
    assert run(mine) == 0, "and it is no hindrance"


@pytest.mark.slow
def test_a_dashboard_that_fails_does_not_end_the_run(mine, whole, monkeypatch, capfd):
    from suri.train import trackers

    class Failing:
        def log(self, figures, step):
            if step == 3:
                raise ConnectionError("the other side is gone")

        def finish(self):
            raise ConnectionError("still gone")

    monkeypatch.setattr(trackers, "_library", lambda _: None)
    monkeypatch.setattr(trackers, "OPENERS", {"wandb": lambda *_: Failing()})
    told = replace(mine, report_to=("wandb",))
    assert run(told, listen=lambda _, numbers: print(numbers.get("text", ""))) == 0
    assert capfd.readouterr().out.count("the other side is gone") == 1
    assert weights(mine.output_dir) == weights(whole)


@pytest.mark.slow
def test_a_run_may_start_from_an_adapters_weights_alone(mine, whole, tmp_path):
    """PEFT's two files, copied out of a run; the loss before the first step is theirs."""
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("adapter_config.json", WEIGHTS_FILE):
        shutil.copy(whole / name, bare / name)
    given = replace(mine, start_from=str(bare), seed=43, num_epochs=1.0)
    assert run(given, "checkpoint.clean*1=kill") == -9
    shutil.rmtree(bare)
    assert run(going_on(mine.output_dir)) == 0, "the run keeps what it began with"
    kept = read_adapter(Path(mine.output_dir) / "start").tensors
    assert kept.keys() == read_adapter(whole).tensors.keys()
    assert all(torch.equal(a, b) for a, b in
               zip(load_file(Path(mine.output_dir) / "start" / WEIGHTS_FILE).values(),
                   load_file(whole / WEIGHTS_FILE).values(), strict=True))  # fmt: skip
    assert weights(mine.output_dir) != weights(whole)


@pytest.mark.slow
def test_where_a_run_started_decides_its_first_loss(mine, whole):
    given = replace(mine, start_from=str(whole), max_steps=1)
    assert run(given) == 0
    before = result(mine.output_dir)["base_loss"]
    assert before == pytest.approx(result(whole)["held_out_loss"], rel=1e-6)
    assert before != pytest.approx(result(whole)["base_loss"], rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(("named", "kept"), [("alpaca", "mine"), ("vigogne", "vigogne")])
def test_a_start_brings_its_prompt_unless_another_is_named(mine, whole, tmp_path, named, kept):
    start = shutil.copytree(whole, tmp_path / "start")
    texts = {"name": "mine", "prompt_input": "Q: {instruction} {input} A:",
             "prompt_no_input": "Q: {instruction} A:"}  # fmt: skip
    (start / "prompt.json").write_text(json.dumps(texts))
    given = replace(mine, start_from=str(start), prompt_template_name=named, max_steps=1)
    assert run(given) == 0
    saved = json.loads((Path(mine.output_dir) / "prompt.json").read_text())
    assert saved["name"] == kept
    assert (saved["prompt_no_input"] == texts["prompt_no_input"]) == (kept == "mine")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"lora_r": 5}, "lora_r is 3 there, 5 here"),
        ({"lora_alpha": 9.0}, "the scaling is"),
        ({"lora_target_modules": ("q_proj",)}, "the number of pairs is 21 there, 3 here"),
    ],
)
def test_another_kind_of_adapter_is_no_start(mine, whole, changes, told):
    with pytest.raises(UsageError) as caught:
        train(replace(mine, start_from=str(whole), **changes), lambda *_: None, no_answers)
    assert told in caught.value.found


def test_an_adapter_alone_cannot_be_gone_on_with_and_the_way_is_named(whole, tmp_path):
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("adapter_config.json", WEIGHTS_FILE):
        shutil.copy(whole / name, bare / name)
    with pytest.raises(UsageError) as caught:
        train(Recipe(resume_from_checkpoint=str(bare)), lambda *_: None, no_answers)
    assert f"--start_from {bare}" in caught.value.do


def on_a_terminal(words, answer):
    """What a person sees who answers the first question of a command, and its exit code."""
    pid, screen = pty.fork()
    if not pid:
        os.execvp(sys.executable, [sys.executable, "-m", "suri", *words])
    seen, until = b"", time.monotonic() + 60
    while time.monotonic() < until:
        if not select.select([screen], [], [], 1)[0]:
            continue
        try:
            seen += os.read(screen, 4096)
        except OSError:  # the other side has ended
            break
        if answer and b"[y/n]" in seen:
            os.write(screen, answer)
            answer = b""
    os.close(screen)
    return wait(pid), seen.decode()


@pytest.mark.slow
def test_a_person_is_offered_to_go_on(mine, whole):
    assert run(mine, "checkpoint.adapter*4=kill") == -9
    words = ["train", "--output_dir", mine.output_dir]
    code, seen = on_a_terminal(words, b"n\n")
    assert (code, "--overwrite starts anew" in seen) == (2, True)
    code, seen = on_a_terminal(words, b"\n")
    assert code == 0
    assert "Go on with it?" in seen
    assert "going on after step 6" in seen
    assert weights(mine.output_dir) == weights(whole)
