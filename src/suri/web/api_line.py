"""The line before the model: one thread answers all who ask one model, a token each in a pass."""

import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Condition, Event, Thread

from suri.infer.pieces import Pieces
from suri.infer.served import Served
from suri.infer.together import Row, Together
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

    def begin(self) -> Row:
        """The answer that is to be written."""
        self.row = Row(list(self.ids), self.decoding, self.stop)
        return self.row

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
    """Requests wait here in order; those of one model are answered at once, up to MOST_ROWS.

    A request joins the others between two passes, and its answer does not depend on them. Nobody
    joins any more once the first who waits wants another model: the line never stands still.
    """

    def __init__(self, served: Served, metrics: Metrics) -> None:
        self.served, self.metrics = served, metrics
        self.together = Together(served.decoder, served.tokenizer.eos_id)
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
        while self._take():
            began = time.perf_counter()
            try:
                with self.served.turn(self.running[0].model):
                    self._pass()
            except Exception:  # what one request did must not end the service
                log.exception("a pass through the model failed")
                self.together = Together(self.served.decoder, self.served.tokenizer.eos_id)
                self._end_those(self.running, "error")
            self.metrics.add("suri_generation_seconds_total", time.perf_counter() - began)
            self.metrics.add("suri_passes_total")
        self._end_those(self.running, "error")

    def _take(self) -> bool:
        """Let in who may join, once there is anybody; False: the line is closed."""
        with self.changed:
            self.changed.wait_for(lambda: self.waiting or self.running or self.closed)
            if self.closed:
                return False
            if not self.running:
                model = self.waiting[0].model
                # Now, and only now, who wants this model passes those who want another.
                for job in [job for job in self.waiting if job.model == model]:
                    self._let_in(job)
            while self.waiting and self._let_in(self.waiting[0]):
                pass
            self._count()
        return True

    def _let_in(self, job: Job) -> bool:
        """Whether the job could be put among those that are answered."""
        other_model = self.running and self.running[0].model != job.model
        full = len(self.running) >= MOST_ROWS or not self.together.fits(job.capacity)
        if other_model or full:
            return False
        self.waiting.remove(job)
        self.running.append(job)
        self.together.join(job.begin())
        self.metrics.add("suri_prompt_tokens_total", len(job.ids))
        return True

    def _pass(self) -> None:
        """One token for everybody whose prompt has been read."""
        eos_id = self.served.tokenizer.eos_id
        by_row = {job.row: job for job in self.running}
        for row, token in self.together.step():
            by_row[row].take(token, eos_id)
            self.metrics.add("suri_completion_tokens_total", int(token != eos_id))
        # Of those who left, whoever has no finish yet was stopped.
        self._end_those([job for job in self.running if job.row.ended], "gone")

    def _end_those(self, jobs: list[Job], finish: str) -> None:
        for job in jobs:
            job.end("error" if self.closed else finish)
        with self.changed:
            self.running = [job for job in self.running if not job.finish]
            self._count()
