"""How sure a number is that was measured on few rows and with few seeds."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

RESAMPLES = 10_000
FEWEST_ROWS = 8
"""Below this many rows a resampled interval says too little to rest a claim on."""
FEWEST_RUNS = 3
"""And below this many runs each, a time or a peak of memory does."""

Values = Sequence[float] | Sequence[Sequence[float]]
"""One number for each row, or for each seed one number for each row."""


@dataclass(frozen=True)
class Interval:
    """A number over `rows` rows and `seeds` seeds, and the 95 % interval around it."""

    value: float
    low: float
    high: float
    rows: int
    seeds: int = 1

    @property
    def is_enough(self) -> bool:
        """Whether there are rows enough to rest a claim on, or runs where each has one number."""
        return self.rows >= FEWEST_ROWS or (self.rows == 1 and self.seeds >= FEWEST_RUNS)

    @property
    def is_point(self) -> bool:
        """Whether it has no width: one number, or numbers that are all alike, give no interval."""
        return math.isclose(self.low, self.high, rel_tol=1e-9, abs_tol=1e-12)

    @property
    def is_difference(self) -> bool:
        """Whether zero lies outside the interval, over rows enough."""
        return self.is_enough and (self.low > 0 or self.high < 0)


def interval_of(summary: Mapping[str, Any]) -> Interval:
    """The interval that a summary holds as plain values."""
    return Interval(**{name: summary[name] for name in Interval.__dataclass_fields__})


def mean_interval(
    totals: Values, weights: Sequence[float] | None = None, *, seed: int = 0
) -> Interval:
    """sum(totals) / sum(weights), the mean over the seeds, and where it may lie.

    Without weights every row counts once. Rows are resampled with replacement, the same for all
    seeds (Efron and Tibshirani 1993, chapter 13), and spread by sqrt(n / chi²(n-1)), because
    resampled means of few rows vary too little (Hesterberg 2015, section 5). The seeds' part is
    Student's t on their means: three seeds cannot be resampled. What rows and seeds share counts
    in both, so the interval is rather too wide than too narrow.

    Give differences of two methods on the same rows and seeds, and it is a paired comparison.
    """
    values = np.atleast_2d(np.asarray(totals, dtype=np.float64))
    seeds, rows = values.shape
    counts = np.ones(rows) if weights is None else np.asarray(weights, dtype=np.float64)
    if counts.shape != (rows,) or not rows or not counts.all():
        raise ValueError("totals and weights need one number per row, and weights above 0")
    random = np.random.default_rng(seed)
    chosen = random.integers(rows, size=(RESAMPLES, rows), dtype=np.int32)
    value = float(values.mean(axis=0).sum() / counts.sum())
    resampled = values.mean(axis=0)[chosen].sum(axis=1) / counts[chosen].sum(axis=1)
    spread = np.sqrt(rows / random.chisquare(rows - 1, RESAMPLES)) if rows > 1 else 0.0
    off = (resampled - value) * spread
    if seeds > 1:
        deviation = float(np.std(values.sum(axis=1) / counts.sum(), ddof=1))
        off = off + deviation / math.sqrt(seeds) * random.standard_t(seeds - 1, RESAMPLES)
    low, high = np.percentile(off, [2.5, 97.5])
    return Interval(value, value + float(low), value + float(high), rows, seeds)


def difference_interval(
    ours: Values, theirs: Values, weights: Sequence[float] | None = None, *, most: float = math.inf
) -> Interval:
    """`ours` less `theirs`, paired by row and seed: see `mean_interval`.

    `most`: what no difference can exceed, 1 for shares.
    """
    found = mean_interval(np.subtract(ours, theirs).tolist(), weights)
    return replace(found, low=max(found.low, -most), high=min(found.high, most))


def ratio_interval(ours: Values, theirs: Values) -> Interval:
    """`ours` over `theirs`, paired by row and seed: the geometric mean of their ratios.

    A minute in which the machine did something else is one outlier among logarithms.
    """
    found = mean_interval(np.log(np.divide(ours, theirs)).tolist())
    value, low, high = (math.exp(end) for end in (found.value, found.low, found.high))
    return Interval(value, low, high, found.rows, found.seeds)


def share_interval(successes: int, rows: int) -> Interval:
    """A share with Wilson's 95 % interval, which is honest at 0 and at 1 too (Wilson 1927)."""
    z, share = 1.959964, successes / rows
    centre = (share + z * z / (2 * rows)) / (1 + z * z / rows)
    reach = z * math.sqrt(share * (1 - share) / rows + (z / (2 * rows)) ** 2) / (1 + z * z / rows)
    return Interval(share, max(0.0, centre - reach), min(1.0, centre + reach), rows)
