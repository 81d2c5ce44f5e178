"""A run held against this machine before it starts: its token budget, its memory, its minutes."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from suri.data.batch import Batch, micro_batches
from suri.data.examples import Example, Examples
from suri.files import readable_bytes
from suri.model.config import ModelConfig
from suri.model.decoder import Decoder
from suri.recipe import Recipe
from suri.train.budget import Estimate, estimate, fitting_budget, refuse_what_does_not_fit
from suri.train.loss import head_loss, hidden_states, learned_rows
from suri.train.plan import Plan

LOOKED_AT = 64
"""Steps whose micro-batches are laid out to find the largest one."""
LEAST_BUDGET = 128


@dataclass(frozen=True)
class Fit:
    """A recipe whose token budget is settled, and the memory that it will take."""

    recipe: Recipe
    estimate: Estimate
    free: int | None

    def sentence(self) -> str:
        """The line before a run."""
        parts = ", ".join(
            f"{name} {readable_bytes(size)}" for name, size in self.estimate.parts.items()
        )
        free = "" if self.free is None else f" of {readable_bytes(self.free)} free"
        return (
            f"memory: {readable_bytes(self.estimate.total)} expected{free} ({parts}); "
            f"micro-batches of up to {self.recipe.token_budget} tokens"
        )


def fit(
    recipe: Recipe,
    config: ModelConfig,
    train: Examples,
    held_out: Sequence[Example],
    *,
    device: str,
    free: int | None,
    process: int | None = None,
    shards: int = 1,
) -> Fit:
    """Settle the token budget (0 in the recipe: as memory allows) and estimate the run.

    `free`: bytes that the run may hold in all, `process` among them; None: not known. `shards`:
    processes over which the base is cut. Raises DoesNotFit with what would fit.
    """
    if recipe.token_budget == 0:
        limit = free if free is not None else 1 << 62
        budget = fitting_budget(
            config, recipe, device=device, free=limit, process=process, shards=shards
        )
        recipe = replace(recipe, token_budget=budget or LEAST_BUDGET)
    tokens = largest_stream(recipe, train, held_out)
    found = estimate(config, recipe, tokens, device=device, process=process, shards=shards)
    if free is not None:
        refuse_what_does_not_fit(found, config, recipe, device=device, free=free)
    return Fit(recipe, found, free)


def largest_stream(recipe: Recipe, train: Examples, held_out: Sequence[Example]) -> int:
    """Tokens of the largest micro-batch: of the first steps', the held-out rows' or the longest."""
    plan = Plan(recipe, train.lengths)
    largest = int(max(train.lengths))
    for step in range(1, min(plan.steps, LOOKED_AT) + 1):
        batches = batches_of(recipe, [train[i] for i in plan.examples(step)])
        largest = max(largest, *(len(batch.ids) for batch in batches))
    evaluated = batches_of(recipe, held_out) if held_out else []
    return max([largest, *(len(batch.ids) for batch in evaluated)])


def batches_of(recipe: Recipe, examples: Sequence[Example]) -> list[Batch]:
    """A step's examples as the micro-batches of our engine."""
    return micro_batches(
        examples,
        max_rows=recipe.micro_batch_size,
        token_budget=recipe.token_budget,
        share_prefix=recipe.lora_dropout == 0,
    )


def expected_seconds(decoder: Decoder, layers: int, batch: Batch, tokens: int) -> float:
    """Seconds of learning `tokens` tokens with a model of `layers` layers.

    Two of the decoder's layers are timed on `batch`, and its head apart, three times each; leaves
    no gradient behind.
    """
    learned, targets = learned_rows(batch, decoder.embedding.device)
    whole = decoder.layers
    decoder.layers = nn.ModuleList(list(whole)[:2])
    hidden = hidden_states(decoder, batch)[learned].detach()

    def one_layer() -> None:
        hidden_states(decoder, batch).sum().backward()

    def head() -> None:
        normed = decoder.norm(hidden.requires_grad_())
        loss = head_loss(normed, decoder.head, targets, decoder.scorer)
        loss.backward()

    layer_seconds = _quickest(one_layer, decoder.embedding.device) / len(decoder.layers)
    head_seconds = _quickest(head, decoder.embedding.device)
    decoder.layers = whole
    for parameter in decoder.parameters():
        parameter.grad = None
    return (head_seconds + layers * layer_seconds) * tokens / batch.tokens


def _quickest(work: Callable[[], None], device: torch.device) -> float:
    times = []
    for _ in range(3):
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return min(times)
