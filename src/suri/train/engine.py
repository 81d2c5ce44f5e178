"""What the loop trains: our decoder with its low-rank pairs, behind the interface of any engine."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from suri.data.batch import Batch
from suri.model.adapter import Adapter
from suri.model.decoder import Decoder, Layer
from suri.model.kernels import giving_memory_back
from suri.model.linear import Dropout
from suri.model.load import load_decoder
from suri.recipe import Recipe
from suri.train.loss import summed_loss
from suri.train.machine import dtype_on

Ids = Sequence[int] | np.ndarray[tuple[int], np.dtype[np.int32]]
Answerer = Callable[[Decoder, list[Ids], int, int], list[list[int]]]
"""Greedy answers: decoder, prompts, id of EOS, most new tokens; gives the new ids of each."""


class Engine(Protocol):
    """A model with an adapter whose loss can be taken and whose answers can be read."""

    parameters: list[nn.Parameter]
    b_parameters: list[nn.Parameter]
    """Those of them that LoRA+ gives a learning rate of their own."""
    sharded: bool
    """Whether the base is cut over all processes, which then make every pass together."""

    def loss(self, batch: Batch, step: int | None) -> Tensor:
        """Summed cross-entropy of a batch; `step` is None in evaluation (no dropout)."""
        ...

    def adapter(self) -> Adapter:
        """The adapter as it is now, on the CPU."""
        ...

    def load(self, adapter: Adapter) -> None:
        """Take over the tensors of a saved adapter."""
        ...

    def answers(self, prompts: list[Ids], eos_id: int, max_new_tokens: int) -> list[list[int]]:
        """Greedy answers, for people to look at during training."""
        ...


class SuriEngine:
    """Our own decoder: packed streams, learned rows only."""

    def __init__(
        self,
        recipe: Recipe,
        base: Path,
        adapter: Adapter,
        device: str,
        answerer: Answerer,
        probe: Ids = (),
        shard: Callable[[Layer], None] | None = None,
    ) -> None:
        """`probe`: some of the tokens to learn, by which an int8 base finds its outliers.

        `shard` cuts a layer of the base over all processes.
        """
        self.recipe, self.answerer, self.start = recipe, answerer, adapter
        self.sharded = shard is not None
        ids = (
            torch.as_tensor(np.asarray(probe, dtype=np.int64), device=device)
            if len(probe)
            else None
        )
        # What is whole for a moment must not stay in holes of the heap.
        with giving_memory_back() if shard else nullcontext():
            self.decoder = load_decoder(
                base,
                quantize=recipe.quantize,
                dtype=dtype_on(device),
                device=device,
                probe=ids,
                each_layer=shard,
            )
        adapter.attach(self.decoder, trainable=True)
        self.pairs = self.decoder.pairs()
        self.parameters = [p for pair in self.pairs.values() for p in (pair.a, pair.b)]
        self.b_parameters = [pair.b for pair in self.pairs.values()]

    def loss(self, batch: Batch, step: int | None) -> Tensor:
        """As in Engine."""
        dropout = None
        if step is not None and self.recipe.lora_dropout > 0:
            dropout = Dropout(
                self.recipe.lora_dropout, self.recipe.seed, step, batch.rows, batch.lengths
            )
        return summed_loss(self.decoder, batch, dropout)

    def adapter(self) -> Adapter:
        """As in Engine."""
        tensors = {
            name: (pair.a.detach().to("cpu", copy=True), pair.b.detach().to("cpu", copy=True))
            for name, pair in self.pairs.items()
        }
        return replace(self.start, tensors=tensors)

    def load(self, adapter: Adapter) -> None:
        """As in Engine."""
        adapter.check_fits(self.decoder.config)
        with torch.no_grad():
            for name, pair in self.pairs.items():
                a, b = adapter.tensors[name]
                pair.a.copy_(a)
                pair.b.copy_(b)

    def answers(self, prompts: list[Ids], eos_id: int, max_new_tokens: int) -> list[list[int]]:
        """As in Engine."""
        return self.answerer(self.decoder, prompts, eos_id, max_new_tokens)
