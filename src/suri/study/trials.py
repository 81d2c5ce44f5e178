"""Carry out a study: every trial in its own process, finished ones skipped, failed ones kept."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from suri.data.records import read_records
from suri.data.skills import is_correct
from suri.errors import Preempted, SuriError
from suri.files import append_json_line, write_json
from suri.locks import holding
from suri.manifest import MANIFEST, check_manifest
from suri.reading import read_json_lines, read_object, well_formed
from suri.recipe import settings_of
from suri.study.plan import DATA, Plan, Trial, trials_of, what_it_is, write_rows
from suri.study.preflight import common_budget, held_equal, with_budget
from suri.study.process import Say, Spec, attempts_of, busiest, measure, open_results, train
from suri.study.report import STUDY, write_report
from suri.study.statements import threats
from suri.study.study_summary import summarise_trials
from suri.wording import counted, readable_bytes

Note = Callable[[dict[str, Any]], None]
"""Takes one line of what was started."""
CURVE_POINTS = 400
FAILED, MEASURED = "failed.json", "judged/measured.json"
ATTEMPTS = "attempts.jsonl"
"""One line for everything that was started, appended and never changed."""


class Executor:
    """Does the work of a study: on this machine, one trial after the other."""

    def budget(self, trials: Sequence[Trial], folder: Path) -> dict[str, Any]:
        """What `common_budget` finds where the trials will run."""
        return common_budget(trials, folder)

    def carry_out(
        self, trials: Sequence[Trial], folder: Path, say: Say
    ) -> Iterator[dict[str, Any]]:
        """What `run_trial` gives for each trial, in the order in which they end."""
        for number, trial in enumerate(trials, start=1):
            say(f"trial {number} of {len(trials)}: {trial.name}")
            yield run_trial(trial, folder, say, partial(note_attempt, folder))


HERE = Executor()


def run_plan(
    plan: Plan, folder: Path, say: Say, *, on: Executor = HERE, only_check: bool = False
) -> Path:
    """Run what is not finished yet, write summary.json and report.html; returns the report.

    `on` is where, `only_check` ends before the first trial. Raises UsageError for a folder of
    something else; the last failure where no trial finished; Preempted where one was told to stop.
    """
    open_results(folder, DATA)
    with holding(
        folder, lambda: say("waiting for another study in this folder, or its last trial")
    ):
        held_out = write_rows(plan, folder)
        budget = on.budget(list(trials_of(plan, folder)), folder)
        plan = with_budget(plan, budget["token_budget"])
        trials = list(trials_of(plan, folder))
        equal = held_equal(plan, len(held_out))
        count = counted(len(trials), "trial|trials")
        say(f"{count}; held equal for the methods of one size and seed:")
        for name, value in equal.items():
            say(f"  {name}: {value}")
        for name, size in budget["memory"].items():
            say(f"memory needed with --quantize {name}: {readable_bytes(size)}")
        if only_check:
            for trial in trials:
                say(f"  {trial.name}")
            return folder
        ended: dict[str, dict[str, Any]] = {}
        for one in on.carry_out(trials, folder, say):
            ended[one["name"]] = one
            found = [ended[trial.name] for trial in trials if trial.name in ended]
            if any(one["status"] == "finished" for one in found):  # a study that is cut has this
                summary = _summary(plan, len(held_out), found, folder)
                write_json(folder / STUDY, summary | {"equal": equal})
        if not any(one["status"] == "finished" for one in found):
            raise SuriError("no trial finished", found=found[-1]["reason"])
        return write_report(folder)[0]


def run_trial(trial: Trial, folder: Path, say: Say, note: Note) -> dict[str, Any]:
    """Train unless that is done, then judge every held-out row, and collect the numbers.

    A trial that was cut goes on from its last saved state; `note` is told of this attempt.
    """
    run, judged = trial.place / "run", trial.place / MEASURED
    started = time.time()
    try:
        if (run / "result.json").is_file():
            say("  finished already")
        train(trial.recipe, trial.place, what=f"trial {trial.name}", results=folder)
        if not judged.is_file():
            what = f"evaluating {trial.name}"
            measure(_spec(trial), judged.parent, what=what, results=folder)
    except SuriError as problem:
        note(attempt(trial, started, problem.exit_code))
        if problem.exit_code == Preempted.exit_code:
            raise Preempted(
                f"trial {trial.name} was told to stop", do="the same command goes on"
            ) from problem
        reason = problem.found or problem.what
        say(f"  failed: {reason}")
        return failed(trial, reason, problem.exit_code)
    (trial.place / FAILED).unlink(missing_ok=True)
    note(attempt(trial, started, 0))
    return _identity(trial) | collect(run, read_object(judged), attempts_of(trial.place))


def is_done(trial: Trial) -> bool:
    """Whether a trial is trained and judged."""
    return all((trial.place / name).is_file() for name in ("run/result.json", MEASURED))


def failed(trial: Trial, reason: str, code: int) -> dict[str, Any]:
    """Note beside a trial why it failed; returns what the summary holds of it."""
    write_json(trial.place / FAILED, {"reason": reason, "exit_code": code})
    return _identity(trial) | {"status": "failed", "reason": reason}


def attempt(trial: Trial, started: float, code: int | None) -> dict[str, Any]:
    """A line for a trial that was started at this time; without a code it ended unseen."""
    seconds = round(time.time() - started, 1)
    return {
        "trial": trial.name, "started": round(started), "seconds": seconds, "exit_code": code
    }  # fmt: skip


def note_attempt(folder: Path, entry: dict[str, Any]) -> None:
    """Append to what was started; only by who holds the study's folder."""
    append_json_line(folder / ATTEMPTS, entry)


