"""SQuAD's scores against values worked by hand from the official script's formulas."""

import numpy as np
import pytest

from latentwire.evals.metrics import bootstrap, exact_match, f1, mean_ratio, normalise


def test_normalisation():
    assert normalise("The  U.S. Navy's (an) answer!") == "us navys answer"


@pytest.mark.parametrize(
    ("answer", "gold", "expected"),
    [
        # 2 common words, precision 2/3, recall 1; counted as sets it would be 1.
        ("tora tora tora", ["tora tora"], 0.8),
        # {old, bridge} against {bridge, of, basel}: 1 common, 1/2 and 1/3.
        ("the old bridge", ["a bridge of Basel"], 0.4),
        # The best gold answer counts.
        ("1842", ["in 1842", "1842."], 1.0),
        ("", ["x"], 0.0),
        # Both are empty once articles are gone, and no more the same for it.
        ("the", ["a"], 0.0),
        ("Of", ["of", "x"], 1.0),
        ("Bern", ["Basel"], 0.0),
    ],
)
def test_f1(answer, gold, expected):
    assert f1(answer, gold) == pytest.approx(expected)


def test_exact_match():
    assert exact_match("The Rhine.", ["rhine", "Rhein"]) == 1.0
    assert exact_match("the upper Rhine", ["rhine"]) == 0.0


@pytest.mark.parametrize("text", ["A", "the", "+", "?!", "A.", "¿", "%", "a the"])
def test_an_answer_that_normalises_to_nothing_is_itself(text):
    """evaluate-v1.1.py finds all of these equal (1.0) and to have no word in common (0.0)."""
    assert exact_match(text, [text]) == f1(text, [text]) == 1.0
    assert exact_match("", [text]) == f1("", [text]) == 0.0
    assert exact_match("-", [text]) == f1("-", [text]) == 0.0


def test_punctuation_still_does_not_count():
    assert exact_match("A.", ["a"]) == exact_match('"the"', ["The"]) == 1.0
    assert exact_match("", [""]) == 1.0


@pytest.mark.parametrize("metric", [exact_match, f1])
def test_one_text_is_no_list_of_gold_answers(metric):
    with pytest.raises(TypeError, match=r"gold is one text; expected a list .* \['Paris'\]"):
        metric("Paris", "Paris")


def test_bootstrap_of_independent_scores_is_the_normal_interval():
    scores = np.random.default_rng(1).normal(3.0, 2.0, 400)
    low, high = bootstrap(list(scores), range(400))
    half = 1.96 * scores.std() / 20
    assert low == pytest.approx(scores.mean() - half, abs=0.03)
    assert high == pytest.approx(scores.mean() + half, abs=0.03)


def test_bootstrap_draws_whole_groups():
    scores = [0.0] * 50 + [1.0] * 50
    narrow = bootstrap(scores, range(100))
    wide = bootstrap(scores, [0] * 50 + [1] * 50)
    assert wide == (0.0, 1.0) and narrow[0] > 0.3


def test_the_mean_of_two_ratios_of_the_same_groups():
    # 4 / 2 and 4 / 3; of the first group alone 1 / 1 and 2 / 1, of the second 3 / 1 and 2 / 2.
    found = mean_ratio([[1.0, 3.0], [2.0, 2.0]], [[1.0, 1.0], [1.0, 2.0]], ["a", "b"])
    assert found == pytest.approx((5 / 3, 1.5, 2.0))
