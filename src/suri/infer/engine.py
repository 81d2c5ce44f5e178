"""What runs a model: prompts of token ids in; answers, or log-probabilities, out."""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from threading import Event
from typing import Protocol, cast

import torch
from torch import Tensor

from suri.errors import UsageError
from suri.infer.beams import best_beam
from suri.infer.together import Row, Together
from suri.model.attention import PackedAttention
from suri.model.decoder import Decoder
from suri.recipe import Decoding


@dataclass(frozen=True)
class Generated:
    """The tokens of one answer, without the end-of-text token that may have ended it."""

    ids: list[int]
    stopped: bool
    """Ended by the end-of-text token, not by a limit or a stop."""


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
        """Answer prompts of token ids, in the order given; batching never changes an answer.

        `stop` ends all answers within one token.
        """
        ...

    def stream(
        self, prompt: Sequence[int], eos_id: int, decoding: Decoding, *, stop: Event | None = None
    ) -> Iterator[int]:
        """Yield the tokens of one answer as they come, the end-of-text token not among them.

        The answer is that of `generate`. With beams nothing is certain before the end, so all
        tokens come then.
        """
        ...

    def log_probs(self, ids: Sequence[int], places: Sequence[int]) -> Tensor:
        """Log-probabilities fp32 [places, vocab], on the CPU, of what stands at these places.

        `ids` are one text; place 0 has nothing before it and is none.
        """
        ...


class DecoderEngine:
    """Suri's own decoder; raises UsageError for a prompt that fills the model's window."""

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
        """As in Engine.

        The longest are answered first, as many at once as memory holds; where one ends the next
        one begins.
        """
        rows = [self._row(prompt, decoding, stop) for prompt in prompts]
        if decoding.num_beams > 1:
            found = [self._beam(row, eos_id) for row in rows]
        else:
            starts = [len(row.ids) for row in rows]
            self._answer_all(rows, eos_id)
            found = [row.ids[start:] for row, start in zip(rows, starts, strict=True)]
        return [_without_end(ids, eos_id) for ids in found]

    def stream(
        self, prompt: Sequence[int], eos_id: int, decoding: Decoding, *, stop: Event | None = None
    ) -> Iterator[int]:
        """As in Engine."""
        row = self._row(prompt, decoding, stop)
        if decoding.num_beams > 1:
            yield from (token for token in self._beam(row, eos_id) if token != eos_id)
            return
        together = Together(self.decoder, eos_id)
        together.join(row)
        while together.rows:
            yield from (token for _, token in together.step() if token != eos_id)

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

    def _row(self, prompt: Sequence[int], decoding: Decoding, stop: Event | None) -> Row:
        ids = [int(token) for token in prompt]
        window = self.decoder.config.max_positions
        if len(ids) >= window:
            raise UsageError(
                f"a prompt of {len(ids)} tokens leaves no room for an answer",
                found=f"the model reads {window} tokens at most",
                do="shorten the instruction or the input",
            )
        most = min(decoding.max_new_tokens, window - len(ids))
        return Row(ids, replace(decoding, max_new_tokens=most), stop or Event())

    def _answer_all(self, rows: list[Row], eos_id: int) -> None:
        together = Together(self.decoder, eos_id)
        waiting = deque(sorted(rows, key=lambda row: -row.capacity))
        while waiting or together.rows:
            while waiting and together.fits(waiting[0].capacity):
                together.join(waiting.popleft())
            together.step()

    def _beam(self, row: Row, eos_id: int) -> list[int]:
        return best_beam(self.decoder, row.ids, eos_id, row.decoding, row.stop)


def _without_end(ids: list[int], eos_id: int) -> Generated:
    stopped = bool(ids) and ids[-1] == eos_id
    return Generated(ids[:-1] if stopped else ids, stopped)
