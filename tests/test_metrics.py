"""SQuAD's scores against torchmetrics' and against values worked by hand."""

import random

import numpy as np
import pytest
from torchmetrics.functional.text import squad

from latentwire.evals.metrics import bootstrap, exact_match, f1, normalise


def test_normalisation():
    assert normalise("The  U.S. Navy's (an) answer!") == "us navys answer"


def test_f1_counts_words_as_bags():
    # "tora tora tora" against "tora tora": 2 common, precision 2/3, recall 1 -> 0.8; by sets it were 1.
    assert f1("tora tora tora", ["tora tora"]) == pytest.approx(0.8)
    assert f1("", ["x"]) == 0.0 and f1("the", ["a"]) == 1.0


def test_scores_equal_torchmetrics():
    words = ["The", "old", "bridge", "bridge", "1842", "of", "Basel,", "an", "river's", "-"]
    rng = random.Random(0)
    for n in range(300):
        answer = " ".join(rng.choices(words, k=rng.randint(1, 5)))
        gold = [" ".join(rng.choices(words, k=rng.randint(1, 4))) for _ in range(rng.randint(1, 3))]
        if not all(normalise(t) for t in [answer, *gold]):
            continue  # torchmetrics scores two empty answers 0, the official script 1
        theirs = squad(
            [{"prediction_text": answer, "id": str(n)}],
            [{"answers": {"answer_start": [0] * len(gold), "text": gold}, "id": str(n)}],
        )
        assert exact_match(answer, gold) * 100 == pytest.approx(theirs["exact_match"].item())
        assert f1(answer, gold) * 100 == pytest.approx(theirs["f1"].item(), abs=1e-4)


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
