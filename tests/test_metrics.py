"""SQuAD's scores against values worked by hand from the official script's formulas."""

import numpy as np
import pytest

from latentwire.evals.harness import Answer, f1_differences
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


def answered(condition: str, f1s: dict[str, float]) -> list[Answer]:
    rest = {"question": "?", "gold": ("x",), "answer": "x", "em": 0.0, "nll": 1.0, "tokens": 1}
    return [
        Answer(condition, id=i, context=i, f1=score, first1=0.0, first5=0.0, **rest)
        for i, score in f1s.items()
    ]


@pytest.mark.parametrize("gain", [0.1, -0.1])
def test_a_paired_difference_shows_what_overlapping_intervals_hide(gain):
    """The wire is above (below) the text by 0.1 on every passage. Both means, 0.5 and 0.6 or 0.4,
    have intervals of about 0.16 to either side, as half of the passages are hard."""
    text = {str(i): 0.1 + 0.8 * (i % 2) for i in range(24)}
    wire = {i: f1 + gain for i, f1 in reversed(text.items())}
    answers = [*answered("text", text), *answered("wire", wire)]
    one, other = (bootstrap(list(f1s.values()), list(f1s)) for f1s in (text, wire))
    assert max(one[0], other[0]) < min(one[1], other[1])
    found = f1_differences(answers)["text"]
    assert list(found.values()) == pytest.approx([gain] * 3)


def test_a_paired_difference_that_holds_zero():
    """Whole passages are won and lost: the means differ by 0.1, the difference by far more."""
    text = {str(i): float(i < 9) for i in range(20)}
    wire = {str(i): float(i >= 9) for i in range(20)}
    found = f1_differences([*answered("wire", wire), *answered("text", text)])["text"]
    # Gains of 1 on 11 passages and of -1 on 9: sd 0.995, over the root of 20.
    assert found["mean"] == pytest.approx(0.1)
    assert [found["low"], found["high"]] == pytest.approx([0.1 - 0.436, 0.1 + 0.436], abs=0.07)


def test_a_paired_difference_needs_the_same_questions():
    answers = [*answered("wire", {"a": 1.0, "b": 0.0}), *answered("text", {"a": 1.0})]
    with pytest.raises(ValueError, match="1 questions were answered under only one of wire and"):
        f1_differences(answers)


def test_the_mean_of_two_ratios_of_the_same_groups():
    # 4 / 2 and 4 / 3; of the first group alone 1 / 1 and 2 / 1, of the second 3 / 1 and 2 / 2.
    found = mean_ratio([[1.0, 3.0], [2.0, 2.0]], [[1.0, 1.0], [1.0, 2.0]], ["a", "b"])
    assert found == pytest.approx((5 / 3, 1.5, 2.0))
