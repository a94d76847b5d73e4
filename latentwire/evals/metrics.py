"""Scores of answers, and how sure we are of them.

Exact match and F1 are SQuAD's: lower case, no punctuation, no articles, single spaces; F1 over
bags of words, the best over all gold answers (Rajpurkar et al. 2016, arXiv 1606.05250; the formulas
of the official evaluate-v1.1.py, but for answers of which those leave nothing, such as "A" or "+":
these are compared as they stand). Written here, not taken from torchmetrics, because intervals need
the score of every question and torchmetrics keeps sums only.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

import numpy as np

from latentwire.texts import check_texts

RESAMPLES = 2000
"""Resamples of the bootstrap, from one seed."""

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise(answer: str) -> str:
    """An answer as SQuAD compares it; its articles, or else its punctuation too, stay where nothing
    would be left without them."""
    lower = answer.lower()
    bare = lower.translate(_PUNCTUATION)
    candidates = (" ".join(text.split()) for text in (_ARTICLES.sub(" ", bare), bare, lower))
    return next(filter(None, candidates), "")


def exact_match(answer: str, gold: Sequence[str]) -> float:
    """1.0 where the answer equals any gold answer after normalisation, else 0.0."""
    check_texts(gold, "gold")
    return float(any(normalise(answer) == normalise(g) for g in gold))


def f1(answer: str, gold: Sequence[str]) -> float:
    """Harmonic mean of word precision and recall, as bags, against the best gold answer; 0..1."""
    check_texts(gold, "gold")
    return max(_f1(normalise(answer).split(), normalise(g).split()) for g in gold)


def bootstrap(scores: Sequence[float], groups: Sequence[object]) -> tuple[float, float]:
    """95% percentile interval of the mean (Efron 1979), over resamples of whole groups: questions
    on one passage share its luck, so passages are drawn and not questions."""
    _, low, high = ratio(scores, [1.0] * len(scores), groups)
    return low, high


def paired_difference(
    scores: Sequence[float], baseline: Sequence[float], groups: Sequence[object]
) -> dict[str, float]:
    """Compares two conditions on the same questions: the mean of scores - baseline, question by
    question, and its 95% interval over resamples of whole groups, as {"mean", "low", "high"}.

    The interval is narrower than those of the two means suggest wherever questions are easy or hard
    under both conditions. It holds 0 where no difference is shown.
    """
    gains = [s - b for s, b in zip(scores, baseline, strict=True)]
    mean, low, high = ratio(gains, [1.0] * len(gains), groups)
    return {"mean": mean, "low": low, "high": high}


def explained(
    errors: Sequence[float], distances: Sequence[float], groups: Sequence[object]
) -> tuple[float, float, float]:
    """Fraction of variance explained, 1 - SSE / SST, and its 95% interval over resamples of whole
    groups. errors: squared error of each vector; distances: its squared distance to the *training*
    mean (a mean of the vectors themselves would credit a constant that was never learned)."""
    unexplained, low, high = ratio(errors, distances, groups)
    return 1 - unexplained, 1 - high, 1 - low


def ratio(
    top: Sequence[float], bottom: Sequence[float], groups: Sequence[object]
) -> tuple[float, float, float]:
    """sum(top) / sum(bottom), and its 95% interval over resamples of whole groups."""
    return mean_ratio([top], [bottom], groups)


def mean_ratio(
    tops: Sequence[Sequence[float]], bottoms: Sequence[Sequence[float]], groups: Sequence[object]
) -> tuple[float, float, float]:
    """The mean of several such ratios of the same groups, as of readers that answer the same
    questions, and its 95% interval: a resample is the same for all of them."""
    found = np.mean(np.sum(tops, 1) / np.sum(bottoms, 1))
    totals = np.split(np.stack(_resampled([*tops, *bottoms], groups)), 2)
    low, high = np.percentile(np.mean(totals[0] / totals[1], 0), [2.5, 97.5])
    return float(found), float(low), float(high)


def _resampled(columns: Sequence[Sequence[float]], groups: Sequence[object]) -> list[np.ndarray]:
    """Sums of each column in RESAMPLES resamples of the groups, drawn together."""
    _, member = np.unique([str(g) for g in groups], return_inverse=True)
    sums = [np.bincount(member, weights=np.asarray(c, dtype=float)) for c in columns]
    drawn = np.random.default_rng(0).integers(0, len(sums[0]), (RESAMPLES, len(sums[0])))
    return [s[drawn].sum(1) for s in sums]


def _f1(words: list[str], gold: list[str]) -> float:
    common = sum((Counter(words) & Counter(gold)).values())
    if common == 0:
        return 0.0
    precision, recall = common / len(words), common / len(gold)
    return 2 * precision * recall / (precision + recall)
