"""Steps of decoding as CUDA graphs: the host starts one thing, not a thousand kernels."""

import functools
import logging
from threading import Lock
from typing import cast
from weakref import WeakSet

import torch
from torch import Tensor, nn

from suri.model.decoder import Decoder
from suri.model.kv_cache import FixedEach, KVCache

log = logging.getLogger(__name__)

LEAST_LEFT = 8
"""Nothing is captured for fewer tokens to come: it takes as long as a few steps without a graph."""
LEAST_KEYS = 256
"""Fewer keys are no sooner read."""
MOST_IDLE = 4
"""A step captured before is used up to so many times the size; a smaller one is captured then."""
_REFUSED: WeakSet[Decoder] = WeakSet()
_CAPTURING = Lock()


def possible(decoder: Decoder) -> bool:
    """Whether a pass may be captured: on a GPU, with the weights where they will be next time.

    Those that are cut over several processes, and are parameters then, are gathered for each pass.
    """
    if not decoder.embedding.is_cuda or decoder in _REFUSED:
        return False
    _, linear, _ = next(decoder.linears())
    return next(cast(nn.Module, linear.base).parameters(), None) is None


class Step:
    """One token for each of the first `rows` places of a cache, over its first `longest` keys.

    Everything has a fixed place and size. Where no row stands, token 0 is fed at position 0: what
    that writes is written again by whichever row comes there, before it is read.
    """

    def __init__(self, decoder: Decoder, cache: KVCache, rows: int, longest: int) -> None:
        self.decoder, self.window, self.rows, self.longest = decoder, cache.window, rows, longest
        self.keys = cache.keys[:, :rows, :, :longest]
        self.values = cache.values[:, :rows, :, :longest]
        self.fed = torch.zeros(2, rows, dtype=torch.int64, device=cache.keys.device)
        self.graph: torch.cuda.CUDAGraph | None = None

    @property
    def size(self) -> int:
        """How many keys are read."""
        return self.rows * self.longest

    def feed(self, tokens: list[int], positions: list[int]) -> None:
        """What the next step reads, and where it stands."""
        idle = [0] * (self.rows - len(tokens))
        fed = torch.tensor([[*tokens, *idle], [*positions, *idle]])
        self.fed.copy_(fed, non_blocking=True)  # the host shall wait for the result alone

    def scores(self) -> Tensor:
        """Do the step: the scores [rows, vocab], which the next step of any graph may overwrite."""
        if self.graph is None:
            self._run()
        else:
            self.graph.replay()
        return self.found

    def tell(self, chosen: Tensor) -> list[int]:
        """Feed these tokens after the last ones, begin the step, and give them to the host."""
        self.fed[0, : len(chosen)] = chosen
        self.fed[1, : len(chosen)] += 1
        if not chosen.is_cuda:
            self.scores()
            return chosen.tolist()
        told = torch.empty(len(chosen), dtype=chosen.dtype, pin_memory=True)
        told.copy_(chosen, non_blocking=True)
        known = torch.cuda.current_stream(chosen.device).record_event()
        self.scores()
        known.synchronize()
        return told.tolist()

    def capture(self, other: "Step | None") -> None:
        """Make the graph, in the memory of the other step's; without a GPU there is none.

        The step is done once by that, so what it reads must have been fed.
        """
        device = self.fed.device
        if device.type != "cuda":
            return
        side, main = _side(device), torch.cuda.current_stream(device)
        # One at a time in this process, and what other threads do meanwhile, such as asking for
        # memory for another model's pass, does not break it off: "thread_local".
        with _CAPTURING, torch.cuda.device(device), torch.cuda.stream(side):
            side.wait_stream(main)
            try:
                self._run()  # libraries make their workspaces for this stream outside the graph
                graph = torch.cuda.CUDAGraph()
                # Graphs may share memory: no two run at once, and the scores of one are used
                # before the next begins.
                pool = other.graph.pool() if other and other.graph else None
                with torch.cuda.graph(
                    graph, pool=pool, stream=side, capture_error_mode="thread_local"
                ):
                    self._run()
            finally:
                main.wait_stream(side)
        self.graph = graph

    def _run(self) -> None:
        tokens, positions = self.fed
        attend = FixedEach(self.keys, self.values, positions, self.window)
        self.found = self.decoder.logits(self.decoder(tokens, positions, attend))


