"""The conditions that a wire stands beside: the same text in other forms, as a cache of the same
reader.

A condition takes texts and returns one row of prefix for each. Everything after it (soft prompt,
question, answer budget) is the same for every condition.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cross_entropy
from zstandard import compress

from latentwire.lm import FrozenLM, KVPrefix, Prompt
from latentwire.lm.prompt import Span
from latentwire.texts import check_texts

Condition = Callable[[Sequence[str]], KVPrefix]
"""texts -> a prefix with one row for each, the head of the prompt included."""
PART = 256
"""Positions whose logits are computed together."""


def full_text(lm: FrozenLM) -> Condition:
    """Every token of the text."""
    return truncated(lm, lambda text: None)


def truncated(lm: FrozenLM, keep: Callable[[str], int | None]) -> Condition:
    """The first keep(text) tokens of the text; None keeps all."""

    @torch.no_grad()
    def condition(texts: Sequence[str]) -> KVPrefix:
        check_texts(texts, "texts")
        rows = [lm.tokenize(text)[: keep(text)] for text in texts]
        return lm.prefill(Prompt.from_ids(lm, [torch.cat([lm.frame.prefix, r]) for r in rows]))

    return condition


def truncated_bytes(lm: FrozenLM, keep: Callable[[str], int]) -> Condition:
    """As much of the text as fits keep(text) bytes of UTF-8, no character cut in two."""
    whole = full_text(lm)

    def condition(texts: Sequence[str]) -> KVPrefix:
        check_texts(texts, "texts")
        return whole([text.encode()[: keep(text)].decode(errors="ignore") for text in texts])

    return condition


def truncated_zstd(lm: FrozenLM, keep: Callable[[str], int]) -> Condition:
    """As much of the text as zstd -19 makes at most keep(text) bytes of: what the same bytes carry
    without any LM."""
    whole = full_text(lm)

    def condition(texts: Sequence[str]) -> KVPrefix:
        check_texts(texts, "texts")
        return whole([text[: zstd_fitting(text, keep(text))] for text in texts])

    return condition


def zstd_fitting(text: str, most: int) -> int:
    """The longest beginning of a text, in characters, of which zstd -19 makes at most `most` bytes.
    The sizes are searched as if each character added to them, which a few do not: one or two more
    might fit, but what is returned does. 0 where not even an empty frame fits."""
    sizes = range(len(text) + 1)
    return max(0, bisect_right(sizes, most, key=lambda n: len(compress(text[:n].encode(), 19))) - 1)


def pruned(lm: FrozenLM, keep: Callable[[str], int]) -> Condition:
    """The keep(text) tokens of the text that the reader itself finds the most surprising, in their
    order: Selective Context (Li et al. 2023, arXiv 2310.06201) with tokens as units."""

    @torch.no_grad()
    def condition(texts: Sequence[str]) -> KVPrefix:
        check_texts(texts, "texts")
        rows = [lm.frame.prefix] * len(texts)
        for row, text in enumerate(texts):
            surprising = surprisal(lm, text).argsort(descending=True, stable=True)
            kept = lm.tokenize(text)[surprising[: keep(text)].sort().values]
            rows[row] = torch.cat([rows[row], kept])
        return lm.prefill(Prompt.from_ids(lm, rows))

    return condition


def surprisal(lm: FrozenLM, text: str) -> Float[Tensor, " n"]:
    """Self-information of each token of a text after the prompt's head and the tokens before it,
    in nats."""
    ids = lm.tokenize(text)
    states = lm.shifted_hidden(Prompt.from_ids(lm, [lm.frame.prefix]), ids[None])[0]
    parts = zip(states.split(PART), ids.split(PART), strict=True)
    return torch.cat([cross_entropy(lm.head(s).float(), i, reduction="none") for s, i in parts])


def replayed(lm: FrozenLM) -> Condition:
    """Every token's own input embedding, through the port's way for soft tokens: it must score what
    the full text scores, or soft tokens are fed to the reader in another way than text is."""

    @torch.no_grad()
    def condition(texts: Sequence[str]) -> KVPrefix:
        check_texts(texts, "texts")
        ids = [lm.tokenize(text) for text in texts]
        rows = [[lm.frame.prefix, Span(lm.embed(row), len(row))] for row in ids]
        return lm.prefill(Prompt.of(lm, rows))

    return condition


def closed_book(lm: FrozenLM) -> Condition:
    """No text at all."""
    return truncated(lm, lambda text: 0)
