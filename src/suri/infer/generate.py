"""Answering prompts with a decoder: greedy, sampled or by beams, many at once or as a stream."""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from threading import Event

from suri.errors import UsageError
from suri.infer.beams import best_beam
from suri.infer.together import Row, Together
from suri.model.config import ModelConfig
from suri.model.decoder import Decoder
from suri.recipe import Decoding


@dataclass(frozen=True)
class Generated:
    """The tokens of one answer, without the end-of-text token that may have ended it."""

    ids: list[int]
    stopped: bool
    """Ended by the end-of-text token, not by a limit or a stop."""


def generate(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    eos_id: int,
    decoding: Decoding,
    *,
    stop: Event | None = None,
) -> list[Generated]:
    """Answer prompts of token ids, in the order given; batching never changes an answer.

    The longest are answered first, as many at once as memory holds; where one ends the next one
    begins. `stop` ends all answers within one token. Raises UsageError for a prompt that fills
    the model's window.
    """
    rows = [_row(decoder.config, prompt, decoding, stop or Event()) for prompt in prompts]
    if decoding.num_beams > 1:
        found = [_beam(decoder, row, eos_id) for row in rows]
    else:
        starts = [len(row.ids) for row in rows]
        _answer_all(decoder, rows, eos_id)
        found = [row.ids[start:] for row, start in zip(rows, starts, strict=True)]
    return [_without_end(ids, eos_id) for ids in found]


def stream(
    decoder: Decoder,
    prompt: Sequence[int],
    eos_id: int,
    decoding: Decoding,
    *,
    stop: Event | None = None,
) -> Iterator[int]:
    """Yield the tokens of one answer as they come, the end-of-text token not among them.

    The answer is that of `generate`. With beams nothing is certain before the end, so all tokens
    come then.
    """
    row = _row(decoder.config, prompt, decoding, stop or Event())
    if decoding.num_beams > 1:
        yield from (token for token in _beam(decoder, row, eos_id) if token != eos_id)
        return
    together = Together(decoder, eos_id)
    together.join(row)
    while together.rows:
        yield from (token for _, token in together.step() if token != eos_id)


def _answer_all(decoder: Decoder, rows: list[Row], eos_id: int) -> None:
    together = Together(decoder, eos_id)
    waiting = deque(sorted(rows, key=lambda row: -row.capacity))
    while waiting or together.rows:
        while waiting and together.fits(waiting[0].capacity):
            together.join(waiting.popleft())
        together.step()


def _beam(decoder: Decoder, row: Row, eos_id: int) -> list[int]:
    return best_beam(decoder, row.ids, eos_id, row.decoding, row.stop)


def _row(config: ModelConfig, prompt: Sequence[int], decoding: Decoding, stop: Event) -> Row:
    ids = [int(token) for token in prompt]
    room = config.max_positions - len(ids)
    if room < 1:
        raise UsageError(
            f"a prompt of {len(ids)} tokens leaves no room for an answer",
            found=f"the model reads {config.max_positions} tokens at most",
            do="shorten the instruction or the input",
        )
    room = min(decoding.max_new_tokens, room)
    return Row(ids, replace(decoding, max_new_tokens=room), stop)


def _without_end(ids: list[int], eos_id: int) -> Generated:
    stopped = bool(ids) and ids[-1] == eos_id
    return Generated(ids[:-1] if stopped else ids, stopped)
