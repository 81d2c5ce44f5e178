import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import tomli_w

from suri.data.records import Record, write_records
from suri.data.skills import SKILLS
from suri.errors import DoesNotFit, SuriError, UsageError
from suri.recipe import Recipe, settings_of
from suri.study.plan import Plan, trials_of, write_rows
from suri.study.preflight import common_budget, with_budget
from suri.study.study_summary import EQUAL
from suri.study.trials import collect, run_plan
from suri.wording import readable_bytes

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


def prepare(plan, folder):
    """The trials as `run_plan` names them."""
    write_rows(plan, folder)
    budget = common_budget(list(trials_of(plan, folder)), folder)["token_budget"]
    return list(trials_of(with_budget(plan, budget), folder))


def pretend(place, seconds_per_token, loss):
    """A finished trial as training and measuring leave it."""
    run = place / "run"
    run.mkdir(parents=True)
    result = {
        "steps": 4, "tokens": 480, "train_seconds": 9.5, "peak_memory_bytes": int(7e8),
        "base_loss": 2.25, "held_out_loss": loss, "total_seconds": 20 * seconds_per_token + 9,
        "facts": {name: 7 for name in EQUAL},
    }  # fmt: skip
    (run / "result.json").write_text(json.dumps(result))
    (run / "environment.json").write_text(json.dumps({"python": "3.11.9", "cores": 2}))
    lines = [{"step": 0, "eval/loss": 2.25}]
    for step, slower in enumerate((9.0, 1.0, 1.1, 0.9), start=1):
        rate = 1 / (slower * seconds_per_token)
        lines.append({"step": step, "train/loss": 2.0 - step / 8, "train/tokens_per_second": rate})
    lines.append({"step": 4, "eval/loss": loss})
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (place / "judged").mkdir()
    losses = [{"row": row, "loss_sum": loss * 4 + row, "learned_tokens": 4} for row in range(9)]
    write_records(run / "held_out.jsonl", [Record("Sort.", "b a", "a b", next(iter(SKILLS)))] * 9)
    answers = [{"text": "a b" if row < 6 else "b a"} for row in range(9)]
    environment = {"device": "cpu", "cores": 2}
    measured = {"losses": losses, "answers": answers, "environment": environment}
    (place / "judged" / "measured.json").write_text(json.dumps(measured))
    (place / "terminal-1.txt").write_text("as it was")


