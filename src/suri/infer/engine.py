"""What runs a model: token ids in, token ids or log-probabilities out."""

from collections.abc import Iterator, Sequence
from threading import Event
from typing import Protocol, cast

import torch
from torch import Tensor

from suri.infer.generate import Generated, generate, stream
from suri.model.attention import PackedAttention
from suri.model.decoder import Decoder
from suri.recipe import Decoding


class Engine(Protocol):
    """One way of running a model; every engine's greedy answers are the same up to rounding."""

    @property
    def device(self) -> str:
        """`cpu` or `cuda`."""
        ...

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        eos_id: int,
        decoding: Decoding,
        *,
        stop: Event | None = None,
    ) -> list[Generated]:
        """Answer all prompts, batched; see `suri.infer.generate.generate`."""
        ...

    def stream(
        self,
        prompt: Sequence[int],
        eos_id: int,
        decoding: Decoding,
        *,
        stop: Event | None = None,
    ) -> Iterator[int]:
        """The tokens of one answer as they come; see `suri.infer.generate.stream`."""
        ...

    def log_probs(self, ids: Sequence[int], places: Sequence[int]) -> Tensor:
        """Log-probabilities fp32 [places, vocab], on the CPU, of what stands at these places.

        `ids` are one text; place 0 has nothing before it and is none.
        """
        ...


class DecoderEngine:
    """Suri's own decoder."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder

    @property
    def device(self) -> str:
        """As in Engine."""
        return self.decoder.embedding.device.type

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        eos_id: int,
        decoding: Decoding,
        *,
        stop: Event | None = None,
    ) -> list[Generated]:
        """As in Engine."""
        return generate(self.decoder, prompts, eos_id, decoding, stop=stop)

    def stream(
        self,
        prompt: Sequence[int],
        eos_id: int,
        decoding: Decoding,
        *,
        stop: Event | None = None,
    ) -> Iterator[int]:
        """As in Engine."""
        return stream(self.decoder, prompt, eos_id, decoding, stop=stop)

    @torch.no_grad()
    def log_probs(self, ids: Sequence[int], places: Sequence[int]) -> Tensor:
        """As in Engine."""
        device = self.decoder.embedding.device
        text = torch.as_tensor(ids, dtype=torch.int64, device=device)
        before = torch.as_tensor(places, dtype=torch.int64, device=device) - 1
        attend = PackedAttention([len(text)], self.decoder.config.sliding_window)
        positions = torch.arange(len(text), device=device)
        hidden = cast(Tensor, self.decoder(text, positions, attend, None, before))
        return self.decoder.logits(hidden).float().log_softmax(dim=-1).cpu()
