import json

import pytest

from suri.data.records import Record, write_records
from suri.errors import SuriError, UsageError
from suri.recipe import Recipe
from suri.study.plan import Plan, prepare
from suri.study.trials import collect, run_plan

LONG = "Say this long word many times over and over again please: "


@pytest.fixture
def plan(tiny, tmp_path):
    """Rows whose first two, in the study's order, are too long to have anything to learn."""
    rows = [Record(LONG * 3, "", f"x{n}") for n in range(3)]
    rows += [Record("Say it.", f"{n}", f"y{n}") for n in range(9)]
    write_records(tmp_path / "rows.json", rows)
    recipe = Recipe(
        base_model=str(tiny), data_path=str(tmp_path / "rows.json"), val_set_size=3.0, seed=SEED,
        batch_size=3, cutoff_len=240, num_epochs=1.0, lora_r=3, lora_alpha=7.0, device="cpu",
    )  # fmt: skip
    return Plan(recipe, ("none",), (2, 7), (5,))


SEED = 17


def pretend(place, seconds_per_token, loss):
    """A finished trial as training and measuring leave it."""
    run = place / "run"
    run.mkdir(parents=True)
    result = {
        "steps": 4, "tokens": 480, "train_seconds": 9.5, "peak_memory_bytes": int(7e8),
        "base_loss": 2.25, "held_out_loss": loss,
    }  # fmt: skip
    (run / "result.json").write_text(json.dumps(result))
    (run / "environment.json").write_text(json.dumps({"python": "3.11.9", "cores": 2}))
    lines = [{"step": 0, "eval/loss": 2.25}]
    for step, slower in enumerate((9.0, 1.0, 1.1, 0.9), start=1):
        rate = 1 / (slower * seconds_per_token)
        lines.append({"step": step, "train/loss": 2.0 - step / 8, "train/tokens_per_second": rate})
    lines.append({"step": 4, "eval/loss": loss})
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (place / "losses").mkdir()
    losses = [{"row": row, "loss_sum": loss * 4 + row, "learned_tokens": 4} for row in range(9)]
    measured = {"losses": losses, "environment": {"device": "cpu", "cores": 2}}
    (place / "losses" / "measured.json").write_text(json.dumps(measured))


def test_finished_trials_are_not_run_again_and_their_numbers_are_summed_up(plan, tmp_path):
    plan = Plan(plan.recipe, ("none", "nf4"), (7,), (5,))
    folder = tmp_path / "study"
    trials, _ = prepare(plan, folder)
    for trial, seconds, loss in zip(trials, (0.02, 0.05), (1.5, 1.625), strict=True):
        pretend(folder / "trials" / trial.name, seconds, loss)
    said = []
    report = run_plan(plan, folder, said.append)
    assert said.count("  finished already") == 2
    assert not list(folder.rglob("terminal.txt")), "no process was started"
    summary = json.loads((folder / "summary.json").read_text())
    plain, quantized = summary["groups"]
    # 480 tokens in 4 steps; the first step is not counted, the others take 1.0 times on average.
    assert plain["seconds_per_step"]["median"] == pytest.approx(120 * 0.02)
    assert quantized["tokens_per_second"]["median"] == pytest.approx(20)
    assert summary["methods"][0]["speed_up"]["value"] == pytest.approx(0.4)
    assert summary["methods"][0]["loss_difference"]["value"] == pytest.approx(0.125)
    assert "0.40×" in report.read_text()


def test_a_long_curve_is_thinned_and_keeps_its_ends(tmp_path):
    pretend(tmp_path, 0.02, 1.5)
    lines = [
        {"step": step, "train/loss": 5.0, "train/tokens_per_second": 50.0}
        for step in range(1, 2001)
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "run" / "metrics.jsonl").write_text(text)
    measured = json.loads((tmp_path / "losses" / "measured.json").read_text())
    steps = collect(tmp_path / "run", measured)["curve"]["train"][0]
    assert len(steps) <= 401
    assert (steps[0], steps[-1]) == (1, 2000)


def test_a_folder_of_something_else_is_left_alone(plan, tmp_path):
    with pytest.raises(UsageError, match="holds something else"):
        run_plan(plan, tmp_path, print)


@pytest.mark.slow
def test_a_study_skips_the_finished_retries_the_failed_and_restarts_the_unfinished(plan, tmp_path):
    folder = tmp_path / "study"
    trials, _ = prepare(plan, folder)
    short, whole = (folder / "trials" / trial.name for trial in trials)
    first_rows = json.loads((folder / "data" / "rows-2.json").read_text())
    assert all(row["instruction"] == LONG * 3 for row in first_rows), "choose another SEED"

    run_plan(plan, folder, print)
    summary = json.loads((folder / "summary.json").read_text())
    assert [one["status"] for one in summary["trials"]] == ["failed", "finished"]
    assert "no row" in summary["trials"][0]["reason"]
    assert json.loads((short / "failed.json").read_text())["exit_code"] == 3
    assert "no row" in (folder / "report.html").read_text()
    trained = json.loads((whole / "run" / "result.json").read_text())
    group = summary["groups"][0]
    assert group["loss"]["value"] == pytest.approx(trained["held_out_loss"], rel=1e-5)
    assert group["loss"]["rows"] == 3

    weights = (whole / "run" / "adapter_model.safetensors").stat()
    (whole / "run" / "result.json").rename(tmp_path / "kept.json")
    said = []
    run_plan(plan, folder, said.append)
    assert "  finished already" not in said, "without result.json the trial was not finished"
    again = (whole / "run" / "adapter_model.safetensors").stat()
    assert again.st_mtime_ns > weights.st_mtime_ns
    same = ("steps", "tokens", "base_loss", "held_out_loss")
    restarted = json.loads((whole / "run" / "result.json").read_text())
    assert {name: restarted[name] for name in same} == {name: trained[name] for name in same}

    run_plan(plan, folder, said.append)
    assert said.count("  finished already") == 1
    assert sum(line.startswith("  failed: ") for line in said) == 2
    assert (whole / "run" / "adapter_model.safetensors").stat().st_mtime_ns == again.st_mtime_ns

    with pytest.raises(SuriError, match="no trial finished"):
        run_plan(Plan(plan.recipe, ("none",), (2,), (5,)), folder, print)
