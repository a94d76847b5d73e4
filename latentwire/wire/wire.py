"""The wire: a text in, a few slots of keys and values out, read by a frozen LM in its place.

wire = Wire.from_pretrained("default")
prefix = wire.prefix(wire.encode([open("README.md").read()]))    # a cache to continue from
(message,) = wire.send([open("README.md").read()])               # the same as bytes
ask(wire, message, ["What is it for?"])                          # latentwire.tasks.qa
"""

from __future__ import annotations

import hashlib
import json
import math
import unicodedata
import warnings
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from typing import ClassVar

import torch
from jaxtyping import Bool
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn.functional import pad

from latentwire.artifact import check_sizes, fill, one_error, read_tensors, typed
from latentwire.files import write_whole
from latentwire.lm import Dtype, FrozenLM, KVPrefix, Prompt, States
from latentwire.lm.finite import check_finite
from latentwire.lm.soft_prompt import initial_soft_prompt
from latentwire.texts import check_texts
from latentwire.wire.compressed_kv import CompressedKV, as_prefix, head_of
from latentwire.wire.corrector import ResidualCorrector
from latentwire.wire.folder import WireError, folder_of, read_record
from latentwire.wire.message import GAP, Message, MessageError, check_bits
from latentwire.wire.scorer import Scorer
from latentwire.wire.verbatim import finder

FORMAT_VERSION = 1
WEIGHTS = "wire.safetensors"
BITS = 16
"""Bits of a message's codes, unless told otherwise."""
REMEMBERED = 4096
"""Texts whose messages' sizes are kept."""
RESERVE = 256
"""Positions kept free after a context for the soft prompt, question and answer."""


