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
from jaxtyping import Float, Int
from torch import Tensor

from latentwire.lens.activations import SINK, Text, at, check_place
from latentwire.lens.checks import LensError
from latentwire.lens.interventions import read, swapping
from latentwire.lens.lens import Explanation, Lens
from latentwire.lens.objectives import next_token_kl
from latentwire.lm import FrozenLM

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
    vector: Float[Tensor, " d"]
    """Its activation."""
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

    Raises LensError for a text without tokens, a token that it does not have, or such a first one.
    """
    lm = lens.lm
    whole = tokens_of(lm, text)
    bos, own = whole.bos, whole.ids[whole.bos :]
    if tokens is None:
        tokens = [place - bos for place in whole.usable] or [0]
    if k < 1:
        raise LensError(f"k is {k}; expected at least 1")
    for token in tokens:
        if not 0 <= token < len(own):
            raise LensError(
                f"token {token} of a text of {len(own)} tokens; expected 0..{len(own) - 1}"
            )
        check_place(bos + token)
    pieces = _pieces(lm, own)
    every = at(lm, lens.config.layer, [(whole, [bos + t for t in tokens])])
    caches, rows = read(lm, [whole]), list[TokenExplained]()
    for start in range(0, len(tokens), BATCH):
        part = tokens[start : start + BATCH]
        batch = every.pick(range(start, start + len(part)))
        said = lens.explain(batch.vectors, k, seed=seed + start * k)
        swap = swapping(lm, lens.config.layer, batch.texts, batch.positions, caches=caches)
        best = torch.stack([group[0].vector for group in said])
        kls = next_token_kl(swap(None), swap(best)).tolist()
        rows += [
            TokenExplained(t, pieces[t], group, vector, kl)
            for t, group, vector, kl in zip(part, said, batch.vectors, kls, strict=True)
        ]
    return rows


def tokens_of(lm: FrozenLM, text: str) -> Text:
    """A text as the LM reads it, all tokens usable but a first one without BOS before it. Raises
    LensError for a text without any."""
    own, bos = lm.tokenize(text), len(lm.bos)
    if len(own) == 0:
        raise LensError("the text is empty; expected at least one token")
    return Text(0, torch.cat([lm.bos, own]), bos, max(SINK, bos))


def _pieces(lm: FrozenLM, ids: Int[Tensor, " n"]) -> list[str]:
    """The part of the text that each token adds. A character of several tokens is the last one's,
    and the others add nothing."""
    pieces, start = [], 0
    for end in range(1, len(ids) + 1):
        piece = lm.spelled(ids[start:end])
        cut = piece.endswith("\N{REPLACEMENT CHARACTER}") and end < len(ids)
        pieces.append("" if cut else piece)
        start = start if cut else end
    return pieces
