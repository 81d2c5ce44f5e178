import json
from dataclasses import replace
from pathlib import Path

import pytest

from suri.errors import UsageError
from suri.recipe import Recipe
from suri.study.plan import FIXED, Plan, read_plan, trials_of, write_rows

RECIPES = Path(__file__).parents[2] / "recipes"


def prepare(plan, folder):
    held_out = write_rows(plan, folder)
    return list(trials_of(plan, folder)), held_out


@pytest.fixture
def rows_file(tmp_path):
    rows = [{"instruction": f"Say {n}.", "input": "", "output": str(n)} for n in range(40)]
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows))
    return path


@pytest.fixture
def plan(rows_file):
    recipe = Recipe(data_path=str(rows_file), val_set_size=6.0, lora_r=2)
    return Plan(recipe, ("none", "nf4"), (5, 13), (1, 4))


def write(tmp_path, text):
    path = tmp_path / "plan.toml"
    path.write_text(text)
    return path


def test_a_plan_reads_recipe_and_study(tmp_path):
    text = "[recipe]\nlora_r = 2\n[study]\nquantize = ['nf4']\nrows = [3, 9, 3]\nseeds = [5, 0]"
    plan = read_plan(write(tmp_path, text))
    assert plan == Plan(Recipe(lora_r=2), ("nf4",), (3, 9), (5, 0))


@pytest.mark.parametrize(("name", "trials"), [("task2", 27), ("task2-7b", 18), ("litgpt-table", 6)])
def test_the_plans_that_come_along_can_be_read(name, trials):
    plan = read_plan(RECIPES / f"{name}.toml")
    assert len(plan.quantize) * len(plan.rows) * len(plan.seeds) == trials


def test_the_plan_for_this_machine_can_be_prepared(tmp_path):
    trials, held_out = prepare(read_plan(RECIPES / "task2.toml"), tmp_path)
    assert (len(trials), len(held_out)) == (27, 96)


def test_any_setting_can_be_varied_and_is_checked(plan, tmp_path):
    text = "[recipe]\nlora_r = 2\n[study]\nlearning_rate = [1e-3, 3e-4]\nlora_r = [4]"
    read = read_plan(write(tmp_path, text))
    assert read.vary == {"learning_rate": (1e-3, 3e-4), "lora_r": (4,)}
    trials, _ = prepare(replace(plan, vary=read.vary), tmp_path / "study")
    assert len(trials) == 16
    assert len({trial.name for trial in trials}) == 16
    first, second, third = trials[:3]
    assert first.settings == second.settings == {"learning_rate": 1e-3, "lora_r": 4}
    assert (first.recipe.quantize, second.recipe.quantize) == ("none", "nf4")
    assert (third.recipe.learning_rate, third.recipe.lora_r, third.rows) == (1e-3, 4, 5)
    assert "learning_rate=0.001" in first.name


@pytest.mark.parametrize("name", FIXED)
def test_what_would_make_trials_unequal_is_not_varied(tmp_path, name):
    with pytest.raises(UsageError, match=f"a study does not vary {name}"):
        read_plan(write(tmp_path, f"[study]\n{name} = [1, 4]"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[study]\nrow = [3]", "did you mean rows"),
        ("[studies]\nrows = [3]", "did you mean study"),
        ("[study]\nrows = []", "whole numbers"),
        ("[study]\nrows = [0]", "whole numbers"),
        ("[study]\nrows = [true]", "whole numbers"),
        ("[study]\nquantize = ['int3']", "none and int8 and nf4"),
        ("[study]\nquantize = ['fp8']", "none and int8 and nf4"),
        ("[study]\nquantize = 'nf4'", "none and int8 and nf4"),
        ("[recipe]\nlora_rank = 2", "did you mean lora_r"),
        ("[study]\nlearning_rate = 1e-3", "a list of values"),
        ("[study]\nlora_r = ['a']", "not of the form"),
        ("[study]\nlora_r = [0]", "must be at least 1"),
    ],
)
def test_a_wrong_plan_is_refused(tmp_path, text, message):
    with pytest.raises(UsageError, match=message):
        read_plan(write(tmp_path, text))


def test_sizes_are_nested_and_never_meet_the_held_out_rows(plan, tmp_path):
    trials, held_out = prepare(plan, tmp_path / "study")
    files = {trial.rows: trial.recipe.data_path for trial in trials}
    small, large = (json.loads(Path(files[size]).read_text()) for size in (5, 13))
    kept = json.loads(Path(trials[0].recipe.val_set_path).read_text())
    assert (len(small), len(large), len(kept), len(held_out)) == (5, 13, 6, 6)
    assert large[:5] == small
    assert not [row for row in large if row in kept]
    assert len({trial.recipe.val_set_path for trial in trials}) == 1


def test_methods_stand_next_to_each_other_and_differ_in_nothing_else(plan, tmp_path):
    trials, _ = prepare(plan, tmp_path / "study")
    assert [(t.rows, t.recipe.seed, t.recipe.quantize) for t in trials] == [
        (rows, seed, quantize)
        for rows in (5, 13)
        for seed in (1, 4)
        for quantize in ("none", "nf4")
    ]
    for plain, quantized in zip(trials[::2], trials[1::2], strict=True):
        same = replace(plain.recipe, quantize="nf4", output_dir=quantized.recipe.output_dir)
        assert same == quantized.recipe


def test_a_trial_is_named_by_what_decides_it_and_not_by_its_place(plan, tmp_path, rows_file):
    def names(plan, folder):
        return [trial.name for trial in prepare(plan, tmp_path / folder)[0]]

    first = names(plan, "a")
    assert len(set(first)) == 8
    assert names(plan, "b") == first
    warmer = replace(plan, recipe=replace(plan.recipe, learning_rate=1e-3))
    assert not set(names(warmer, "a")) & set(first)
    rows_file.write_text(rows_file.read_text().replace("Say", "Tell"))
    assert not set(names(plan, "a")) & set(first)


def test_more_rows_than_there_are_is_refused(plan, tmp_path):
    with pytest.raises(UsageError, match="asks for 35 training rows"):
        prepare(replace(plan, rows=(35,)), tmp_path / "study")
    with pytest.raises(UsageError, match="held-out"):
        prepare(replace(plan, recipe=replace(plan.recipe, val_set_size=0.0)), tmp_path / "s")
