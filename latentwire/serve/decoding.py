"""Generation for requests that come and go: rows join and leave a batch between two tokens.

    answers = complete(lm, [Request(prefix, ids) for ids in questions])     # all at once
    for piece in stream(lm, Request(prefix, ids)): ...                      # as it is generated

`Batch` is the loop's body, in whatever thread calls it; `Worker` runs one in a thread of its own
for a server. What a row says is what it says alone: rows share nothing but the matrix products.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from threading import Condition, Thread

import torch
from jaxtyping import Float
from torch import Tensor

from latentwire.lm import FrozenLM, KVPrefix, Prompt, Sampler
from latentwire.lm.generation import advance
from latentwire.lm.joining import side_by_side, staying
from latentwire.lm.samplers import sampler_of
from latentwire.tasks.qa import check_generation


class BusyError(RuntimeError):
    """As many requests wait already as may."""


@dataclass(frozen=True)
class Request:
    """One text to generate: what follows `ids`, behind a prefix of one row."""

    prefix: KVPrefix
    ids: Tensor
    max_new_tokens: int = 256
    stop: Sequence[str] = ()
    """Texts of which the first to come ends the answer, and is no part of it."""
    temperature: float = 0.0
    """0 takes the most probable token."""
    seed: int = 0
    deadline: float | None = None
    """Moment of time.monotonic() at which the answer is given up."""

    def __post_init__(self) -> None:
        check_generation(self.max_new_tokens, self.stop, self.temperature)

    @property
    def sampler(self) -> Sampler:
        """Chooses its tokens by its own seed alone, whoever else is in the batch."""
        return sampler_of(self.temperature, [self.seed])


@dataclass
class Row:
    """One request on its way."""

    request: Request
    emit: Callable[[str, Row], None] = lambda piece, row: None
    """Called with each piece of text, and once with what is last, when `finish` or `error` is."""
    ids: list[int] = field(default_factory=list)
    """Tokens so far, that which ended it included."""
    finish: str | None = None
    """"stop" or "length", when it has ended."""
    error: Exception | None = None
    cancelled: bool = False
    keeps_cache: bool = False
    cache: KVPrefix | None = None
    """The cache of all but the last token, when it has ended, if it keeps that."""
    _sent: int = 0

    @property
    def ended(self) -> bool:
        return self.finish is not None or self.error is not None

    def take(self, lm: FrozenLM, token: int) -> None:
        """One more token; what is certain of the text is emitted."""
        self.ids.append(token)
        stopped = token in lm.stop_ids
        ids = self.ids[:-1] if stopped else self.ids
        text = lm.detokenize(torch.tensor(ids, dtype=torch.long))
        cuts = [text.index(stop) for stop in self.request.stop if stop in text]
        if stopped or cuts:
            self.finish = "stop"
        elif len(self.ids) == self.request.max_new_tokens:
            self.finish = "length"
        text = text[: min(cuts)] if cuts else text
        # White space around an answer is no part of it, and what may yet change is not sent: half
        # of a character, or the begin of a stop.
        sure = text.strip() if self.finish else _sure(text, self.request.stop).strip()
        piece, self._sent = sure[self._sent :], max(self._sent, len(sure))
        if piece or self.finish:
            self.emit(piece, self)

    def fail(self, error: Exception) -> None:
        self.error = error
        self.emit("", self)


def _sure(text: str, stops: Sequence[str]) -> str:
    """The part of a text that stays whatever follows it."""
    text = text.rstrip("\ufffd")
    held = (n for stop in stops for n in range(len(stop) - 1, 0, -1) if text.endswith(stop[:n]))
    return text[: len(text) - max(held, default=0)]


class Batch:
    """Rows that are decoded together."""

    def __init__(self, lm: FrozenLM):
        self.lm, self.rows = lm, []
        self._prefix: KVPrefix | None = None

    def join(self, rows: Sequence[Row]) -> None:
        """Read what new rows ask, and generate the first token of each. Where the model fails, they
        fail, and those that are here already go on."""
        try:
            prefixes = side_by_side([row.request.prefix for row in rows])
            prefix = self._advance(rows, [row.request.ids for row in rows], prefixes)
            parts = [prefix] if self._prefix is None else [self._prefix, prefix]
            joined = side_by_side(parts)
        except Exception as error:
            for row in rows:
                row.fail(error)
            return
        self.rows, self._prefix = [*self.rows, *rows], joined
        self._part()

    def step(self) -> None:
        """One more token of every row. Where the model fails, all of them fail."""
        self._part()
        if not self.rows:
            return
        try:
            last = [torch.tensor(row.ids[-1:], device=self.lm.device) for row in self.rows]
            self._prefix = self._advance(self.rows, last, self._prefix)
        except Exception as error:
            for row in self.rows:
                row.fail(error)
        self._part()

    @torch.no_grad()
    def _advance(
        self, rows: Sequence[Row], ids: Sequence[Tensor], prefix: KVPrefix | None
    ) -> KVPrefix:
        logits, grown = advance(self.lm, Prompt.from_ids(self.lm, ids, prefix))
        finite = torch.isfinite(logits).all(-1).tolist()
        for i, row in enumerate(rows):
            if finite[i]:
                row.take(self.lm, self._choose(row, logits[i : i + 1]))
            else:
                row.fail(FloatingPointError(f"{self.lm.name} computed NaN for this request"))
        return grown

    def _choose(self, row: Row, logits: Float[Tensor, "1 v"]) -> int:
        return int(row.request.sampler(logits, len(row.ids)).ids)

    def _part(self) -> None:
        """Rows that have ended, or that nobody waits for any more, leave."""
        now, stay = time.monotonic(), []
        for i, row in enumerate(self.rows):
            deadline = row.request.deadline
            if not row.ended and not row.cancelled and deadline is not None and now > deadline:
                row.fail(TimeoutError("the time limit passed before the answer was complete"))
            if not row.ended and not row.cancelled:
                stay.append(i)
        if len(stay) < len(self.rows):
            assert self._prefix is not None
            at = torch.tensor(stay, dtype=torch.long, device=self.lm.device)
            for i, row in enumerate(self.rows):
                if row.finish is not None and row.keeps_cache:
                    row.cache = staying(self._prefix, torch.tensor([i], device=self.lm.device))
            self._prefix = staying(self._prefix, at) if stay else None
            self.rows = [self.rows[i] for i in stay]


def complete(lm: FrozenLM, requests: Sequence[Request], rows: int = 32) -> list[str]:
    """The texts that follow requests, at most so many decoded at a time; a request of any context
    may stand beside any other."""
    pieces: dict[int, list[str]] = {i: [] for i in range(len(requests))}
    asked = [
        Row(request, lambda piece, _, i=i: pieces[i].append(piece))
        for i, request in enumerate(requests)
    ]
    waiting, batch = deque(asked), Batch(lm)
    while waiting or batch.rows:
        if new := [waiting.popleft() for _ in range(min(rows - len(batch.rows), len(waiting)))]:
            batch.join(new)
        batch.step()
    for row in asked:
        if row.error is not None:
            raise row.error
    return ["".join(pieces[i]) for i in range(len(requests))]


def stream(lm: FrozenLM, request: Request, row: Row | None = None) -> Iterator[str]:
    """Pieces of the text that follows a request, as they are generated; who stops asking stops the
    generation. row: where to see ids and cache afterwards."""
    pieces: deque[str] = deque()
    row = row or Row(request)
    row.emit = lambda piece, _: pieces.append(piece)
    batch = Batch(lm)
    batch.join([row])
    while True:
        while pieces:
            if piece := pieces.popleft():
                yield piece
        if row.error is not None:
            raise row.error
        if row.ended:
            return
        batch.step()


class Worker:
    """A thread that decodes whatever is submitted, in one batch."""

    def __init__(self, lm: FrozenLM, rows: int = 16, waiting: int = 256):
        """rows: most that are decoded together. waiting: most that may wait for them."""
        self.lm, self.batch, self._rows, self._most = lm, Batch(lm), rows, waiting
        self._waiting: deque[Row] = deque()
        self._changed, self._closed = Condition(), False
        self._thread = Thread(target=self._run, name=f"decode {lm.name}", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Requests that are not being decoded yet."""
        return len(self._waiting)

    @property
    def alive(self) -> bool:
        """True while it decodes."""
        return self._thread.is_alive()

    def submit(self, request: Request, emit: Callable[[str, Row], None]) -> Row:
        """Have a request decoded; `emit` is called from the worker's thread. Set `cancelled` on the
        row to have it leave. Raises BusyError where too many wait."""
        row = Row(request, emit)
        with self._changed:
            if len(self._waiting) >= self._most or self._closed:
                raise BusyError(f"{len(self._waiting)} requests wait already; try again later")
            self._waiting.append(row)
            self._changed.notify()
        return row

    def close(self) -> None:
        """End the thread; what is under way fails."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self.batch.rows or self._closed)
                if self._closed:
                    break
                new = []
                while self._waiting and len(self.batch.rows) + len(new) < self._rows:
                    new.append(self._waiting.popleft())
            if new := [row for row in new if self._due(row)]:
                self.batch.join(new)
            self.batch.step()
        for row in (*self.batch.rows, *self._waiting):
            row.fail(BusyError("the server is shutting down"))

    def _due(self, row: Row) -> bool:
        """True where a row that waited is still to be answered."""
        late = row.request.deadline is not None and time.monotonic() > row.request.deadline
        if late and not row.cancelled:
            row.fail(TimeoutError("the time limit passed before the request's turn came"))
        return not late and not row.cancelled
