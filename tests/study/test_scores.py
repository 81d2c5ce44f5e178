import math

import pytest
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer

from suri.study.scores import bleu, chrf, first_difference, rouge_l, shared_prefix


def test_rouge_l_by_hand():
    # Longest common subsequence "the cat the mat": 4 of 6 expected words, 4 of 5 answered.
    recall, precision = 4 / 6, 4 / 5
    expected = 2 * recall * precision / (recall + precision)
    assert rouge_l("The cat sat on the mat.", "the cat, the old mat") == pytest.approx(expected)


def test_rouge_l_of_english_is_the_packages_own():
    plain = RougeScorer(["rougeL"])
    for expected, answer in [
        ("It's 12.5 km, not 13!", "its 12 5 KM"),
        ("naïve café", "naive cafe"),
        ("one", ""),
    ]:
        score = plain.score(expected, answer)["rougeL"].fmeasure
        assert rouge_l(expected, answer) == pytest.approx(score)


def test_rouge_l_counts_chinese_characters():
    # 4 of 5 expected characters and all 4 answered ones, in order.
    expected = 2 * 0.8 * 1.0 / 1.8
    assert rouge_l("今天天气好", "今天，气好。") == pytest.approx(expected)
    assert rouge_l("用 Python 写", "python 写") == pytest.approx(2 * (2 / 3) * 1 / (2 / 3 + 1))


def test_shared_prefix():
    assert shared_prefix([5, 6, 7, 8], [5, 6, 9, 8]) == 0.5
    assert shared_prefix([5, 6], [5, 6, 7, 8, 9]) == 0.4
    assert shared_prefix([], []) == 1.0
    assert shared_prefix([], [3]) == 0.0
    assert math.isclose(shared_prefix([4, 2, 1], [4, 2, 1]), 1.0)
    assert first_difference([5, 6, 7, 8], [5, 6, 9, 8]) == 2
    assert first_difference([5, 6], [5, 6, 7]) == 2


def test_chrf_and_bleu_are_the_packages_own_and_chinese_counts():
    expected, answer = "The cat sat on the mat.", "The cat sat on a mat."
    assert chrf(expected, answer) == sacrebleu.sentence_chrf(answer, [expected]).score / 100
    assert bleu(expected, answer) == sacrebleu.sentence_bleu(answer, [expected]).score / 100
    for score in (chrf, bleu):
        assert score("今天天气很好。", "今天天气很好。") == pytest.approx(1.0)
        assert 0.05 < score("今天天气很好。", "今天天气不好。") < 0.95
        assert score(expected, "") == 0.0
