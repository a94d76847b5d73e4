"""What a wire is measured against: the same text in other forms, as a cache of the same reader.

A condition takes texts and returns one row of prefix for each. Everything after it (format tokens,
question, answer budget) is the same for every condition.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from latentwire.lm import FrozenLM, KVPrefix, Prompt
from latentwire.lm.prompt import Span

Condition = Callable[[Sequence[str]], KVPrefix]
"""texts -> a prefix with one row for each, the head of the prompt included."""


def full_text(lm: FrozenLM) -> Condition:
    """Every token of the text."""
    return truncated(lm, lambda text: None)


def truncated(lm: FrozenLM, keep: Callable[[str], int | None]) -> Condition:
    """The first keep(text) tokens of the text; None keeps all."""

    @torch.no_grad()
    def condition(texts: Sequence[str]) -> KVPrefix:
        rows = [lm.ids(text)[: keep(text)] for text in texts]
        return lm.prefill(Prompt.from_ids(lm, [torch.cat([lm.frame.head, r]) for r in rows]))

    return condition


def truncated_bytes(lm: FrozenLM, keep: Callable[[str], int]) -> Condition:
    """As much of the text as fits keep(text) bytes of UTF-8, no character cut in two."""
    whole = full_text(lm)

    def condition(texts: Sequence[str]) -> KVPrefix:
        return whole([text.encode()[: keep(text)].decode(errors="ignore") for text in texts])

    return condition


def replayed(lm: FrozenLM) -> Condition:
    """Every token's own input embedding, through the port's way for soft tokens: it must score what
    the full text scores, or soft tokens are fed to the reader in another way than text is."""

    @torch.no_grad()
    def condition(texts: Sequence[str]) -> KVPrefix:
        ids = [lm.ids(text) for text in texts]
        rows = [[lm.frame.head, Span(lm.embed(row), len(row))] for row in ids]
        return lm.prefill(Prompt.of(lm, rows))

    return condition


def closed_book(lm: FrozenLM) -> Condition:
    """No text at all."""
    return truncated(lm, lambda text: 0)
