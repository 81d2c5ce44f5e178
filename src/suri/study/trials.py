"""Carry out a study: every trial in its own process, finished ones skipped, failed ones kept."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tomli_w

from suri.errors import SuriError, UsageError
from suri.files import make_folder, read_json, write_json, write_text
from suri.recipe import settings_of
from suri.study.plan import DATA, Plan, Trial, prepare
from suri.study.process import busiest, measure, run_module
from suri.study.report import STUDY, read_lines, write_report
from suri.study.summary import summarise_trials

Say = Callable[[str], None]
CURVE_POINTS = 400


def run_plan(plan: Plan, folder: Path, say: Say) -> Path:
    """Run what is not finished yet, write summary.json and report.html; returns the report.

    Raises UsageError for a folder of something else; the last failure where no trial finished.
    """
    if folder.is_dir() and any(folder.iterdir()) and not (folder / DATA).is_dir():
        raise UsageError(
            f"{folder} exists and holds something else", do="choose another --output_dir"
        )
    make_folder(folder)
    trials, held_out = prepare(plan, folder)
    found = []
    for number, trial in enumerate(trials, start=1):
        say(f"trial {number} of {len(trials)}: {trial.name}")
        found.append(run_trial(trial, folder / "trials" / trial.name, say))
    if not any(one["status"] == "finished" for one in found):
        raise SuriError("no trial finished", found=found[-1]["reason"])
    write_json(folder / STUDY, _summary(plan, len(held_out), found, folder))
    return write_report(folder)


def run_trial(trial: Trial, place: Path, say: Say) -> dict[str, Any]:
    """Train unless that is done, measure the loss of every held-out row, collect the numbers.

    An unfinished run is started anew: going on with it would leave two halves of a time.
    """
    run = place / "run"
    failure = place / "failed.json"
    try:
        if (run / "result.json").is_file():
            say("  finished already")
        else:
            shutil.rmtree(place, ignore_errors=True)
            write_text(place / "recipe.toml", tomli_w.dumps(settings_of(trial.recipe)))
            run_module(
                "suri",
                ["train", "--recipe", str(place / "recipe.toml")],
                what=f"trial {trial.name}",
                terminal=place / "terminal.txt",
            )
        if not (place / "losses" / "measured.json").is_file():
            measure(_loss_spec(trial, run), place / "losses", what=f"evaluating {trial.name}")
    except SuriError as problem:
        reason = problem.found or problem.what
        say(f"  failed: {reason}")
        write_json(failure, {"reason": reason, "exit_code": problem.exit_code})
        return _identity(trial) | {"status": "failed", "reason": reason}
    failure.unlink(missing_ok=True)
    return _identity(trial) | collect(run, read_json(place / "losses" / "measured.json"))


def _loss_spec(trial: Trial, run: Path) -> dict[str, Any]:
    return {
        "run": str(run.absolute()),
        "way": "adapter",
        "quantize": trial.recipe.quantize,
        "device": trial.recipe.device,
        "rows": trial.recipe.val_set_path,
        "cutoff_len": trial.recipe.cutoff_len,
        "parts": ["losses"],
    }


def _identity(trial: Trial) -> dict[str, Any]:
    recipe = trial.recipe
    return {
        "name": trial.name, "rows": trial.rows, "quantize": recipe.quantize, "seed": recipe.seed
    }  # fmt: skip


def collect(run: Path, measured: dict[str, Any]) -> dict[str, Any]:
    """What the summary needs of a finished run folder and of its measured held-out losses."""
    result = read_json(run / "result.json")
    metrics = read_lines(run / "metrics.jsonl")
    steps = [one for one in metrics if "train/loss" in one]
    evaluations = [one for one in metrics if "eval/loss" in one]
    token_seconds = [1 / one["train/tokens_per_second"] for one in steps]
    counted = token_seconds[1:] or token_seconds
    tokens_per_step = result["tokens"] / result["steps"]
    names = ("steps", "train_seconds", "peak_memory_bytes", "base_loss", "held_out_loss")
    mean = sum(counted) / len(counted)
    return {
        "status": "finished",
        "reason": "",
        **{name: result[name] for name in names},
        "seconds_per_step": tokens_per_step * mean,
        "tokens_per_second": 1 / mean,
        "token_seconds": token_seconds,
        "losses": measured["losses"],
        "measured_in": measured["environment"],
        "curve": {
            "train": _points(steps, "train/loss"),
            "eval": _points(evaluations, "eval/loss"),
        },
    }


def _points(lines: Sequence[dict[str, Any]], name: str) -> list[list[float]]:
    """Steps and values of a curve, thinned to what a figure can show."""
    places = range(0, len(lines), max(1, len(lines) // CURVE_POINTS))
    shown = [lines[place] for place in sorted({*places, len(lines) - 1}) if lines]
    return [[one["step"] for one in shown], [one[name] for one in shown]]


def _summary(
    plan: Plan,
    held_out_rows: int,
    found: list[dict[str, Any]],
    folder: Path,
) -> dict[str, Any]:
    finished = [one for one in found if one["status"] == "finished"]
    run = folder / "trials" / finished[0]["name"] / "run"
    return {
        "kind": "study",
        "plan": {"quantize": plan.quantize, "rows": plan.rows, "seeds": plan.seeds},
        "recipe": settings_of(plan.recipe),
        "environment": read_json(run / "environment.json"),
        "measured_in": busiest(one["measured_in"] for one in finished),
        "held_out_rows": held_out_rows,
        "trials": found,
        **summarise_trials(found),
    }
