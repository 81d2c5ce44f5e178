"""The passes of a step or an evaluation, which all processes of a run make together."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from suri.data.batch import Batch, pack
from suri.data.examples import NOT_LEARNED, Example, Examples
from suri.errors import DoesNotFit
from suri.train.distributed import Ranks
from suri.train.engine import Engine
from suri.train.machine import ran_out_of_memory

Work = Callable[[list[Batch]], float | None]
"""Gives a number for micro-batches; None where it was left because the run was asked to stop."""


@dataclass(frozen=True)
class Outcome:
    """What came of one attempt, the same in all processes."""

    total: float
    parts: int
    """Micro-batches in all processes."""
    left: bool
    """Whether one of them left its work, as it was asked to."""
    smaller: int = 0
    """The token budget to try again with, where memory ran out in one of them; else 0."""


def attempt(ranks: Ranks, engine: Engine, batches: list[Batch], work: Work) -> Outcome:
    """Do each process's work on its batches and put together what came of it.

    Raises DoesNotFit where memory ran out on a single row. A base that is cut meets in every
    layer: there a process without memory cannot wait for the others, and ends the run.
    """
    value, full = None, False
    try:
        value = work(batches)
    except (MemoryError, RuntimeError) as problem:
        if engine.sharded or not ran_out_of_memory(problem):
            raise
        full = True
    # Here, and not above: while the error is handled it holds what should be free.
    total, parts, fulls, left = ranks.sum(
        value or 0.0, len(batches), full, value is None and not full
    )
    smaller = _smaller(ranks, batches if full else []) if fulls and not left else 0
    return Outcome(total, int(parts), left > 0, smaller)


def _smaller(ranks: Ranks, batches: list[Batch]) -> int:
    """Half of the largest batch of those with which memory ran out (none: in another process)."""
    size, row, tokens = 1 << 52, 0, 0
    if batches:
        largest = max(batches, key=lambda batch: len(batch.ids))
        size = len(largest.ids)
        if len(largest.rows) == 1:
            row, tokens = largest.rows[0] + 1, largest.tokens
    least, row, tokens = (int(x) for x in ranks.most(-size, row, tokens))
    if row:
        raise DoesNotFit(
            f"memory ran out on a single row of {tokens} tokens",
            found=f"row {row}",
            do="--cutoff_len lower, --quantize nf4, or a machine with more memory; "
            "`suri fit` tells what a run needs",
        )
    return max(1, -least // 2)


def is_asked(ranks: Ranks, engine: Engine, stop: threading.Event) -> bool:
    """Whether somebody asked the run to stop; of a base that is cut, any of its processes."""
    return ranks.sum(stop.is_set())[0] > 0 if engine.sharded else stop.is_set()


def as_many(ranks: Ranks, batches: list[Batch], train: Examples) -> list[Batch]:
    """As many batches in every process, where a base is cut: with some that learn nothing."""
    (most,) = ranks.most(len(batches))
    shortest: Example = train[int(np.argmin(train.lengths))]
    idle = replace(shortest, labels=np.full_like(shortest.labels, NOT_LEARNED))
    return [*batches, *([pack([idle])] * (int(most) - len(batches)))]
