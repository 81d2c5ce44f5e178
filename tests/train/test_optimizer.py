"""The learning rate over the steps, by hand."""

import pytest

from suri.recipe import Recipe
from suri.train.optimizer import learning_rate


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ("linear", [1.0, 2.0, 2.0, 1.5, 1.0, 0.5]),
        ("cosine", [1.0, 2.0, 2.0, 1.7071, 1.0, 0.2929]),
        ("constant", [1.0, 2.0, 2.0, 2.0, 2.0, 2.0]),
    ],
)
def test_two_steps_of_warm_up_in_six(schedule: str, rates: list[float]) -> None:
    recipe = Recipe(learning_rate=2.0, lr_schedule=schedule, warmup_ratio=0.3)
    found = [learning_rate(recipe, step, 6) for step in range(1, 7)]
    assert found == pytest.approx(rates, abs=1e-4)


def test_without_warm_up_the_first_step_has_the_full_rate() -> None:
    assert learning_rate(Recipe(learning_rate=0.5, warmup_ratio=0), 1, 10) == 0.5
