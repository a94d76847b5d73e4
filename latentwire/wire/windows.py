"""Cutting a text into the windows that a reader reads, and the slots that they become."""

from __future__ import annotations

import math
import unicodedata
from dataclasses import dataclass
from itertools import zip_longest

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from latentwire.lm import FrozenLM
from latentwire.wire.folder import WireError
from latentwire.wire.verbatim import finder

RESERVE = 256
"""Positions kept free after a context for the soft prompt, question and answer."""


def room_of(lm: FrozenLM) -> int:
    """Positions that a context may take up behind a reader's head."""
    return lm.context_length - len(lm.frame.prefix) - RESERVE


@dataclass(frozen=True)
class Cut:
    """One text, cut."""

    windows: list[tuple[Int[Tensor, " _"], Bool[Tensor, " _"], int]]
    """Each window's ids, which of them stay as text, and the position of the first."""
    starts: list[int]
    """Position of each window's first token in the text's span."""
    span: int
    """Positions that the text takes up."""


@dataclass(frozen=True)
class Windows:
    """Cuts texts for one reader."""

    lm: FrozenLM
    size: int
    """Most tokens of a window."""
    ratio: int
    """Tokens in per slot out."""
    keep: str | None
    """Rule for what stays as text (verbatim.py)."""

    @property
    def room(self) -> int:
        """Positions that a context may take up."""
        return room_of(self.lm)

    def check(self) -> None:
        """Raises WireError where the reader cannot read one whole window and answer."""
        if self.size > self.room:
            raise WireError(f"window is {self.size}; {self.lm.name} has room for {self.room}")

    def slots(self, text: str) -> int:
        """Slots of a head, on average, that a text becomes."""
        return self._count(self.verbatim(text))

    def cut(self, row: int, text: str) -> Cut:
        """The windows of a text. Raises WireError for an empty text, one whose slots would not fit
        the reader's context, or one that the reader's tokenizer loses a part of. row: the text's
        number, for the error."""
        ids = self.lm.tokenize(text)
        if len(ids) == 0:
            raise WireError(f"context {row} is empty; expected at least one token")
        check_kept(self.lm, row, text, ids)
        verbatim, head = self.verbatim(text), len(self.lm.frame.prefix)
        starts, span = self._layout(verbatim)
        positions = [head + start for start in starts]
        windows = zip(ids.split(self.size), verbatim.split(self.size), positions, strict=True)
        return Cut([*windows], starts, span)

    def verbatim(self, text: str) -> Bool[Tensor, " t"]:
        """True for the tokens of a text that stay as text."""
        verbatim = torch.zeros(len(self.lm.tokenize(text)), dtype=torch.bool, device=self.lm.device)
        if self.keep is not None:
            begin, end = self.lm.offsets(text).T.contiguous()
            spans = torch.tensor([*finder(self.keep)(text)] or [(0, 0)]).to(begin)
            first, last = spans.T.contiguous()
            # Spans are in order: a token touches those that begin before its end, less those that
            # end before it begins.
            begun, over = (
                torch.searchsorted(first, end),
                torch.searchsorted(last, begin, right=True),
            )
            verbatim = begun > over
        return verbatim

    def _count(self, verbatim: Bool[Tensor, " t"]) -> int:
        return sum(map(self._count_window, verbatim.split(self.size)))

    def _count_window(self, verbatim: Bool[Tensor, " t"]) -> int:
        return min(math.ceil(len(verbatim) / self.ratio) + int(verbatim.sum()), len(verbatim))

    def _layout(self, verbatim: Bool[Tensor, " t"]) -> tuple[list[int], int]:
        """The place in the text's span where each window begins, and the span.

        Windows stand one after another; where a text is longer than the reader's context they
        overlap, evenly, so that the last one still ends inside it.
        """
        tokens, slots, room = len(verbatim), self._count(verbatim), self.room
        windows = verbatim.split(self.size)
        if room < len(windows[0]):
            self.check()
        if room < self._count(torch.zeros_like(verbatim)):
            raise WireError(
                f"context has {tokens} tokens; at most {room * self.ratio} fit {self.lm.name} at "
                f"{self.ratio}x: cut the text"
            )
        if room < slots:
            raise WireError(
                f"context becomes {slots} latents with {self.keep!r} kept as text; "
                f"{self.lm.name} has room for {room}: cut the text or keep less of it"
            )
        stride = float(self.size)
        if tokens > room:
            stride = (room - self.size) / (len(windows) - 1)
        starts = [int(i * stride) for i in range(len(windows))]
        # The last window may be short, and end before another.
        return starts, max(at + len(window) for at, window in zip(starts, windows, strict=True))


def check_kept(lm: FrozenLM, row: int, text: str, ids: Int[Tensor, " _"]) -> None:
    """Raises WireError where a tokenizer without byte fallback put one token for all that it does
    not know: the reader would answer from a text with holes. Spaces and Unicode forms may differ.
    """
    back = lm.spelled(ids)
    ours, theirs = ("".join(unicodedata.normalize("NFKC", t).split()) for t in (text, back))
    if ours != theirs:
        lost = next(a for a, b in zip_longest(ours, theirs, fillvalue="") if a != b)
        raise WireError(
            f"context {row}: {lm.name}'s tokenizer cannot hold all of it (first {lost!r}); "
            "take that out or use another reader"
        )
