"""AdamW over the low-rank pairs, its learning rate over the steps, and gradient clipping."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from suri.recipe import Recipe


def make_optimizer(
    recipe: Recipe, parameters: Sequence[nn.Parameter], b_parameters: Sequence[nn.Parameter]
) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter, 2019, arXiv:1711.05101) with the field's usual betas.

    With LoRA+ (Hayou et al., 2024, arXiv:2402.12354) `b_parameters` are a group of their own,
    whose learning rate is `loraplus_lr_ratio` times that of the others.
    """
    groups: list[dict[str, Any]] = [{"params": list(parameters), "ratio": 1.0}]
    if recipe.loraplus_lr_ratio != 1:
        own = {id(parameter) for parameter in b_parameters}
        groups[0]["params"] = [p for p in parameters if id(p) not in own]
        groups.append({"params": list(b_parameters), "ratio": recipe.loraplus_lr_ratio})
    return torch.optim.AdamW(
        groups, lr=recipe.learning_rate, weight_decay=recipe.weight_decay, foreach=True
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group the rate of this step, times the group's own ratio."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["ratio"]


def learning_rate(recipe: Recipe, step: int, steps: int) -> float:
    """The rate of step 1..steps: rising over the warm-up, then falling as the schedule says."""
    warmup = math.ceil(recipe.warmup_ratio * steps)
    if step <= warmup:
        return recipe.learning_rate * step / warmup
    done = (step - 1 - warmup) / max(1, steps - warmup)
    share = {
        "linear": 1 - done,
        "cosine": 0.5 * (1 + math.cos(math.pi * done)),
        "constant": 1.0,
    }[recipe.lr_schedule]
    return recipe.learning_rate * share


def clip_gradients(parameters: Sequence[nn.Parameter], longest: float) -> float:
    """The whole gradient's length; above `longest` (0: never) it is scaled down to that."""
    norm = torch.nn.utils.clip_grad_norm_(parameters, longest if longest > 0 else math.inf)
    return float(norm)
