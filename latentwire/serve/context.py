"""Stored contexts as a reader's cache, questions about them, and chats that go on.

contexts = Contexts(load_wire("default"), Store("papers"))
contexts.ask([(["a.pdf"], "Who wrote it?"), (["a.pdf", "b.pdf"], "Which is older?")])
chat = Chat(contexts, ["a.pdf"])
for piece in chat.say("What is it about?"):
    print(piece, end="")
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from latentwire.evals.baselines import truncated
from latentwire.lm import FrozenLM, KVPrefix
from latentwire.lm.joining import after_one_another, side_by_side
from latentwire.lm.samplers import seed_of
from latentwire.serve.decoding import Request, Row, complete, stream
from latentwire.serve.store import Entry, Store, StoreError, wire_id
from latentwire.tasks.qa import Answering, question_ids, with_soft_prompt
from latentwire.wire.compressed_kv import head_of
from latentwire.wire.load import AnyWire
from latentwire.wire.wire import RESERVE

CACHED = 1 << 30
"""Bytes of prefixes that are kept ready."""


class TooLongError(ValueError):
    """Contexts and words together are longer than the model's context."""


@dataclass(frozen=True)
class Turn:
    """Words of the user, the assistant or the system."""

    role: str
    text: str


class Contexts:
    """A wire with a store of its messages, read as prefixes of one row. Any thread may ask."""

    def __init__(self, wire: AnyWire, store: Store, cached: int = CACHED):
        """cached: bytes of prefixes that are kept ready. Raises WireError for a wire of learned
        codes."""
        wire_id(wire)
        self.wire: Any = wire
        self.store, self._most = store, cached
        self.lms = {reader.reader: reader.lm for reader in wire.readers}
        self._heads = {name: head_of(lm) for name, lm in self.lms.items()}
        self._ready: OrderedDict[tuple, KVPrefix] = OrderedDict()
        self._lock = Lock()

    @property
    def models(self) -> list[str]:
        """Names of the LMs that read."""
        return list(self.lms)

    def stored(
        self, names: Sequence[str], model: str | None = None, soft_prompt: bool = True
    ) -> tuple[KVPrefix, list[Entry]]:
        """Contexts of these names or ids after one another, as a reader's prefix of one row, and
        their entries. soft_prompt: with the wire's behind them, which it was trained with; it asks
        for a short span.

        Raises StoreError for a context that is unknown, altered or another wire's, and TooLongError
        where all of them together leave no room for a question.
        """
        if not names:
            raise StoreError("got no context; expected the name of at least one")
        entries = [self.store.entry(name) for name in names]
        key = (model, soft_prompt, *((entry.id, entry.message) for entry in entries))
        return self._kept(key, lambda: self._read(entries, model, soft_prompt)), entries

    def plain(
        self,
        text: str | None,
        model: str | None = None,
        soft_prompt: bool = True,
        most: int | None = None,
    ) -> KVPrefix:
        """The same reader's prefix where it reads the text itself, or its first `most` tokens, in
        place of latents; None for no context."""
        lm = self.lm(model)
        if text is None:
            return self._heads[model or self.models[0]]

        def read() -> KVPrefix:
            self._check_room(lm, len(lm.tokenize(text)[:most]) + len(lm.frame.prefix))
            whole = truncated(lm, lambda _: most)([text])
            return with_soft_prompt(lm, self._reader(model).format if soft_prompt else None, whole)

        return self._kept((model, soft_prompt, most, text), read)

    def lm(self, model: str | None = None) -> FrozenLM:
        """A reader's LM; the first one's if None. Raises KeyError for a model that is none."""
        return self.lms[self.models[0] if model is None else model]

    def request(
        self, prefix: KVPrefix, turns: Sequence[Turn], model: str | None = None, **options: Any
    ) -> Request:
        """A request that has the reader answer the last turn, the others before it. options: of
        Request; max_new_tokens is cut to the room that is left. Raises TooLongError where there is
        none."""
        lm = self.lm(model)
        bare = prefix is self._heads[model or self.models[0]]
        return self.following(prefix, turn_ids(lm, turns, bare), model, **options)

    def following(
        self, prefix: KVPrefix, ids: Tensor, model: str | None = None, **options: Any
    ) -> Request:
        """A request that has the reader go on from ids behind a prefix, as `request` says."""
        lm = self.lm(model)
        room = lm.context_length - int(prefix.next_position) - len(ids)
        if room < 1:
            raise TooLongError(
                f"contexts and words take {lm.context_length - room} positions; {lm.name} has "
                f"{lm.context_length}: shorten them"
            )
        most = min(options.pop("max_new_tokens", 256), room)
        return Request(prefix, ids, most, **options)

    def ask(
        self,
        asked: Sequence[tuple[Sequence[str], str]],
        model: str | None = None,
        **options: Any,
    ) -> list[str]:
        """Answers to questions, each of contexts of its own, decoded together. options: of
        Answering, as `latentwire.ask` has them."""
        seed = options.pop("seed", 0)
        requests = [
            self.question(*one, model, seed=seed_of(seed, row), **options)
            for row, one in enumerate(asked)
        ]
        return complete(self.lm(model), requests)

    def question(
        self, names: Sequence[str], question: str, model: str | None = None, **options: Any
    ) -> Request:
        """A request that has a question about contexts answered as `latentwire.ask` answers it.
        options: of Answering."""
        answering = Answering(**options)
        prefix, _ = self.stored(names, model, answering.soft_prompt)
        return self.request(
            prefix,
            [Turn("user", question)],
            model,
            max_new_tokens=answering.longest,
            stop=answering.ends,
            temperature=answering.temperature,
            seed=answering.seed,
        )

    def _reader(self, model: str | None, ratio: int | None = None) -> Any:
        wire = self.wire if ratio is None else self.wire.at(ratio)
        return wire.readers[0 if model is None else self.models.index(model)]

    def _read(self, entries: Sequence[Entry], model: str | None, soft_prompt: bool) -> KVPrefix:
        lm, rows = self.lm(model), []
        with torch.no_grad():
            for entry in entries:
                message: Any = self.store.message(self.wire, entry)
                rows.append(self._reader(model, entry.ratio).receive([message]))
            self._check_room(lm, sum(int(row.next_position) for row in rows))
            prefix = after_one_another(lm, side_by_side(rows))
            return with_soft_prompt(lm, self._reader(model).format if soft_prompt else None, prefix)

    def _check_room(self, lm: FrozenLM, positions: int) -> None:
        if positions > (room := lm.context_length - RESERVE):
            raise TooLongError(
                f"contexts take {positions} positions; {lm.name} has room for {room}: read fewer "
                "together, or less of the text"
            )

    def _kept(self, key: tuple, make: Callable[[], KVPrefix]) -> KVPrefix:
        """The prefix of this key, which is kept while it is among the last that were asked for. Two
        are not made at a time: those who ask for one together would all make it."""
        with self._lock:
            if key in self._ready:
                self._ready.move_to_end(key)
                return self._ready[key]
            self._ready[key] = made = make()
            held = sum(prefix.nbytes() for prefix in self._ready.values())
            while held > self._most and len(self._ready) > 1:
                held -= self._ready.popitem(last=False)[1].nbytes()
        return made


