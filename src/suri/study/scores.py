"""How good an answer is, and how far it is another's."""

import itertools
import re
from collections.abc import Sequence
from functools import cache
from typing import Any

from suri.study.packages import package

HAN = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff"
# As rouge_score's own words, and every Chinese, Japanese or Korean character as one word more.
WORDS = re.compile(rf"[a-z0-9]+|[{HAN}]")


class Words:
    """rouge_score's way of cutting text into words, and Chinese characters one by one."""

    def tokenize(self, text: str) -> list[str]:
        """The words of a text in lower case; punctuation is no word."""
        return WORDS.findall(text.lower())


def rouge_l(expected: str, answer: str) -> float:
    """ROUGE-L F1 of an answer, 0 to 1 (Lin 2004), by the package rouge_score."""
    return float(_rouge().score(expected, answer)["rougeL"].fmeasure)


def chrf(expected: str, answer: str) -> float:
    """chrF of an answer, 0 to 1 (Popović 2015), by the package sacrebleu."""
    return float(_sacrebleu().sentence_chrf(answer, [expected]).score) / 100


def bleu(expected: str, answer: str) -> float:
    """BLEU of one answer, 0 to 1, smoothed for short texts, by the package sacrebleu.

    Chinese is cut into characters.
    """
    tokenize = "zh" if re.search(f"[{HAN}]", expected) else "13a"
    scored = _sacrebleu().sentence_bleu(answer, [expected], tokenize=tokenize)
    return float(scored.score) / 100


@cache
def _rouge() -> Any:
    scorer = package("rouge_score.rouge_scorer", "ROUGE-L needs", "rouge-score")
    return scorer.RougeScorer(["rougeL"], tokenizer=Words())


def _sacrebleu() -> Any:
    return package("sacrebleu", "chrF and BLEU need")


def first_difference(ids: Sequence[int], others: Sequence[int]) -> int:
    """How many tokens two answers have in common before they first differ, or end."""
    pairs = zip(ids, others, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def shared_prefix(ids: Sequence[int], others: Sequence[int]) -> float:
    """Share of the longer answer's tokens that come before the two answers first differ, 0 to 1."""
    longest = max(len(ids), len(others))
    return first_difference(ids, others) / longest if longest else 1.0
