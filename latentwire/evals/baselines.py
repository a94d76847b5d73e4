"""What a wire is measured against: the same text in other forms, as a cache of the same reader.

A condition takes texts and returns one row of prefix for each. Everything after it (format tokens,
question, answer budget) is the same for every condition.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from latentwire.lm import FrozenLM, KVPrefix, Prompt

Condition = Callable[[Sequence[str]], KVPrefix]
"""texts -> a prefix with one row for each, the head of the prompt included."""


def full_text(lm: FrozenLM) -> Condition:
    """Every token of the text."""
    return truncated(lm, lambda tokens: tokens)


def truncated(lm: FrozenLM, keep: Callable[[int], int]) -> Condition:
    """The first keep(tokens) tokens of the text."""

    @torch.no_grad()
    def condition(texts: Sequence[str]) -> KVPrefix:
        rows = [ids[: keep(len(ids))] for ids in map(lm.ids, texts)]
        return lm.prefill(Prompt.from_ids(lm, [torch.cat([lm.frame.head, r]) for r in rows]))

    return condition


def truncated_bytes(lm: FrozenLM, keep: Callable[[int], int]) -> Condition:
    """As much of the text as fits keep(tokens) bytes of UTF-8, no character cut in two."""
    whole = full_text(lm)

    def condition(texts: Sequence[str]) -> KVPrefix:
        kept = [text.encode()[: keep(len(lm.ids(text)))] for text in texts]
        return whole([text.decode(errors="ignore") for text in kept])

    return condition


def closed_book(lm: FrozenLM) -> Condition:
    """No text at all."""
    return truncated(lm, lambda tokens: 0)
