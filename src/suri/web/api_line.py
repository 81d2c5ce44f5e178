"""The line before the model: one thread answers what waits, in turn, like requests together."""

import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from threading import Condition, Event, Thread

from suri.infer.generate import fit_together, stream_together
from suri.infer.pieces import Pieces
from suri.infer.served import Served
from suri.recipe import Decoding
from suri.web.api_metrics import Metrics

log = logging.getLogger(__name__)

MOST_ROWS = 16
"""Most requests that are answered together."""


@dataclass(frozen=True)
class Part:
    """A piece of an answer; the last has `finish`: stop, length, gone (nobody reads), or error."""

    text: str
    finish: str = ""


@dataclass(eq=False)
class Job:
    """One request in the line; `deliver` is called in the line's thread, lastly with a finish."""

    model: str
    ids: list[int]
    decoding: Decoding
    pieces: Pieces
    deliver: Callable[[Part], None]
    stop: Event = field(default_factory=Event)
    finish: str = ""

    @property
    def tokens(self) -> int:
        """How many were written, the end-of-text token not counted."""
        return len(self.pieces.ids)

    @property
    def capacity(self) -> int:
        """Tokens of prompt and answer at most."""
        return len(self.ids) + self.decoding.max_new_tokens

    @property
    def kind(self) -> tuple[str, Decoding]:
        """What requests that are answered together have in common."""
        return self.model, replace(self.decoding, seed=0, max_new_tokens=1)

    def take(self, token: int, eos_id: int) -> None:
        """Deliver what one more token makes certain."""
        if self.finish:
            return
        if token == eos_id:
            self.end("stop")
            return
        piece = self.pieces.take(token)
        if self.pieces.stopped:
            self._last(piece, "stop")
        elif self.tokens >= self.decoding.max_new_tokens:
            self.end("length", piece)
        elif piece:
            self.deliver(Part(piece))

    def end(self, finish: str, piece: str = "") -> None:
        """Deliver the rest, once; a stop string may be found in it yet."""
        if self.finish:
            return
        piece += self.pieces.rest()
        self._last(piece, "stop" if self.pieces.stopped else finish)

    def _last(self, piece: str, finish: str) -> None:
        self.finish = finish
        self.stop.set()
        self.deliver(Part(piece, finish))


class Line:
    """Requests wait here in order; the first one's like are answered with it, as one batch.

    An answer does not depend on its batch. A batch is not joined once it has begun, so a request
    waits for the longest answer of the batch before it.
    """

    def __init__(self, served: Served, metrics: Metrics) -> None:
        self.served, self.metrics = served, metrics
        self.waiting: deque[Job] = deque()
        self.running: list[Job] = []
        self.changed = Condition()
        self.closed = False
        self.thread = Thread(target=self._work, name="model", daemon=True)
        self.thread.start()

    def join(self, job: Job) -> None:
        """Wait behind all others."""
        with self.changed:
            if not self.closed:
                self.waiting.append(job)
                self._count()
                self.changed.notify()
                return
        job.end("error")

    def leave(self, job: Job) -> None:
        """Nobody reads the answer any more: it ends within a token, or never begins."""
        job.stop.set()
        with self.changed:
            if job in self.waiting:
                self.waiting.remove(job)
            self._count()

    def end(self) -> None:
        """End all answers within a token, as errors, and take no more."""
        with self.changed:
            self.closed = True
            left = list(self.waiting)
            self.waiting.clear()
            for job in self.running:
                job.stop.set()
            self._count()
            self.changed.notify()
        for job in left:
            job.end("error")

    def close(self) -> None:
        """End all answers and the thread."""
        self.end()
        self.thread.join()

    def _count(self) -> None:
        self.metrics.set("suri_queue_length", len(self.waiting))
        self.metrics.set("suri_running", len(self.running))

    def _work(self) -> None:
        while batch := self._next():
            began = time.perf_counter()
            try:
                self._answer(batch)
            except Exception:  # one bad batch must not end the service
                log.exception("a batch failed")
                for job in batch:
                    job.end("error")
            self.metrics.add("suri_generation_seconds_total", time.perf_counter() - began)
            self.metrics.add("suri_batches_total")

    def _next(self) -> list[Job]:
        """The next batch, once there is one; none: the line is closed."""
        with self.changed:
            self.running = []
            self._count()
            self.changed.wait_for(lambda: self.waiting or self.closed)
            if self.closed:
                return []
            kind = self.waiting[0].kind
            for job in [job for job in self.waiting if job.kind == kind]:
                together = [*self.running, job]
                fits = fit_together(self.served.decoder, [each.capacity for each in together])
                if len(together) <= MOST_ROWS and fits:
                    self.running = together
            self.waiting = deque(job for job in self.waiting if job not in self.running)
            self._count()
            return self.running

    def _answer(self, batch: list[Job]) -> None:
        eos_id = self.served.tokenizer.eos_id
        self.served.become(batch[0].model)
        self.metrics.add("suri_prompt_tokens_total", sum(len(job.ids) for job in batch))
        tokens = stream_together(
            self.served.decoder, [job.ids for job in batch], eos_id,
            [job.decoding for job in batch], [job.stop for job in batch],
        )  # fmt: skip
        for row, token in tokens:
            batch[row].take(token, eos_id)
            self.metrics.add("suri_completion_tokens_total", int(token != eos_id))
        for job in batch:
            job.end("error" if self.closed else "gone" if job.stop.is_set() else "length")