@functools.cache
def _side(device: torch.device) -> torch.cuda.Stream:
    """The stream of all captures: libraries keep a workspace for each stream that they meet."""
    return torch.cuda.Stream(device)


class Steps:
    """The steps over one growing cache, captured when they are first needed."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder, self.possible = decoder, possible(decoder)
        linears = dict.fromkeys(fused for _, fused, _ in decoder.linears())
        self.places = [linear.pairs for linear in linears]
        self._begin()

    def _begin(self) -> None:
        self.made: list[Step] = []
        self.keys: Tensor | None = None
        self.pairs: list[object] = []
        self.last: Step | None = None
        """What gave the last scores, if they came from here."""
        self.ahead: tuple[list[int], list[int]] = [], []
        """Tokens and positions that `last` was begun for before anybody asked."""

    def read(self, cache: KVCache, tokens: list[int], left: int) -> Tensor | None:
        """Feed each row one token; the scores [rows, vocab], until this is called again.

        None, and nothing is fed, where that is to be done without a graph. `left`: how many
        tokens are to come at most.
        """
        if not self.possible:
            return None
        self._forget_if_moved(cache)
        positions, ahead = cache.lengths, self.ahead
        cache.grow([1] * len(tokens))
        if self.last and ahead == (tokens, positions):
            return self.last.found[: len(tokens)]
        self.last = None
        try:
            step = self._step(cache, tokens, positions, left)
        except Exception as problem:  # of whichever library: there is another way
            log.warning("decoding goes on without CUDA graphs: %s", problem)
            _REFUSED.add(self.decoder)
            self._begin()
            self.possible, step = False, None
        if step is None:
            cache.lengths = positions
            return None
        step.feed(tokens, positions)
        self.last, self.ahead = step, ([], [])
        return step.scores()[: len(tokens)]

    def go_on(self, cache: KVCache, chosen: Tensor) -> list[int]:
        """The tokens, int64 [rows], that were chosen by the last scores, for the host.

        The step after them begins before the host knows them: `read` finds it done if it is what
        is wanted next. Those scores are lost with this.
        """
        step, positions = self.last, list(cache.lengths)
        if step is None or len(chosen) != len(positions) or max(positions) >= step.longest:
            self.last = None
            return chosen.tolist()
        tokens = step.tell(chosen)
        self.ahead = tokens, positions
        return tokens

    def _forget_if_moved(self, cache: KVCache) -> None:
        """A graph knows addresses: of a larger cache, or of another adapter, it knows nothing."""
        pairs: list[object] = [pair for each in self.places for pair in each.values()]
        if cache.keys is not self.keys or pairs != self.pairs:
            self._begin()
            self.keys, self.pairs = cache.keys, pairs

    def _step(
        self, cache: KVCache, tokens: list[int], positions: list[int], left: int
    ) -> Step | None:
        """The smallest step that is large enough; a new one where that pays."""
        _, places, _, capacity, _ = cache.keys.shape
        longest = max(cache.lengths)
        rows, keys = _bucket(len(tokens), places), _bucket(max(longest, LEAST_KEYS), capacity)
        fitting = [s for s in self.made if s.rows >= len(tokens) and s.longest >= longest]
        step = min(fitting, key=lambda step: step.size, default=None)
        if left > LEAST_LEFT and (step is None or step.size > MOST_IDLE * rows * keys):
            step = Step(self.decoder, cache, rows, keys)
            step.feed(tokens, positions)
            step.capture(self.made[0] if self.made else None)
            self.made.append(step)
        return step


def _bucket(count: int, most: int) -> int:
    """The next power of two, so that few steps are captured, or the most that there may be."""
    return min(1 << (count - 1).bit_length(), most)
