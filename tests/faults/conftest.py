"""A short run of the tiny model, and what it ends in when nothing goes wrong."""

from dataclasses import replace

import pytest
from children import run

from suri.data.records import Record, write_records
from suri.recipe import Recipe

STEPS = 12


@pytest.fixture(scope="session")
def rows(tmp_path_factory):
    file = tmp_path_factory.mktemp("rows") / "rows.json"
    write_records(file, [Record("Say it.", f"{n}", f"x{n} y") for n in range(13)])
    return file


@pytest.fixture(scope="session")
def recipe(tiny, rows):
    """Three epochs that end within a batch, with dropout, saved every other step."""
    return Recipe(
        base_model=str(tiny), data_path=str(rows), val_set_size=3.0, num_epochs=3.0, batch_size=3,
        learning_rate=5e-3, lora_r=3, lora_alpha=7.0, lora_dropout=0.1, save_steps=2,
        eval_steps=4, device="cpu", token_budget=256,
    )  # fmt: skip


@pytest.fixture(scope="session")
def whole(recipe, tmp_path_factory):
    """The folder of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert run(replace(recipe, output_dir=str(folder))) == 0
    return folder


@pytest.fixture
def mine(recipe, tmp_path):
    """The same run, not started yet."""
    return replace(recipe, output_dir=str(tmp_path / "run"))