def _spec(trial: Trial) -> Spec:
    return Spec(
        run=trial.recipe.output_dir,
        way="adapter",
        with_adapter=True,
        quantize=trial.recipe.quantize,
        device=trial.recipe.device,
        rows=trial.recipe.val_set_path,
        cutoff_len=trial.recipe.cutoff_len,
        parts=("answers", "losses"),
    )


def _identity(trial: Trial) -> dict[str, Any]:
    return {
        "name": trial.name,
        "rows": trial.rows,
        "quantize": trial.recipe.quantize,
        "settings": json.loads(json.dumps(trial.settings)),
        "seed": trial.recipe.seed,
    }


def collect(run: Path, measured: dict[str, Any], attempts: int = 1) -> dict[str, Any]:
    """What the summary needs of a finished run folder and of its judged held-out rows."""
    if (run / MANIFEST).is_file():
        check_manifest(run, "result.json", "metrics.jsonl", "held_out.jsonl")
    with well_formed(run.parent):
        return _collected(run, measured, attempts)


def _collected(run: Path, measured: dict[str, Any], attempts: int) -> dict[str, Any]:
    result = read_object(run / "result.json")
    metrics = read_json_lines(run / "metrics.jsonl")
    steps = [one for one in metrics if "train/loss" in one]
    evaluations = [one for one in metrics if "eval/loss" in one]
    token_seconds = [1 / one["train/tokens_per_second"] for one in steps]
    counted = token_seconds[1:] or token_seconds
    mean = sum(counted) / len(counted)
    names = ("steps", "train_seconds", "peak_memory_bytes", "base_loss", "held_out_loss", "facts")
    records = read_records(run / "held_out.jsonl")
    answers = measured["answers"]
    return {
        "status": "finished",
        "reason": "",
        "attempts": attempts,
        **{name: result[name] for name in names},
        "total_seconds": result["total_seconds"] if attempts == 1 else None,
        "seconds_per_step": result["tokens"] / result["steps"] * mean,
        "tokens_per_second": 1 / mean,
        "token_seconds": token_seconds,
        "losses": measured["losses"],
        "correct": [
            is_correct(record, one["text"]) for record, one in zip(records, answers, strict=True)
        ],
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
    plan: Plan, held_out_rows: int, found: list[dict[str, Any]], folder: Path
) -> dict[str, Any]:
    finished = [one for one in found if one["status"] == "finished"]
    run = folder / "trials" / finished[0]["name"] / "run"
    recipe = what_it_is(settings_of(plan.recipe))
    place = busiest(one["measured_in"] for one in finished)
    asked = asdict(plan)
    del asked["recipe"]
    return {
        "kind": "study",
        "plan": asked,
        "recipe": recipe,
        "environment": read_object(run / "environment.json"),
        "measured_in": place,
        "held_out_rows": held_out_rows,
        "threats": threats(
            recipe, held_out_rows, place, seeds=len(plan.seeds), on_a_cluster=_on_a_cluster(folder)
        ),
        "trials": found,
        **summarise_trials(found),
    }


def _on_a_cluster(folder: Path) -> bool:
    """Whether any attempt says on which node it was."""
    return any("where" in entry for entry in read_json_lines(folder / ATTEMPTS))
