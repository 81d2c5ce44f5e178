"""Losses that stand far out of those before them: said, and nothing is changed by it."""

from collections import deque
from statistics import median

LAST = 32
"""How many losses are looked back on; fewer say nothing."""
FAR = 6.0
"""Median absolute deviations above the last losses' median that make a loss stand out."""
LEAST = 0.1
"""Share of the median that it must exceed it by in any case."""


class Spikes:
    """The last losses of a run."""

    def __init__(self) -> None:
        self.losses: deque[float] = deque(maxlen=LAST)

    def seen(self, step: int, loss: float) -> str:
        """Take in a step's loss; a sentence where it stands out, else ""."""
        said = ""
        if len(self.losses) == LAST:
            middle = median(self.losses)
            reach = FAR * median(abs(one - middle) for one in self.losses)
            if loss > middle + max(reach, LEAST * middle):
                said = f"the loss of step {step} stands out: {loss:.3f} after {middle:.3f}"
        self.losses.append(loss)
        return said
