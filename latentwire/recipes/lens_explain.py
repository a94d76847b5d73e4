"""A text, token by token, through a lens: what each activation says, how much of it is in the
words, and what is lost when the words replace it.

    for row in explain_text(Lens.from_pretrained("default"), "The Danube rises in", k=4):
        print(row.token, row.explanations[0].text, row.kl)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from latentwire.lens.activations import Text, at
from latentwire.lens.checks import LensError
from latentwire.lens.interventions import swapping
from latentwire.lens.lens import Explanation, Lens
from latentwire.lens.objectives import next_token_kl

BATCH = 16
"""Tokens that are explained together."""


@dataclass(frozen=True)
class TokenExplained:
    """One token of a text."""

    index: int
    """Its place in the text, from 0, BOS not counted."""
    token: str
    explanations: list[Explanation]
    """Best reconstruction first."""
    kl: float
    """Nats that the model's next-token distribution moves when the best one is swapped in."""

    def record(self) -> dict[str, Any]:
        """The row as a page or a file takes it: words and numbers only."""
        said = [{"text": e.text, "explained": 1 - e.error} for e in self.explanations]
        return {"index": self.index, "token": self.token, "kl": self.kl, "explanations": said}


@torch.no_grad()
def explain_text(
    lens: Lens, text: str, tokens: Sequence[int] | None = None, k: int = 1, seed: int = 0
) -> list[TokenExplained]:
    """Explanations of some tokens of a text, counted from 0; None for all that a lens is made for,
    which leaves out a first token that stands where BOS would.

    Raises LensError for a text without tokens or a token that it does not have.
    """
    lm = lens.lm
    bos, own = len(lm.bos), lm.ids(text)
    if len(own) == 0:
        raise LensError("the text is empty; expected at least one token")
    if tokens is None:
        tokens = range(0 if bos or len(own) == 1 else 1, len(own))
    if k < 1:
        raise LensError(f"k is {k}; expected at least 1")
    for token in tokens:
        if not 0 <= token < len(own):
            raise LensError(
                f"token {token} of a text of {len(own)} tokens; expected 0..{len(own) - 1}"
            )
    whole = Text(0, torch.cat([lm.bos, own]), bos, bos)
    rows: list[TokenExplained] = []
    for start in range(0, len(tokens), BATCH):
        part = tokens[start : start + BATCH]
        batch = at(lm, lens.config.layer, [(whole, [bos + t for t in part])])
        said = lens.explain(batch.vectors, k, seed=seed + start * k)
        swap = swapping(lm, lens.config.layer, batch.prefixes())
        best = torch.stack([group[0].vector for group in said])
        kls = next_token_kl(swap(None), swap(best)).tolist()
        rows += [
            TokenExplained(t, lm.tokenizer.decode(own[t : t + 1]), group, kl)
            for t, group, kl in zip(part, said, kls, strict=True)
        ]
    return rows