def turn_ids(lm: FrozenLM, turns: Sequence[Turn], bare: bool = False) -> Tensor:
    """Ids of turns up to where the next answer begins, behind a context's prefix, or the chat's
    head alone (bare). Words of a system stand before those of the user's turn that follows. Raises
    ValueError where the last turn is not the user's, or one is empty."""
    if not turns or turns[-1].role != "user":
        raise ValueError("the last message is not the user's; expected a question to answer")
    parts: list[Tensor] = []
    system = ""
    for turn in turns:
        if not turn.text.strip():
            raise ValueError(f"a message of the {turn.role} is empty; expected text")
        if turn.role == "system":
            system += turn.text.strip() + "\n\n"
        elif turn.role == "user":
            words = system + turn.text.strip()
            if parts:
                parts += [lm.next_turn, lm.tokenize(words), lm.frame.suffix]
            else:
                first = torch.cat([lm.tokenize(words), lm.frame.suffix])
                parts.append(first if bare else question_ids(lm, words))
            system = ""
        else:
            parts.append(lm.tokenize(lm.frame.answer_prefix + turn.text.strip()))
    return torch.cat(parts)


class Chat:
    """A conversation about contexts, which stay compressed; its turns stay in the cache, so that
    each costs its own words."""

    def __init__(
        self,
        contexts: Contexts,
        names: Sequence[str],
        model: str | None = None,
        soft_prompt: bool = True,
        **options: Any,
    ):
        """soft_prompt: with the wire's behind the contexts. options: of Request,
        for each answer."""
        self.contexts, self.model, self.options = contexts, model, options
        self._prefix, self.entries = contexts.stored(names, model, soft_prompt)
        no_words = self._prefix.positions.new_empty(0)
        Request(self._prefix, no_words, **options)  # options are checked before the first turn
        self._left: Tensor | None = None  # ids of the last answer that the cache does not hold

    def say(self, text: str) -> Iterator[str]:
        """Pieces of the answer to the next turn. Who stops asking for them stops the answer; the
        chat then goes on as if the turn had not been."""
        lm = self.contexts.lm(self.model)
        if self._left is None:
            ids = turn_ids(lm, [Turn("user", text)])
        else:
            ids = torch.cat([self._left, lm.next_turn, lm.tokenize(text.strip()), lm.frame.suffix])
        request = self.contexts.following(self._prefix, ids, self.model, **self.options)
        row = Row(request, keeps_cache=True)
        yield from stream(lm, request, row)
        assert row.cache is not None
        self._prefix = row.cache
        last = row.ids[-1:] if row.finish == "length" else []
        self._left = torch.tensor(last, dtype=torch.long, device=lm.device)