@pytest.mark.slow
def test_finished_trials_are_not_run_again_and_their_numbers_are_summed_up(plan, tmp_path):
    plan = Plan(plan.recipe, ("none", "nf4"), (7,), (5,))
    folder = tmp_path / "study"
    trials = prepare(plan, folder)
    for trial, seconds, loss in zip(trials, (0.02, 0.05), (1.5, 1.625), strict=True):
        pretend(folder / "trials" / trial.name, seconds, loss)
    said = []
    report = run_plan(plan, folder, said.append)
    assert said.count("  finished already") == 2
    assert any(line.startswith("  micro-batches: up to ") for line in said)
    assert not list(folder.rglob("terminal-2.txt")), "no process was started"
    summary = json.loads((folder / "summary.json").read_text())
    plain, quantized = summary["groups"]
    # 480 tokens in 4 steps; the first step is not counted, the others take 1.0 times on average.
    assert plain["seconds_per_step"]["median"] == pytest.approx(120 * 0.02)
    assert quantized["tokens_per_second"]["median"] == pytest.approx(20)
    assert summary["methods"][0]["speed_up"]["value"] == pytest.approx(0.4)
    assert summary["methods"][0]["loss_difference"]["value"] == pytest.approx(0.125)
    assert summary["methods"][0]["speed_up_to_adapter"]["value"] == pytest.approx(9.4 / 10)
    assert plain["exact_match"]["value"] == pytest.approx(6 / 9)
    assert "0.40×" in report.read_text()
    attempts = [json.loads(line) for line in (folder / "attempts.jsonl").read_text().splitlines()]
    assert [one["trial"] for one in attempts] == [trial.name for trial in trials]
    run_plan(plan, folder, said.append)
    lines = (folder / "attempts.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines[:2]] == attempts, "appended, never changed"


@pytest.mark.slow
def test_the_token_budget_is_settled_once_and_kept(plan, tmp_path):
    folder = tmp_path / "study"
    trials = prepare(replace(plan, quantize=("none", "int8", "nf4")), folder)
    assert len({trial.recipe.token_budget for trial in trials}) == 1
    assert trials[0].recipe.token_budget > 0
    kept = json.loads((folder / "data" / "budget.json").read_text())
    assert set(kept["memory"]) == {"none", "int8", "nf4"}
    # As if another machine, or a busier one, had reckoned before.
    (folder / "data" / "budget.json").write_text(json.dumps(kept | {"token_budget": 77}))
    again = prepare(replace(plan, quantize=("none", "int8", "nf4")), folder)
    assert {trial.recipe.token_budget for trial in again} == {77}


def test_a_method_that_does_not_fit_is_found_before_the_first_trial(plan, tmp_path, monkeypatch):
    monkeypatch.setattr("suri.study.preflight.run_module", too_large)
    with pytest.raises(DoesNotFit):
        run_plan(plan, tmp_path / "study", print)
    assert not (tmp_path / "study" / "trials").exists()


def too_large(*_, **__):
    raise DoesNotFit("this run needs 99 GB")


@pytest.mark.slow
def test_a_check_runs_no_trial(plan, tmp_path):
    said = []
    run_plan(plan, tmp_path / "study", said.append, only_check=True)
    assert said[0] == "2 trials; held equal for the methods of one size and seed:"
    found = json.loads((tmp_path / "study" / "data" / "budget.json").read_text())["memory"]
    assert found.keys() == {"none"}
    assert f"memory needed with --quantize none: {readable_bytes(found['none'])}" in said
    names = [trial.name for trial in trials_of(plan, tmp_path / "study")]
    assert [line.split("-")[:3] for line in said[-2:]] == [
        f"  {name}".split("-")[:3] for name in names
    ]
    assert not (tmp_path / "study" / "trials").exists()


def test_a_long_curve_is_thinned_and_keeps_its_ends(tmp_path):
    pretend(tmp_path, 0.02, 1.5)
    lines = [
        {"step": step, "train/loss": 5.0, "train/tokens_per_second": 50.0}
        for step in range(1, 2001)
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "run" / "metrics.jsonl").write_text(text)
    measured = json.loads((tmp_path / "judged" / "measured.json").read_text())
    steps = collect(tmp_path / "run", measured)["curve"]["train"][0]
    assert len(steps) <= 401
    assert (steps[0], steps[-1]) == (1, 2000)


def test_a_folder_of_something_else_is_left_alone(plan, tmp_path):
    with pytest.raises(UsageError, match="holds something else"):
        run_plan(plan, tmp_path, print)


@pytest.mark.slow
def test_a_study_skips_the_finished_retries_the_failed_and_goes_on_with_the_unfinished(
    plan, tmp_path
):
    folder = tmp_path / "study"
    trials = prepare(plan, folder)
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

    (whole / "run" / "result.json").rename(tmp_path / "kept.json")
    said = []
    run_plan(plan, folder, said.append)
    assert "  finished already" not in said, "without result.json the trial was not finished"
    assert "going on after step" in (whole / "terminal-2.txt").read_text()
    same = ("steps", "tokens", "base_loss", "held_out_loss", "facts")
    again = json.loads((whole / "run" / "result.json").read_text())
    assert {name: again[name] for name in same} == {name: trained[name] for name in same}
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["trials"][1]["attempts"] == 2
    assert summary["groups"][0]["total_seconds"] is None

    run_plan(plan, folder, said.append)
    assert said.count("  finished already") == 1
    assert sum(line.startswith("  failed: ") for line in said) == 2

    with pytest.raises(SuriError, match="the check before the first trial failed"):
        run_plan(Plan(plan.recipe, ("none",), (2,), (5,)), folder, print)


def start_study(plan, place):
    """`suri study` as a process of its own, its terminal in a file."""
    file = place / "plan.toml"
    table = {"quantize": list(plan.quantize), "rows": list(plan.rows), "seeds": list(plan.seeds)}
    file.write_text(tomli_w.dumps({"recipe": settings_of(plan.recipe), "study": table}))
    command = [sys.executable, "-m", "suri", "study", str(file), "--output_dir", str(place / "s")]
    with (place / "terminal.txt").open("a") as stream:
        return subprocess.Popen(command, stdout=stream, stderr=stream)


def wait_for(found, seconds=120):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if value := found():
            return value
        time.sleep(0.02)
    raise AssertionError("waited too long")


def children(pid):
    done = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True)
    return [int(line) for line in done.stdout.split()]


def checkpoints(place):
    return list((place / "s" / "trials").glob("*/run/checkpoints/step-*"))


@pytest.mark.slow
def test_a_kill_of_the_driver_or_of_a_trial_loses_nothing(plan, tmp_path):
    plan = Plan(
        replace(plan.recipe, num_epochs=40.0, save_steps=10, eval_steps=60), ("none", "nf4"), (7,),
        (5,),
    )  # fmt: skip
    (tmp_path / "whole").mkdir()
    (tmp_path / "cut").mkdir()
    assert start_study(plan, tmp_path / "whole").wait() == 0

    driver = start_study(plan, tmp_path / "cut")
    wait_for(lambda: checkpoints(tmp_path / "cut"))
    (trial,) = children(driver.pid)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    os.kill(trial, 0)  # the trial lives on without its driver
    second = start_study(plan, tmp_path / "cut")
    wait_for(lambda: "waiting for another study" in (tmp_path / "cut" / "terminal.txt").read_text())
    # The second driver waits for the orphan, finds it finished, and trains the other method alone.
    nf4 = wait_for(lambda: [p for p in checkpoints(tmp_path / "cut") if "nf4" in str(p)])
    (trial,) = children(second.pid)
    os.kill(trial, signal.SIGKILL)
    assert second.wait() == 0
    said = (tmp_path / "cut" / "terminal.txt").read_text()
    assert "finished already" in said
    assert "killed by signal 9" in " ".join(said.split())
    assert start_study(plan, tmp_path / "cut").wait() == 0

    place = nf4[0].parents[2]
    assert "going on after step" in (place / "terminal-2.txt").read_text()
    whole, cut = (
        json.loads((tmp_path / name / "s" / "summary.json").read_text())
        for name in ("whole", "cut")
    )
    assert [one["attempts"] for one in cut["trials"]] == [1, 2]
    for one, other in zip(whole["trials"], cut["trials"], strict=True):
        for name in ("name", "status", "steps", "facts", "losses", "correct", "held_out_loss"):
            assert one[name] == other[name]
