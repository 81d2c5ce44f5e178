"""What the dashboards got, read back from their own files, is what metrics.jsonl holds."""

import json
import os
import signal
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from runs import no_answers, recipe_for, silent, write_rows

from conftest import need
from suri.cli.main import main
from suri.errors import Preempted, UsageError
from suri.recipe import Recipe, recipe_from_toml
from suri.train.run import train

Figures = dict[tuple[str, int], float]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_rows(tmp_path)


def recorded(run: Path) -> Figures:
    """Every number of metrics.jsonl that is not a step or a time, by name and step."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {
        (name, line["step"]): value
        for line in lines
        for name, value in line.items()
        if name not in ("step", "seconds", "eval/samples")
    }


def in_event_files(run: Path) -> list[tuple[str, int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    return [
        (name, event.step, event.value)
        for name in events.Tags()["scalars"]
        for event in events.Scalars(name)
    ]


def level_db_records(log: bytes) -> Iterator[bytes]:
    """The records of a LevelDB log: blocks of 32 kB, pieces with a header of 7 bytes."""
    place, parts = 7, b""  # wandb's own header comes first
    while place + 7 <= len(log):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        length, kind = int.from_bytes(log[place + 4 : place + 6], "little"), log[place + 6]
        parts += log[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or last
            yield parts
            parts = b""


def same(found: Figures, wanted: Figures) -> bool:
    return found.keys() == wanted.keys() and found == pytest.approx(wanted, rel=1e-6)


@pytest.mark.slow
def test_tensorboards_reader_finds_the_figures(tiny: Path, rows: Path, tmp_path: Path) -> None:
    need("tensorboard")
    folder = tmp_path / "run"
    recipe = recipe_for(tiny, rows, folder, report_to=("tensorboard",), save_steps=3)

    def killed_in_step_six(event: str, numbers: dict[str, Any]) -> None:
        if event == "step" and numbers["step"] == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(recipe, killed_in_step_six, no_answers)
    assert max(step for _, step, _ in in_event_files(folder)) == 5
    train(Recipe(output_dir=str(folder), resume=True), silent, no_answers)
    found = in_event_files(folder)
    # Steps 4 and 5 were done twice; what the first run told of them is taken back.
    assert len(found) == len({(name, step) for name, step, _ in found})
    assert same({(name, step): value for name, step, value in found}, recorded(folder))
    train(recipe_for(tiny, rows, folder, max_steps=2, overwrite=True), silent, no_answers)
    assert not (folder / "tensorboard").exists()


def test_wandbs_file_holds_the_figures(
    tiny: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb", reason="installed by who wants it: pip install wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    from wandb.proto.wandb_internal_pb2 import Record

    folder = tmp_path / "run"
    recipe = recipe_for(
        tiny, rows, folder, report_to=("wandb",), wandb_project="mine", wandb_run_name="first"
    )
    train(recipe, silent, no_answers)
    (file,) = folder.glob("wandb/offline-run-*/*.wandb")
    records = [Record.FromString(part) for part in level_db_records(file.read_bytes())]
    (run,) = [record.run for record in records if record.HasField("run")]
    assert (run.project, run.display_name) == ("mine", "first")
    figures: Figures = {}
    for record in (record for record in records if record.HasField("history")):
        items = {item.key or item.nested_key[0]: item.value_json for item in record.history.item}
        step = int(items.pop("_step"))
        figures |= {(k, step): json.loads(v) for k, v in items.items() if "/" in k}
    assert same(figures, recorded(folder))


def test_trackios_database_holds_the_figures(
    tiny: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # it is read by the import
    pytest.importorskip("trackio", reason="installed by who wants it: pip install trackio")
    folder = tmp_path / "run"
    train(recipe_for(tiny, rows, folder, report_to=("trackio",)), silent, no_answers)
    with sqlite3.connect(tmp_path / "trackio" / "suri.db") as database:
        found = database.execute("select run_name, step, metrics from metrics").fetchall()
    assert {name for name, _, _ in found} == {"run"}
    figures = {
        (name, step): value
        for _, step, metrics in found
        for name, value in json.loads(metrics).items()
    }
    assert same(figures, recorded(folder))


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio"])
def test_a_missing_library_is_said_before_anything_is_done(
    name: str, tiny: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in [m for m in sys.modules if m == "torch.utils.tensorboard"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, name, None)  # as Python does where an import is forbidden
    recipe = recipe_for(tiny, rows, tmp_path / "run", report_to=(name,))
    with pytest.raises(UsageError, match=f"pip install {name}"):
        train(recipe, silent, no_answers)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_run_that_is_stopped_has_told_all_its_figures(
    tiny: Path, rows: Path, tmp_path: Path
) -> None:
    need("tensorboard")
    recipe = recipe_for(tiny, rows, tmp_path / "run", report_to=("tensorboard",))

    def stop(event: str, numbers: dict[str, Any]) -> None:
        if event == "step" and numbers["step"] == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Preempted):
        train(recipe, stop, no_answers)
    found = {(name, step): value for name, step, value in in_event_files(tmp_path / "run")}
    assert same(found, recorded(tmp_path / "run"))


@pytest.mark.slow
def test_alpaca_loras_flags_turn_wandb_on_where_a_project_is_named(
    tiny: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setitem(sys.modules, "wandb", None)
    words = ["finetune", "--base_model", str(tiny), "--data_path", str(rows), "--val_set_size", "2",
             "--max_steps", "1", "--wandb_run_name", "first", "--wandb_watch", "gradients",
             "--wandb_log_model", "false", "--output_dir", str(tmp_path / "run")]  # fmt: skip
    with pytest.raises(SystemExit) as ended:
        main([*words, "--wandb_project", "mine"])
    assert ended.value.code == 2
    told = capsys.readouterr()
    assert "pip install wandb" in told.err
    assert "--wandb_watch is not used" in told.out
    main([*words, "--wandb_project", ""])
    recipe = recipe_from_toml(tmp_path / "run" / "recipe.toml")
    assert (recipe.report_to, recipe.wandb_run_name) == ((), "first")
