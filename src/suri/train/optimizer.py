"""AdamW over the low-rank pairs, its learning rate over the steps, and gradient clipping."""

import math
from collections.abc import Sequence

import torch
from torch import nn

from suri.recipe import Recipe


def make_optimizer(recipe: Recipe, parameters: Sequence[nn.Parameter]) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter, 2019, arXiv:1711.05101) with the field's usual betas."""
    return torch.optim.AdamW(
        parameters, lr=recipe.learning_rate, weight_decay=recipe.weight_decay, foreach=True
    )


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
