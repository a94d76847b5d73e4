"""Answers the page's search tab: the steps of one search, as they are made.

Searches run one after another, beside the requests that are decoded: each pass takes a turn of the
model as theirs do.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from threading import Event
from typing import Any

from fastapi.responses import StreamingResponse

from latentwire.evals.metrics import normalise
from latentwire.lm import FrozenLM
from latentwire.seek.found import Found, best_of
from latentwire.seek.region import Fraction
from latentwire.seek.rewards.base import Reward
from latentwire.seek.rewards.confidence import Confidence
from latentwire.seek.rewards.exact import Exact
from latentwire.seek.search import Seek, SeekConfig
from latentwire.serve.api import SearchAsked, as_api_error, line
from latentwire.serve.decoding import BusyError
from latentwire.serve.guard import Limits
from latentwire.tasks.base import Problem


class GoneError(Exception):
    """Nobody waits for the search any more."""


class Searching:
    """Searches for clients of one server."""

    def __init__(self, limits: Limits):
        self.limits = limits
        self._turn, self._waiting = asyncio.Semaphore(1), 0

    def stream(self, lm: FrozenLM, asked: SearchAsked) -> StreamingResponse:
        """The steps of a search as server-sent events. Raises BusyError where too many wait, and
        ValueError for a question without words."""
        if self._waiting >= self.limits.waiting:
            raise BusyError(f"{self._waiting} searches wait already; try again later")
        if not asked.question.strip():
            raise ValueError("question is empty; expected words")
        if asked.answer is not None and not asked.answer.strip():
            raise ValueError("answer is empty; expected words, or none at all")
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        lines = self._lines(lm, asked, time.monotonic() + self.limits.seconds)
        return StreamingResponse(lines, media_type="text/event-stream", headers=headers)

    async def _lines(self, lm: FrozenLM, asked: SearchAsked, deadline: float) -> AsyncIterator[str]:
        """Events of a search, which ends at its next step when the client has gone."""
        events: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        loop, gone = asyncio.get_running_loop(), Event()

        def tell(event: dict[str, Any] | None) -> None:
            with suppress(RuntimeError):  # the loop has been closed
                loop.call_soon_threadsafe(events.put_nowait, event)

        def watch(found: Found) -> None:
            if gone.is_set():
                raise GoneError
            if time.monotonic() > deadline:
                raise TimeoutError("the time limit passed before the search was complete")
            tell(last_step(lm, found))

        def run() -> None:
            try:
                tell(outcome(searched(lm, asked, watch)))
            except GoneError:
                pass
            except Exception as error:
                tell(as_api_error(error).body())
            tell(None)

        self._waiting += 1
        try:
            try:
                await asyncio.wait_for(self._turn.acquire(), deadline - time.monotonic())
            except TimeoutError:
                late = TimeoutError("the time limit passed before the search could begin")
                yield line(as_api_error(late).body())
                return
            # A search whose client has gone ends at its next step, and the turn is its until then.
            done = loop.run_in_executor(None, run)
            done.add_done_callback(lambda _: self._turn.release())
            while (event := await events.get()) is not None:
                yield line(event)
            yield "data: [DONE]\n\n"
        finally:
            self._waiting -= 1
            gone.set()


def searched(lm: FrozenLM, asked: SearchAsked, watch: Any) -> Found:
    """The outcome of the search that is asked for."""
    problem = Problem("asked", asked.question, asked.question.strip(), asked.answer)
    reward: Reward = Confidence(lm) if asked.answer is None else Exact(has_answer)
    options = {"lr": asked.lr, "max_new_tokens": asked.max_tokens}
    # Answers here are short: the published tenth of one is often less than a token.
    config = SeekConfig(Fraction(0.2), steps=asked.steps, **options)
    return Seek(lm, reward, config, watch)([problem])[0]


def has_answer(problem: Problem, text: str, finished: bool = True) -> bool:
    """True where the words of the right answer stand in a text, as SQuAD compares words."""
    gold = re.escape(normalise(problem.gold or ""))
    return re.search(rf"(?<!\w){gold}(?!\w)", normalise(text)) is not None


def last_step(lm: FrozenLM, found: Found) -> dict[str, Any]:
    """The last step of a search: its answer in pieces, one a token, each with whether a step has
    flipped it."""
    step, first, ids = found.trace[-1], found.ids[0].tolist(), found.ids[-1].tolist()
    start, stop = found.span or (0, 0)
    pieces = [
        (lm.spelled([token]), start <= i < stop and first[i : i + 1] != [token])
        for i, token in enumerate(ids)
        if token not in lm.stop_ids
    ]
    figures = {"step": step.step, "reward": step.reward, "flipped": step.flipped}
    return {**figures, "tokens": step.tokens, "pieces": pieces}


def outcome(found: Found) -> dict[str, Any]:
    """The answer that a search came to, and the step that gave it."""
    best = best_of(found.trace)
    step = None if best is None else best.step
    told = {"text": found.text, "reward": found.reward, "failure": found.failure}
    return {"best": step, "note": found.note, **told}