@dataclass(frozen=True)
class WireConfig:
    """What a wire is; saved beside its weights."""

    reader: str
    """Zoo name, Hugging Face id or folder of the LM that reads it."""
    ratio: int = 4
    """Tokens in per latent out."""
    window: int = 512
    """Most tokens that are encoded in one pass; longer texts are cut into windows."""
    rank: int = 128
    """Width of the bottleneck of each layer's residual."""
    format_tokens: int = 16
    """Soft tokens between context and question that set the form of the answer."""
    dtype: Dtype = "float32"
    """Of the reader's weights; the wire's own are float32."""

    def __post_init__(self) -> None:
        for name in ("ratio", "window", "rank", "format_tokens"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise WireError(f"{name} is {value!r}; expected a whole number >= 1")
        if self.window > GAP // 2:  # a head may have one slot in each of two windows
            raise WireError(f"window is {self.window}; expected at most {GAP // 2}")


@dataclass(frozen=True)
class Origin:
    """What a wire was trained for, saved beside its weights."""

    sha256: str
    """Of the file of weights."""
    architecture: str
    """Of the reader."""
    reader_weights: str
    """The reader's fingerprint."""


class Wire(nn.Module):
    """Compressor and soft prompt of one frozen reader."""

    blanks: ClassVar[Mapping[str, str]] = {"zero_latents": "zeros"}
    """Controls that hold nothing: rows of an evaluation, each with the method of a message's
    contents that makes it."""

    def __init__(self, lm: FrozenLM, config: WireConfig):
        super().__init__()
        self.lm, self.config = lm, config
        layers, (heads, head_dim) = len(lm.blocks), lm.kv_shape
        self.scorer = Scorer(layers, lm.width, heads)
        self.slots = ResidualCorrector(layers, lm.width, heads, head_dim, config.rank)
        self.format = nn.Parameter(initial_soft_prompt(lm, config.format_tokens).float())
        self.keep: str | None = None  # no part of what is trained and saved
        self._known: tuple[tuple[int, ...], bytes] = ((), b"")
        self._costs: dict[tuple, tuple[int, int]] = {}
        self.to(lm.device)

    @cached_property
    def head(self) -> KVPrefix:
        """What every prompt begins with (chat template's head, or BOS), as a cache of one row."""
        return head_of(self.lm)

    def check_window(self) -> None:
        """Raises WireError where the reader cannot read one whole window and answer."""
        most = self.lm.context_length - len(self.head) - RESERVE
        if self.config.window > most:
            raise WireError(f"window is {self.config.window}; {self.lm.name} has room for {most}")

    @property
    def reader(self) -> str:
        """Name of the LM that reads."""
        return self.config.reader

    @property
    def readers(self) -> list[Wire]:
        """Each reader with what an evaluation asks of it: this one."""
        return [self]

    @property
    def ratio(self) -> int:
        """Tokens in per latent out."""
        return self.config.ratio

    def at(self, ratio: int) -> Wire:
        """The same weights at another ratio than they were trained for. Either reads the messages
        of the other. Raises WireError for a ratio below 1."""
        wire = copy(self)
        wire.config = replace(self.config, ratio=ratio)
        return wire

    def keeping(self, rule: str | None) -> Wire:
        """The same weights, with spans of each text kept as text: what a rule of verbatim.py finds,
        or a regular expression. None keeps nothing.

        Every token that a span touches is a latent in all layers and heads, beside those that the
        ratio gives. A head that would not have kept it has the key and the value that the reader
        has for it where it reads the token's whole window, without the residual. Wires with and
        without a rule read each other's messages. Raises WireError for a regular expression that
        does not compile.
        """
        if rule is not None:
            finder(rule)
        wire = copy(self)
        wire.keep = rule
        return wire

    @property
    def bits(self) -> int:
        """Of a message's codes, unless told otherwise."""
        return BITS

    def check_bits(self, bits: int) -> None:
        """Raises MessageError for bits that no codec has."""
        check_bits(bits)

    def latents(self, text: str) -> int:
        """Latents that a text becomes."""
        return self._count(self._verbatim(text))

    def cost(self, text: str, bits: int = BITS) -> tuple[int, int]:
        """Latents and bytes of the message of a text, which is made for it; the last ones are
        remembered."""
        asked = (self.id, self.ratio, self.keep, text, bits)
        if (known := self._costs.get(asked)) is None:
            if len(self._costs) >= REMEMBERED:
                self._costs.clear()
            known = self.latents(text), len(self.send([text], bits)[0].to_bytes())
            self._costs[asked] = known
        return known

    def encode(self, contexts: Sequence[str], batch: int = 8) -> list[CompressedKV]:
        """One Latents per text; `batch` windows run through the LM at a time.

        The LM itself gets no gradient, the residual does. Raises WireError for an empty text, one
        whose latents would not fit the reader's window, or one that the reader's tokenizer loses a
        part of.
        """
        check_texts(contexts, "contexts")
        ids = [self.lm.tokenize(c) for c in contexts]
        jobs: list[tuple[int, Tensor, Tensor, int]] = []
        layouts = []
        for row, tokens in enumerate(ids):
            if len(tokens) == 0:
                raise WireError(f"context {row} is empty; expected at least one token")
            check_kept(self.lm, row, contexts[row], tokens)
            verbatim = self._verbatim(contexts[row])
            starts, span = self._layout(verbatim)
            windows = zip(*(x.split(self.config.window) for x in (tokens, verbatim)), strict=True)
            jobs += [(row, *w, start) for w, start in zip(windows, starts, strict=True)]
            layouts.append(([start - len(self.head) for start in starts], span))
        order = sorted(range(len(jobs)), key=lambda job: len(jobs[job][1]))  # for little padding
        windows: dict[int, CompressedKV] = {}
        for first in range(0, len(jobs), batch):
            which = order[first : first + batch]
            _, pieces, verbatim, starts = zip(*(jobs[job] for job in which), strict=True)
            kept = None if self.keep is None else verbatim
            compressed = self.compress(*self.read(pieces, starts), kept)
            windows.update(zip(which, compressed, strict=True))
        made: list[list[CompressedKV]] = [[] for _ in contexts]
        for job, (row, *_) in enumerate(jobs):
            made[row].append(windows[job])
        return [CompressedKV.joined(zs, *layout) for zs, layout in zip(made, layouts, strict=True)]

    @property
    def models(self) -> Mapping[str, FrozenLM]:
        """Maps what they do to the frozen models that take part."""
        return {"reader": self.lm}

    @property
    def trained(self) -> Mapping[str, Tensor]:
        """Holds what was trained for this reader."""
        return self.state_dict()

    @property
    def id(self) -> bytes:
        """First 8 bytes of the weights' sha256: which wire made a message."""
        tensors = self.state_dict(keep_vars=True).values()
        now = tuple(x for t in tensors for x in (t.data_ptr(), t._version))
        known = self._known
        if known[0] != now:  # all weights are read for it, and receiving asks each time
            check_finite(self.state_dict(), WireError)
            self._known = known = now, hashlib.sha256(self._weights()).digest()[:8]
        return known[1]

    def send(self, contexts: Sequence[str], bits: int = BITS) -> list[Message]:
        """Texts as messages in codes of `bits`: 16, 8, 6 or 4, else MessageError."""
        check_bits(bits)
        wire_id, fingerprint = self.id, self.lm.fingerprint
        with torch.no_grad():
            latents = self.encode(contexts)
        return [Message(wire_id, self.config.reader, fingerprint, z, bits) for z in latents]

    def receive(self, messages: Sequence[Message]) -> KVPrefix:
        """Messages as a cache that the reader continues from. Raises what `open` raises."""
        return self.prefix(self.open(messages))

    def open(self, messages: Sequence[Message]) -> list[CompressedKV]:
        """What messages hold. Raises MessageError for no messages, or for one that another wire
        made or that does not fit the reader."""
        if not messages:
            raise MessageError("got no messages; expected at least one")
        wire_id = self.id
        for message in messages:
            if (message.wire_id, message.reader) != (wire_id, self.config.reader):
                raise MessageError(
                    f"message of wire {message.wire_id.hex()} for {message.reader}; "
                    f"this is wire {wire_id.hex()} for {self.config.reader}"
                )
            if message.fingerprint != self.lm.fingerprint:
                warnings.warn(
                    f"message was made with another copy of {message.reader} (its weights differ); "
                    "expect somewhat lower scores",
                    stacklevel=2,
                )
            z = message.latents
            if (*z.lengths.shape, z.keys.shape[1]) != (len(self.lm.blocks), *self.lm.kv_shape):
                raise MessageError("the message was altered: its shape is not this wire's")
            room = self.lm.context_length - len(self.head)
            if max(z.span, len(z)) > room:
                raise MessageError(
                    f"message takes up {z.span} positions with {len(z)} latents; "
                    f"{self.lm.name} has room for {room}"
                )
            if (most := int(z.lengths.max())) > room * self.ratio:
                raise MessageError(
                    f"message has a head with {most} slots; at {self.ratio}x a text has at most "
                    f"{room * self.ratio} tokens"
                )
        return [m.latents for m in messages]

    def prefix(self, latents: Sequence[CompressedKV]) -> KVPrefix:
        """Latents as a cache that the reader continues from, the head before them."""
        return as_prefix(self.head, latents)

    def save(self, folder: Path) -> None:
        """config.json and bf16 weights, the weights' sha256 in the config."""
        folder.mkdir(parents=True, exist_ok=True)
        weights = self._weights()
        record = {
            "format_version": FORMAT_VERSION,
            "sha256": hashlib.sha256(weights).hexdigest(),
            "architecture": self.lm.architecture,
            "reader_weights": self.lm.fingerprint,
            **asdict(self.config),
        }
        write_whole(folder / WEIGHTS, weights)
        write_whole(folder / "config.json", json.dumps(record, indent=1))

    @classmethod
    def from_pretrained(
        cls, name: str | Path, lm: FrozenLM | None = None, dtype: Dtype | None = None
    ) -> Wire:
        """Load a wire from a folder or the Hugging Face hub (owner/name), or the shipped one by the
        name "default".

        lm: its reader if it is loaded already, else it is loaded (and fetched) by name. dtype: of
        the reader's weights then, as it was trained if None. Raises
        WireError for a folder that is no wire, weights that were truncated or altered, or a reader
        of another architecture, and ZooError where the hub has no such wire.
        """
        folder = folder_of(name)
        record = read_config(folder)
        with one_error(WireError, folder):
            config, origin = typed(WireConfig, record), typed(Origin, record)
            state = read_tensors(folder / WEIGHTS, origin.sha256)
            sizes = {"rank": (config.rank, "slots.down", 2)}
            check_sizes(state, {**sizes, "format_tokens": (config.format_tokens, "format", 0)})
        lm = lm or FrozenLM.from_pretrained(config.reader, dtype or config.dtype)
        if lm.architecture != origin.architecture:
            raise WireError(
                f"{folder} was trained for {config.reader} {origin.architecture}; "
                f"got {lm.name} {lm.architecture}"
            )
        if lm.fingerprint != origin.reader_weights:
            # Another copy of the same model (a 4-bit one, the original) reads a little worse;
            # another model of the same shape reads nothing.
            if lm.name != config.reader:
                raise WireError(
                    f"{folder} was trained for {config.reader}; {lm.name} is another model"
                )
            warnings.warn(
                f"wire {name} was trained on another copy of {lm.name} (its weights differ); "
                "expect somewhat lower scores",
                stacklevel=2,
            )
        wire = cls(lm, config)
        with one_error(WireError, folder):
            fill(wire, state)
        return wire.eval()

    def _weights(self) -> bytes:
        state = {k: v.detach().to("cpu", torch.bfloat16) for k, v in self.state_dict().items()}
        return save(state)

    def _verbatim(self, text: str) -> Bool[Tensor, " t"]:
        """Which tokens of a text are kept as text."""
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
        """Latents of a text of which some tokens are kept as text."""
        return sum(map(self._count_window, verbatim.split(self.config.window)))

    def _count_window(self, verbatim: Bool[Tensor, " t"]) -> int:
        return min(
            math.ceil(len(verbatim) / self.config.ratio) + int(verbatim.sum()), len(verbatim)
        )

    def _layout(self, verbatim: Bool[Tensor, " t"]) -> tuple[list[int], int]:
        """Position of each window's first token, and positions taken in all.

        Windows stand one after another; where a text is longer than the reader's window they
        overlap, evenly, so that the last one still ends inside it.
        """
        head, tokens, latents = len(self.head), len(verbatim), self._count(verbatim)
        windows = verbatim.split(self.config.window)
        room = self.lm.context_length - head - RESERVE
        if room < len(windows[0]):
            self.check_window()
        if room < self._count(torch.zeros_like(verbatim)):
            most = room * self.config.ratio
            raise WireError(
                f"context has {tokens} tokens; at most {most} fit {self.lm.name} at "
                f"{self.config.ratio}x: cut the text"
            )
        if room < latents:
            raise WireError(
                f"context becomes {latents} latents with {self.keep!r} kept as text; "
                f"{self.lm.name} has room for {room}: cut the text or keep less of it"
            )
        stride = float(self.config.window)
        if tokens > room:
            stride = (room - self.config.window) / (len(windows) - 1)
        starts = [head + int(i * stride) for i in range(len(windows))]
        ends = [start + len(window) for start, window in zip(starts, windows, strict=True)]
        return starts, max(ends) - head  # the last window may be short, and end before another

    def read(self, pieces: Sequence[Tensor], starts: Sequence[int]) -> tuple[Prompt, States]:
        """The LM's one pass over windows of ids, each after the head and from its own position."""
        head = self.head.rows(torch.zeros(len(pieces), dtype=torch.long, device=self.lm.device))
        placed = replace(head, next_position=torch.tensor(starts, device=self.lm.device))
        with torch.no_grad():
            prompt = Prompt.from_ids(self.lm, pieces, placed)
            return prompt, self.lm.states(prompt)

    def compress(
        self, prompt: Prompt, states: States, verbatim: Sequence[Bool[Tensor, " _"]] | None = None
    ) -> list[CompressedKV]:
        """What `read` gave, as latents: one per window. verbatim: which tokens are kept as text, in
        each window; None for none of them."""
        with torch.no_grad():
            scores = self.scorer(states.inputs)
            check_finite({"a score of a token": scores}, WireError)
        width, sizes = prompt.mask.shape[1], prompt.mask.sum(-1)
        kept = None
        if verbatim is not None:
            kept = torch.stack([pad(window, (width - len(window), 0)) for window in verbatim])
        return self.slots(
            self.lm,
            states.inputs,
            [k[:, :, -width:] for k in states.prefix.keys],
            [v[:, :, -width:] for v in states.prefix.values],
            scores,
            prompt.positions,
            prompt.mask,
            (sizes + self.config.ratio - 1) // self.config.ratio,
            kept,
        )


def check_kept(lm: FrozenLM, row: int, text: str, ids: Tensor) -> None:
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


def read_config(folder: Path) -> dict:
    """config.json of a wire of one reader. Raises WireError for a folder that holds none."""
    record = read_record(folder, None, FORMAT_VERSION)
    if not isinstance(record.get("reader"), str):
        raise WireError(f"{folder}/config.json is not a wire's; expected the one that save wrote")
    return record
