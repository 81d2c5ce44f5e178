"""A run held against this machine before it starts: its token budget, its memory, its minutes."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from suri.data.batch import Batch
from suri.errors import DoesNotFit
from suri.model.decoder import Decoder
from suri.model.load import load_decoder
from suri.train.budget import (
    BUDGETS,
    Estimate,
    Memory,
    estimate,
    fitting_budget,
    refuse_what_does_not_fit,
)
from suri.train.distributed import ALONE, Ranks
from suri.train.loss import head_loss, hidden_states, learned_rows
from suri.train.machine import dtype_on, free_memory_bytes, held_memory_bytes
from suri.train.plan import batches_of
from suri.train.prepare import Prepared, start_adapter
from suri.wording import readable_bytes, readable_seconds

LOOKED_AT = 64
"""Steps whose micro-batches are laid out to find the largest one."""


@dataclass(frozen=True)
class Fit:
    """A run whose token budget is settled, and the memory that it will take."""

    made: Prepared
    estimate: Estimate
    memory: Memory

    def sentence(self) -> str:
        """The line before a run."""
        parts = ", ".join(
            f"{name} {readable_bytes(size)}" for name, size in self.estimate.parts.items()
        )
        known = self.memory.free
        free = "" if known is None else f" of {readable_bytes(known)} free"
        return (
            f"memory: {readable_bytes(self.estimate.total)} expected{free} ({parts}); "
            f"micro-batches of up to {self.made.recipe.token_budget} tokens"
        )


def fit_here(made: Prepared, memory: int | None = None, ranks: Ranks = ALONE) -> Fit:
    """The run on this machine, or on one with `memory` bytes for each of its processes.

    All processes come to the same, by the one that has least. Where the base fits none of them
    whole it is cut over them.
    """
    process = held_memory_bytes() if made.device == "cpu" and memory is None else None
    free = memory
    if memory is None and (left := free_memory_bytes(made.device)) is not None:
        shared = ranks.on_this_machine if made.device == "cpu" else 1
        free = left // shared + (process or 0)
    if ranks.count > 1:
        least, held = ranks.most(-(free or 1 << 62), process or 0)
        free, process = int(-least), process and int(held)
    whole = Memory(made.device, free, process)
    shares = replace(whole, shards=max(ranks.count, made.recipe.gpus if memory else 1))
    if made.recipe.shard_base or shares == whole:
        return fit(made, shares)
    try:
        return fit(made, whole)
    except DoesNotFit:
        return fit(made.with_settings(shard_base=True), shares)


def fit(made: Prepared, memory: Memory) -> Fit:
    """Settle the token budget (0 in the recipe: as memory allows) and estimate the run.

    Raises DoesNotFit with what would fit.
    """
    if made.recipe.token_budget == 0:
        budget = fitting_budget(made.config, made.recipe, memory)
        made = made.with_settings(token_budget=budget or BUDGETS[-1])
    found = estimate(made.config, made.recipe, largest_stream(made), memory)
    refuse_what_does_not_fit(found, made.config, made.recipe, memory)
    return Fit(made, found, memory)


def largest_stream(made: Prepared) -> int:
    """Tokens of the largest micro-batch: of the first steps', the held-out rows' or the longest."""
    train, held_out, plan = made.encoded.examples, made.held_out.examples, made.plan
    batches = batches_of(made.recipe, held_out) if held_out else []
    for step in range(1, min(plan.steps, LOOKED_AT) + 1):
        batches += batches_of(made.recipe, [train[i] for i in plan.examples(step)])
    return max([int(max(train.lengths)), *(len(batch.ids) for batch in batches)])


def time_here(made: Prepared) -> str:
    """As `expected_time`, with two layers of the base read for it."""
    decoder = load_decoder(
        made.base,
        quantize=made.recipe.quantize,
        dtype=dtype_on(made.device),
        device=made.device,
        only_layers=2,
    )
    config = replace(made.config, num_layers=decoder.config.num_layers)
    start_adapter(replace(made, config=config)).attach(decoder, trainable=True)
    return expected_time(made, decoder)


def expected_time(made: Prepared, decoder: Decoder, processes: int = 1) -> str:
    """A sentence on how long the run's steps take, from timing two layers on its first rows."""
    examples, plan = made.encoded.examples, made.plan
    batch = batches_of(made.recipe, [examples[i] for i in plan.examples(1)])[0]
    rows = plan.steps * min(made.recipe.batch_size, plan.count)
    tokens = round(rows * float(np.mean(examples.lengths)))
    seconds = _seconds(decoder, made.config.num_layers, batch) * tokens / batch.tokens / processes
    return f"time: about {readable_seconds(seconds)} of training for {tokens:,} tokens"


def _seconds(decoder: Decoder, layers: int, batch: Batch) -> float:
    """Seconds of learning `batch` with a model of `layers` layers.

    Two of the decoder's layers are timed, and its head apart, three times each; leaves no gradient
    behind.
    """
    learned, targets = learned_rows(batch, decoder.embedding.device)
    whole = decoder.layers
    decoder.layers = nn.ModuleList(list(whole)[:2])
    hidden = hidden_states(decoder, batch)[learned].detach()

    def all_layers() -> None:
        hidden_states(decoder, batch).sum().backward()

    def head() -> None:
        normed = decoder.norm(hidden.requires_grad_())
        loss = head_loss(normed, decoder.head, targets, decoder.scorer)
        loss.backward()

    layer_seconds = _quickest(all_layers, decoder.embedding.device) / len(decoder.layers)
    head_seconds = _quickest(head, decoder.embedding.device)
    decoder.layers = whole
    for parameter in decoder.parameters():
        parameter.grad = None
    return head_seconds + layers * layer_seconds


def _quickest(work: Callable[[], None], device: torch.device) -> float:
    times = []
    for _ in range(3):
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return min(times)
