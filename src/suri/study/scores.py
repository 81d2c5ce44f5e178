"""How good answers are, and how sure a number over few rows can be."""

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from suri.errors import UsageError

RESAMPLES = 4_000
FEWEST_ROWS = 8
"""Below this many rows a resampled interval says too little to rest a claim on."""

# As rouge_score's own words, and every Chinese, Japanese or Korean character as one word more.
WORDS = re.compile(r"[a-z0-9]+|[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff]")


@dataclass(frozen=True)
class Interval:
    """A number over `rows` rows and the 95 % interval around it, in the number's own unit."""

    value: float
    low: float
    high: float
    rows: int

    @property
    def is_enough(self) -> bool:
        """Whether there are rows enough to rest a claim on."""
        return self.rows >= FEWEST_ROWS

    @property
    def is_difference(self) -> bool:
        """Whether zero lies outside the interval, over rows enough."""
        return self.is_enough and (self.low > 0 or self.high < 0)


def mean_interval(
    totals: Sequence[float], weights: Sequence[float] | None = None, *, seed: int = 0
) -> Interval:
    """sum(totals) / sum(weights), rows resampled with replacement, 2.5th to 97.5th percentile.

    Without weights every row counts once, and this is the mean. Give differences of two ways on
    the same rows, and it is the paired bootstrap (Efron and Tibshirani 1993, chapter 13).
    """
    values = np.asarray(totals, dtype=np.float64)
    counts = np.ones_like(values) if weights is None else np.asarray(weights, dtype=np.float64)
    if values.shape != counts.shape or values.ndim != 1 or not values.size or not counts.all():
        raise ValueError("totals and weights need one number per row, and weights above 0")
    rows = len(values)
    chosen = np.random.default_rng(seed).integers(rows, size=(RESAMPLES, rows))
    means = values[chosen].sum(axis=1) / counts[chosen].sum(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return Interval(float(values.sum() / counts.sum()), float(low), float(high), rows)


def difference_interval(
    ours: Sequence[float], theirs: Sequence[float], weights: Sequence[float] | None = None
) -> Interval:
    """`ours` less `theirs`, paired by row: see `mean_interval`."""
    return mean_interval(np.subtract(ours, theirs).tolist(), weights)


def share_interval(successes: int, rows: int) -> Interval:
    """A share with Wilson's 95 % interval, which is honest at 0 and at 1 too (Wilson 1927)."""
    z, share = 1.959964, successes / rows
    centre = (share + z * z / (2 * rows)) / (1 + z * z / rows)
    reach = z * math.sqrt(share * (1 - share) / rows + (z / (2 * rows)) ** 2) / (1 + z * z / rows)
    return Interval(share, max(0.0, centre - reach), min(1.0, centre + reach), rows)


class Words:
    """rouge_score's way of cutting text into words, and Chinese characters one by one."""

    def tokenize(self, text: str) -> list[str]:
        """The words of a text in lower case; punctuation is no word."""
        return WORDS.findall(text.lower())


def rouge_l(expected: str, answer: str) -> float:
    """ROUGE-L F1 of an answer, 0 to 1 (Lin 2004), by the package rouge_score."""
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError:
        raise UsageError(
            "ROUGE-L needs the package rouge-score", do="pip install 'suri[report]'"
        ) from None
    scorer = RougeScorer(["rougeL"], tokenizer=Words())
    return float(scorer.score(expected, answer)["rougeL"].fmeasure)


def shared_prefix(ids: Sequence[int], others: Sequence[int]) -> float:
    """Share of the longer answer's tokens that come before the two answers first differ, 0 to 1."""
    longest = max(len(ids), len(others))
    pairs = zip(ids, others, strict=False)
    same = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
    return same / longest if longest else 1.0
