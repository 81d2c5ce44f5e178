"""Whole runs of a tiny model: both engines, resume, interruption, what lies in the folder."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import metrics, no_answers, recipe_for, silent, write_rows
from safetensors.torch import load_file

from conftest import make_model, write_tokenizer
from suri.cli.main import main
from suri.data.records import Record, write_records
from suri.errors import Diverged, Preempted, UsageError
from suri.manifest import check_manifest
from suri.model.adapter import initial_adapter
from suri.model.adapter_file import WEIGHTS_FILE, read_adapter
from suri.model.config import read_config
from suri.recipe import Recipe
from suri.train.plan import Plan
from suri.train.run import train

pytestmark = pytest.mark.usefixtures("short_answers")


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_rows(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"use_rslora": True, "loraplus_lr_ratio": 3.0}])
def test_both_engines_give_the_same_twenty_losses(
    tiny: Path, rows: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    for engine in ("suri", "reference"):
        recipe = recipe_for(tiny, rows, tmp_path / engine, engine=engine, max_steps=20, **changes)
        train(recipe, silent, no_answers)
    ours, theirs = (metrics(tmp_path / e, "train/loss") for e in ("suri", "reference"))
    assert len(ours) == len(theirs) == 20
    assert ours == pytest.approx(theirs, rel=1e-4)
    assert ours[-1] < 0.9 * ours[0]
    first, second = (metrics(tmp_path / e, "eval/loss") for e in ("suri", "reference"))
    assert first == pytest.approx(second, rel=1e-4)


@pytest.mark.slow
def test_nf4_trains_and_records_its_base(tiny: Path, rows: Path, tmp_path: Path) -> None:
    result = train(recipe_for(tiny, rows, tmp_path / "q", quantize="nf4"), silent, no_answers)
    exact = train(recipe_for(tiny, rows, tmp_path / "n"), silent, no_answers)
    assert result["held_out_loss"] < result["base_loss"]
    assert result["base_loss"] != exact["base_loss"]
    base = read_adapter(tmp_path / "q").base
    assert (base["quantize"], base["name"]) == ("nf4", str(tiny))


@pytest.mark.slow
def test_the_run_folder_is_whole_and_its_adapter_the_best(
    tiny: Path, rows: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    result = train(recipe_for(tiny, rows, folder), silent, no_answers)
    check_manifest(folder)
    losses = metrics(folder, "eval/loss")
    assert result["base_loss"] == losses[0]
    assert result["held_out_loss"] == min(losses[1:])
    best, root = (load_file(p / WEIGHTS_FILE) for p in (folder / "best", folder))
    assert all(torch.equal(best[name], root[name]) for name in root)
    counts = json.loads((folder / "data.json").read_text())
    assert (counts["train_rows"], counts["held_out_rows"]) == (18, 5)
    assert len((folder / "held_out.jsonl").read_text().splitlines()) == 5


def test_what_is_odd_in_the_rows_is_said_and_recorded(tiny: Path, tmp_path: Path) -> None:
    said: list[str] = []

    def listen(event: str, numbers: dict[str, Any]) -> None:
        said.extend([numbers["text"]] if event == "note" else [])

    records = [Record(f"say {n}", "", "y" * n) for n in range(1, 9)]
    records += [Record("say", "x" * 90, "z"), Record("x" * 300, "", "z"), records[0]]
    write_records(tmp_path / "alpaca_data.json", records)
    recipe = recipe_for(
        tiny, tmp_path / "alpaca_data.json", tmp_path / "run", val_set_size=0, max_steps=1,
        prompt_template_name="alpaca_short", cutoff_len=90, group_by_length=True,
    )  # fmt: skip
    result = train(recipe, listen, no_answers)
    assert result["rows"] == 10
    data = json.loads((tmp_path / "run" / "data.json").read_text(encoding="utf-8"))
    assert data["left_out_rows"] == [10]
    assert data["warnings"] == {"duplicate": 1}
    counts = data["encoded"]
    assert (counts["rows"], counts["trimmed_input"], counts["without_learned_tokens"]) == (11, 1, 1)
    notes = "\n".join(said)
    assert "in the rows: 1 x the same as an earlier row" in notes
    assert "rows longer than cutoff_len 90: 1; they lose part of their input" in notes
    assert "left out: rows 10" in notes
    card = (tmp_path / "run" / "README.md").read_text(encoding="utf-8")
    assert "CC BY-NC 4.0" in card


@pytest.mark.slow
def test_a_run_that_goes_on_keeps_its_prompt(tiny: Path, rows: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.json"
    own.write_text(
        '{"prompt_input": "{instruction}|{input}>", "prompt_no_input": "{instruction}>"}'
    )
    recipe = recipe_for(tiny, rows, tmp_path / "run", prompt_template_name=str(own), save_steps=2)

    def stop(event: str, numbers: dict[str, Any]) -> None:
        if event == "step" and numbers["step"] == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Preempted):
        train(recipe, stop, no_answers)
    saved = (tmp_path / "run" / "prompt.json").read_text(encoding="utf-8")
    own.write_text('{"prompt_input": "{input}{instruction}", "prompt_no_input": "{instruction}"}')
    train(Recipe(output_dir=str(tmp_path / "run"), resume=True), silent, no_answers)
    assert (tmp_path / "run" / "prompt.json").read_text(encoding="utf-8") == saved
    train(replace(recipe, output_dir=str(tmp_path / "other")), silent, no_answers)
    losses = [metrics(tmp_path / name, "train/loss")[4:] for name in ("run", "other")]
    assert losses[0] != losses[1]


@pytest.mark.slow
def test_conversations_train_every_answer(tiny: Path, tmp_path: Path) -> None:
    talk = [{"messages": [
        {"role": "user", "content": f"a{n}"}, {"role": "assistant", "content": "b" * n},
        {"role": "user", "content": "c"}, {"role": "assistant", "content": "dd"},
    ]} for n in range(1, 7)]  # fmt: skip
    (tmp_path / "talk.json").write_text(json.dumps(talk))
    recipe = recipe_for(tiny, tmp_path / "talk.json", tmp_path / "run", val_set_size=1)
    result = train(replace(recipe, num_epochs=20, batch_size=5), silent, no_answers)
    data = json.loads((tmp_path / "run" / "data.json").read_text(encoding="utf-8"))
    held_out = json.loads((tmp_path / "run" / "held_out.jsonl").read_text(encoding="utf-8"))
    others = set(range(1, 7)) - {len(held_out["history"][0][1])}
    assert data["encoded"]["learned_tokens"] == sum(n + 1 + 3 for n in others)
    assert result["held_out_loss"] < 0.7 * result["base_loss"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [{}, {"lora_dropout": 0.2}, {"quantize": "nf4"}, {"loraplus_lr_ratio": 4.0}],
)
def test_resume_is_bit_identical(
    tiny: Path, rows: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    recipe = recipe_for(tiny, rows, whole, save_steps=3, num_epochs=2, **changes)
    train(recipe, silent, no_answers)

    def stop_in_step_eight(event: str, numbers: dict[str, Any]) -> None:
        if event == "batch" and numbers["step"] == 8:
            os.kill(os.getpid(), signal.SIGTERM)

    # Two micro-batches a step, so that the request comes with half a step done.
    small = replace(recipe, output_dir=str(cut), micro_batch_size=2)
    with pytest.raises(Preempted, match="after step 7 of"):
        train(small, stop_in_step_eight, no_answers)
    assert not (cut / "result.json").exists()
    spent = json.loads((cut / "metrics.jsonl").read_text().splitlines()[-1])["seconds"]
    resumed = train(Recipe(output_dir=str(cut), resume=True), silent, no_answers)
    assert resumed["total_seconds"] > max(spent, resumed["train_seconds"])
    assert resumed["peak_memory_bytes"] >= max(metrics(cut, "memory/peak_bytes"))
    same = train(replace(small, output_dir=str(tmp_path / "same")), silent, no_answers)
    first, second = (load_file(p / WEIGHTS_FILE) for p in (cut, tmp_path / "same"))
    assert all(torch.equal(first[name], second[name]) for name in second)
    assert metrics(cut, "train/loss") == metrics(tmp_path / "same", "train/loss")
    assert metrics(cut, "train/loss") == pytest.approx(metrics(whole, "train/loss"), rel=1e-4)
    assert len(metrics(cut, "train/loss")) == same["steps"]


@pytest.mark.slow
def test_a_damaged_newest_checkpoint_is_passed_over(tiny: Path, rows: Path, tmp_path: Path) -> None:
    folder, said = tmp_path / "run", []
    recipe = recipe_for(tiny, rows, folder, save_steps=3, val_set_size=0)

    def stop(event: str, numbers: dict[str, Any]) -> None:
        if event == "step" and numbers["step"] == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(recipe, stop, no_answers)
    newest = folder / "checkpoints" / "step-000006" / "optimizer.safetensors"
    damaged = bytearray(newest.read_bytes())
    damaged[-7] ^= 1
    newest.write_bytes(damaged)

    def listen(event: str, numbers: dict[str, Any]) -> None:
        said.append(numbers.get("text", ""))

    train(Recipe(output_dir=str(folder), resume=True), listen, no_answers)
    assert any("step-000006 passed over: optimizer.safetensors has changed" in x for x in said)
    assert any("going on after step 3" in x for x in said)
    assert len(metrics(folder, "train/loss")) == 24


@pytest.mark.slow
def test_a_loss_that_is_no_number_stops_before_the_weights(
    tiny: Path, rows: Path, tmp_path: Path
) -> None:
    """A base with an infinity in its head, as a truncated download may have."""
    from safetensors.torch import save_file

    base = tmp_path / "base"
    base.mkdir()
    for file in tiny.iterdir():
        (base / file.name).write_bytes(file.read_bytes())
    tensors = load_file(base / "model.safetensors")
    tensors["lm_head.weight"][9, 4] = float("inf")
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    recipe = recipe_for(base, rows, tmp_path / "run", val_set_size=0)
    with pytest.raises(Diverged, match="in step 1"):
        train(recipe, silent, no_answers)
    saved = read_adapter(tmp_path / "run" / "checkpoints" / "step-000000")
    assert all(not bool(b.any()) for _, b in saved.tensors.values())


@pytest.mark.slow
def test_output_folders_that_are_not_free(tiny: Path, rows: Path, tmp_path: Path) -> None:
    recipe = recipe_for(tiny, rows, tmp_path / "run", max_steps=1)
    train(recipe, silent, no_answers)
    with pytest.raises(UsageError, match="is finished"):
        train(recipe, silent, no_answers)
    train(replace(recipe, overwrite=True), silent, no_answers)
    foreign = tmp_path / "letters"
    foreign.mkdir()
    (foreign / "dear.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(UsageError, match="holds something else"):
            train(replace(recipe, output_dir=str(foreign), overwrite=overwrite), silent, no_answers)
    assert (foreign / "dear.txt").read_text() == "mine"
    with pytest.raises(UsageError, match="is a file"):
        train(replace(recipe, output_dir=str(foreign / "dear.txt")), silent, no_answers)


@pytest.mark.slow
def test_going_on_from_a_checkpoint_ends_with_the_runs_own_folder(
    tiny: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"

    def stop(event: str, numbers: dict[str, Any]) -> None:
        if event == "step" and numbers["step"] == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(recipe_for(tiny, rows, folder, save_steps=3), stop, no_answers)
    main(["train", "--resume_from_checkpoint", str(folder / "checkpoints" / "step-000003")])
    said = capsys.readouterr().out
    assert f"suri chat {folder}\n" in said
    assert "training loss" in said


@pytest.mark.slow
def test_resume_with_other_settings_is_refused(tiny: Path, rows: Path, tmp_path: Path) -> None:
    recipe = recipe_for(tiny, rows, tmp_path / "run")

    def stop(event: str, numbers: dict[str, Any]) -> None:
        if event == "step":
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Preempted):
        train(recipe, stop, no_answers)
    other = Recipe(output_dir=str(tmp_path / "run"), resume=True, lora_r=4)
    with pytest.raises(UsageError, match="lora_r is 3, asked for 4"):
        train(other, silent, no_answers)


@pytest.mark.slow
def test_ctrl_c_in_a_real_process_saves_and_names_the_command(
    tiny: Path, rows: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    words = [sys.executable, "-m", "suri", "train", "--base_model", str(tiny), "--data_path",
             str(rows), "--output_dir", str(folder), "--num_epochs", "4000"]  # fmt: skip
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not (folder / "metrics.jsonl").is_file() and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 75, errors
    assert f"suri train --resume --output_dir {folder}" in errors
    assert "Traceback" not in errors
    assert list((folder / "checkpoints").glob("step-*/manifest.json"))


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["suri", "reference"])
def test_the_first_step_of_a_run_by_hand(
    tiny: Path, rows: Path, tmp_path: Path, engine: str
) -> None:
    """B starts at zero: A has no gradient and only decays, each number of B moves by its rate."""
    settings = {"max_steps": 1, "warmup_ratio": 0, "val_set_size": 0, "engine": engine}
    settings |= {"learning_rate": 0.01, "weight_decay": 0.3, "loraplus_lr_ratio": 5.0}
    start = initial_adapter(
        read_config(tiny), r=3, alpha=8.0, targets=Recipe().lora_target_modules, seed=5
    )
    for name, longest, move in (("free", 0.0, 0.05), ("clipped", 1e-9, 0.05 / 11)):
        recipe = recipe_for(tiny, rows, tmp_path / name, max_grad_norm=longest, **settings)
        train(recipe, silent, no_answers)
        assert metrics(tmp_path / name, "train/learning_rate") == [0.01]
        saved = read_adapter(tmp_path / name).tensors
        for module, (a, b) in saved.items():
            assert torch.allclose(a, start.tensors[module][0] * (1 - 0.01 * 0.3), atol=1e-7)
            assert 0 < b.abs().max() <= move * 1.0001
        if name == "free":
            assert max(float(b.abs().max()) for _, b in saved.values()) == pytest.approx(0.05)


def overfitting(tiny: Path, rows: Path, folder: Path, **changes: Any) -> Recipe:
    """A run whose held-out loss soon rises: few rows, a high rate, evaluated at every step."""
    settings = {
        "learning_rate": 0.05,
        "val_set_size": 15,
        "eval_steps": 1,
        "num_epochs": 15,
        "lr_schedule": "constant",
    }
    return recipe_for(tiny, rows, folder, **settings | changes)


@pytest.mark.slow
def test_early_stopping_ends_the_run_when_the_held_out_loss_stalls(
    tiny: Path, rows: Path, tmp_path: Path
) -> None:
    said: list[str] = []

    def listen(event: str, numbers: dict[str, Any]) -> None:
        said.append(numbers.get("text", ""))

    whole = train(overfitting(tiny, rows, tmp_path / "whole"), silent, no_answers)
    losses = metrics(tmp_path / "whole", "eval/loss")[1:]
    # The rule once more, on the losses of the run that was not stopped.
    stale, best, last = 0, float("inf"), 0
    while stale < 3:
        loss = losses[last]
        stale, best = (0, loss) if loss < best else (stale + 1, best)
        last += 1
    assert 4 < last < whole["steps"], losses
    recipe = overfitting(tiny, rows, tmp_path / "run", early_stopping_patience=3)
    result = train(recipe, listen, no_answers)
    assert (result["steps"], result["best_step"]) == (last, last - 3)
    assert (result["stopped_early"], whole["stopped_early"]) == (True, False)
    assert result["held_out_loss"] == best
    assert (
        metrics(tmp_path / "run", "train/loss") == metrics(tmp_path / "whole", "train/loss")[:last]
    )
    assert any(f"stopped after step {last} of {whole['steps']}: 3 evaluations" in x for x in said)
    check_manifest(tmp_path / "run")


@pytest.mark.slow
def test_patience_survives_a_resume(tiny: Path, rows: Path, tmp_path: Path) -> None:
    settings = {"early_stopping_patience": 3, "save_steps": 1}
    whole = train(overfitting(tiny, rows, tmp_path / "whole", **settings), silent, no_answers)

    for steps_before_the_end in (2, 0):
        folder = tmp_path / f"cut{steps_before_the_end}"
        cut_step = whole["steps"] - steps_before_the_end

        def stop(event: str, numbers: dict[str, Any], cut_step: int = cut_step) -> None:
            # Killed hard after the state of that step was saved: as the next step starts, or,
            # where no step follows, as the end is told.
            after = event == "batch" and numbers["step"] == cut_step + 1
            if after or (event == "note" and "stopped after step" in numbers["text"]):
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            train(overfitting(tiny, rows, folder, **settings), stop, no_answers)
        result = train(Recipe(output_dir=str(folder), resume=True), silent, no_answers)
        assert result["steps"] == whole["steps"]
        assert metrics(folder, "eval/loss") == metrics(tmp_path / "whole", "eval/loss")


def test_early_stopping_without_held_out_rows_is_refused(
    tiny: Path, rows: Path, tmp_path: Path
) -> None:
    recipe = recipe_for(tiny, rows, tmp_path / "run", val_set_size=0, early_stopping_patience=1)
    with pytest.raises(UsageError, match="needs held-out rows"):
        train(recipe, silent, no_answers)
    assert not (tmp_path / "run").exists()


def test_every_example_is_learned_once_per_epoch() -> None:
    plan = Plan(Recipe(batch_size=5, num_epochs=2.5), [1] * 23)
    assert (plan.steps_per_epoch, plan.steps) == (5, 13)
    epochs = [[i for step in range(1 + 5 * e, 6 + 5 * e) for i in plan.examples(step)]
              for e in range(2)]  # fmt: skip
    assert [sorted(epoch) for epoch in epochs] == [list(range(23))] * 2
    assert epochs[0] != epochs[1]


@pytest.mark.slow
def test_a_mistral_with_a_window_trains(tmp_path: Path, rows: Path) -> None:
    folder = make_model(tmp_path / "mistral", "mistral", sliding_window=9)
    write_tokenizer(folder)
    recipe = recipe_for(folder, rows, tmp_path / "run", max_steps=6)
    result = train(recipe, silent, no_answers)
    assert result["held_out_loss"] < result["base_loss"]
