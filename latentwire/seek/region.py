"""Finds the tokens of an answer that a search may change.

A region is a contiguous span of answer tokens, some of which may be held fixed. Everything after
the span is generated anew; everything before it stays.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import regex
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from latentwire.lm import FrozenLM
from latentwire.patterns import PatternError, compiled, find_all
from latentwire.reading import InputError


class RegionError(InputError):
    """An answer has no such span."""


@dataclass(frozen=True)
class Span:
    """Answer tokens start..stop (stop excluded); free [stop - start] is False on tokens that may
    not change. note says where the region that was asked for could not be had."""

    start: int
    stop: int
    free: Bool[Tensor, " n"]
    note: str = ""

    def __len__(self) -> int:
        return self.stop - self.start


@runtime_checkable
class Region(Protocol):
    """Finds its span in an answer's token ids (the stop token included where there is one). Raises
    RegionError for an answer that cannot hold it."""

    def __call__(self, lm: FrozenLM, ids: Int[Tensor, " n"]) -> Span: ...


@dataclass(frozen=True)
class Fraction:
    """The first share `k` of the answer's tokens from `start` on, `cap` at most, as in LatentSeek
    (arXiv 2505.13308): min(int(k * tokens), cap)."""

    k: float = 0.1
    cap: int = 300
    start: int = 0

    def __post_init__(self):
        if not 0 < self.k <= 1:
            raise ValueError(f"k is {self.k}; expected a share of the answer, 0 < k <= 1")
        if self.cap < 1 or self.start < 0:
            raise ValueError(f"cap {self.cap}, start {self.start}; expected cap >= 1, start >= 0")

    def __call__(self, lm: FrozenLM, ids: Int[Tensor, " n"]) -> Span:
        length = min(int(self.k * len(ids)), self.cap)
        if length == 0:
            raise RegionError(
                f"{self.k} of an answer of {len(ids)} tokens is less than one token; search a "
                "larger share"
            )
        return Explicit(self.start, self.start + length)(lm, ids)


@dataclass(frozen=True)
class Explicit:
    """Answer tokens a..b (b excluded)."""

    a: int
    b: int

    def __post_init__(self):
        if not 0 <= self.a < self.b:
            raise ValueError(f"span {self.a}..{self.b}; expected 0 <= a < b")

    def __call__(self, lm: FrozenLM, ids: Int[Tensor, " n"]) -> Span:
        if self.b > len(ids):
            raise RegionError(f"span {self.a}..{self.b} of an answer of {len(ids)} tokens")
        free = torch.ones(self.b - self.a, dtype=torch.bool, device=ids.device)
        return Span(self.a, self.b, free)


@dataclass(frozen=True)
class Section:
    """The tokens of what `pattern` finds first in the answer: its first group, or all of it.

    Tokens that contain one of `markers` keep the answer's structure and may not change. An answer
    without the section gets `otherwise`, and its span says so.
    """

    pattern: str
    markers: tuple[str, ...] = ("#", "\n")
    otherwise: Region = field(default_factory=Fraction)

    def __post_init__(self):
        compiled(self.pattern)

    def __call__(self, lm: FrozenLM, ids: Int[Tensor, " n"]) -> Span:
        bounds = character_bounds(lm, ids)
        text = lm.detokenize(ids)
        try:
            found = next(find_all(compiled(self.pattern, regex.DOTALL), text), None)
        except PatternError as error:
            raise RegionError(str(error)) from None
        first, last = found.span(1 if found and found.re.groups else 0) if found else (0, 0)
        inside = [i for i, (a, b) in enumerate(bounds) if a < last and b > first and b > a]
        if not inside:
            span = self.otherwise(lm, ids)
            note = f"no section {self.pattern!r}; took {self.otherwise}"
            return Span(span.start, span.stop, span.free, note)
        start, stop = inside[0], inside[-1] + 1
        pieces = [text[a:b] for a, b in bounds[start:stop]]
        free = [not any(m in piece for m in self.markers) for piece in pieces]
        if not any(free):
            raise RegionError(f"section {self.pattern!r} holds markers only: {''.join(pieces)!r}")
        return Span(start, stop, torch.tensor(free, device=ids.device))


def character_bounds(lm: FrozenLM, ids: Int[Tensor, " n"]) -> list[tuple[int, int]]:
    """The place of each token in lm.detokenize(ids): first character, and the one after its last.

    Found by decoding every beginning of the answer, which is right for any tokenizer. Tokens that
    share the bytes of one character all hold that character.
    """
    whole, bounds, done = lm.detokenize(ids), [], 0
    for i in range(len(ids)):
        beginning = lm.detokenize(ids[: i + 1])
        # An unfinished character decodes to U+FFFD, which the whole text does not have there.
        agree = len(beginning)
        while agree > done and beginning[:agree] != whole[:agree]:
            agree -= 1
        unfinished = len(beginning) > agree and agree < len(whole)
        bounds.append((done, agree + unfinished))
        done = agree
    return bounds
