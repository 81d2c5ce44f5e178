"""Learning rates, AdamW's steps and clipping, by hand and against peft's own LoRA+."""

import math

import pytest
import torch
from torch import nn

from suri.recipe import Recipe
from suri.train.optimizer import clip_gradients, learning_rate, make_optimizer, set_learning_rate


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


@pytest.mark.parametrize(
    ("steps", "warmup_ratio", "first"), [(100, 0.03, 1 / 3), (10, 0.03, 1.0), (40, 0.05, 0.5)]
)
def test_warm_up_is_a_share_of_the_steps(steps: int, warmup_ratio: float, first: float) -> None:
    recipe = Recipe(learning_rate=1.0, warmup_ratio=warmup_ratio)
    assert learning_rate(recipe, 1, steps) == pytest.approx(first)


def adamw_by_hand(weight: float, gradients: list[float], rate: float, decay: float) -> float:
    """The weight after one step per gradient: the paper's algorithm 2 in plain Python."""
    mean = spread = 0.0
    for step, gradient in enumerate(gradients, start=1):
        mean = 0.9 * mean + 0.1 * gradient
        spread = 0.999 * spread + 0.001 * gradient**2
        move = (mean / (1 - 0.9**step)) / (math.sqrt(spread / (1 - 0.999**step)) + 1e-8)
        weight -= rate * decay * weight + rate * move
    return weight


def stepped(recipe: Recipe, gradients: list[tuple[float, float]]) -> tuple[float, float]:
    """A (starting at 2) and B (starting at -3) after AdamW steps with these gradients of both."""
    a, b = (nn.Parameter(torch.tensor([start])) for start in (2.0, -3.0))
    optimizer = make_optimizer(recipe, [a, b], [b])
    for pair in gradients:
        a.grad, b.grad = (torch.tensor([gradient]) for gradient in pair)
        set_learning_rate(optimizer, 0.05)
        optimizer.step()
    return a.item(), b.item()


@pytest.mark.parametrize("ratio", [1.0, 16.0])
@pytest.mark.parametrize("decay", [0.0, 0.4])
def test_adamw_by_hand(ratio: float, decay: float) -> None:
    recipe = Recipe(learning_rate=0.7, weight_decay=decay, loraplus_lr_ratio=ratio)
    gradients = [(0.5, -0.2), (0.1, -0.9)]
    a, b = stepped(recipe, gradients)
    assert a == pytest.approx(adamw_by_hand(2.0, [0.5, 0.1], 0.05, decay), rel=1e-6)
    assert b == pytest.approx(adamw_by_hand(-3.0, [-0.2, -0.9], 0.05 * ratio, decay), rel=1e-6)


def test_the_first_step_moves_b_ratio_times_as_far() -> None:
    a, b = stepped(Recipe(loraplus_lr_ratio=16.0), [(0.5, -0.2)])
    assert (2.0 - a, b + 3.0) == pytest.approx((0.05, 0.8), rel=1e-6)


def test_the_groups_are_those_of_peft() -> None:
    from peft import LoraConfig, get_peft_model
    from peft.optimizers import create_loraplus_optimizer

    base = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 4))
    model = get_peft_model(base, LoraConfig(r=2, target_modules=["0", "1"]))
    theirs = create_loraplus_optimizer(model, torch.optim.AdamW, lr=0.02, loraplus_lr_ratio=6.0)
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    ours = make_optimizer(
        Recipe(loraplus_lr_ratio=6.0),
        [p for _, p in named],
        [p for name, p in named if "lora_B" in name],
    )
    set_learning_rate(ours, 0.02)
    rates = [
        {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
        for optimizer in (ours, theirs)
    ]
    assert len(rates[0]) == 4
    assert rates[0] == pytest.approx(rates[1])


@pytest.mark.parametrize(
    ("longest", "kept"), [(1.0, (0.6, 0.8)), (2.5, (1.5, 2.0)), (5.5, (3.0, 4.0)), (0, (3.0, 4.0))]
)
def test_clipping_by_hand(longest: float, kept: tuple[float, float]) -> None:
    first, second = (nn.Parameter(torch.zeros(1)) for _ in range(2))
    first.grad, second.grad = torch.tensor([3.0]), torch.tensor([4.0])
    assert clip_gradients([first, second], longest) == 5.0
    assert (first.grad.item(), second.grad.item()) == pytest.approx(kept, rel=1e-5)
