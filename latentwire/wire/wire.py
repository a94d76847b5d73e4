"""The wire: a text in, a few slots of keys and values out, read by a frozen LM in its place.

wire = Wire.from_pretrained("default")                           # trained, or without any training:
wire = Wire.of("smollm2-135m", selector="repetition", ratio=4)
prefix = wire.prefix(wire.encode([open("README.md").read()]))    # a cache to continue from
(message,) = wire.send([open("README.md").read()])               # the same as bytes
ask(wire, message, ["What is it for?"])                          # latentwire.tasks.qa
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import torch
from jaxtyping import Bool
from safetensors.torch import save
from torch import Tensor, nn

from latentwire.artifact import check_sizes, fill, one_error, read_tensors, typed
from latentwire.files import write_whole
from latentwire.lm import Dtype, FrozenLM, KVPrefix, LMSource, Prompt
from latentwire.lm.cache import DynamicCache, transformers_cache
from latentwire.lm.finite import check_finite
from latentwire.lm.loaded import as_lm, called, lm_of, saved_folders
from latentwire.lm.soft_prompt import initial_soft_prompt
from latentwire.texts import check_texts
from latentwire.wire.compressed_kv import CompressedKV, as_prefix, head_of
from latentwire.wire.compressor import KVCompressor
from latentwire.wire.config import FORMAT_VERSION, Measured, Origin, WireConfig, read_config
from latentwire.wire.corrector import ResidualCorrector
from latentwire.wire.folder import WireError, folder_of
from latentwire.wire.message import Message, MessageError, check_bits, check_readable
from latentwire.wire.selectors import TRAINED, Reading, Scorer, Selector, selector_of
from latentwire.wire.verbatim import finder
from latentwire.wire.windows import RESERVE, Windows, room_of

WEIGHTS = "wire.safetensors"
BITS = 16
"""Bits of a message's codes, unless told otherwise."""
LATER = (("selector", TRAINED), ("uniform", False))
"""Settings that came after the first wires, at what those have; config.json leaves them out."""
REMEMBERED = 4096
"""Texts whose messages' sizes are kept."""


class Wire(nn.Module):
    """Compressor and soft prompt of one frozen reader."""

    blanks: ClassVar[Mapping[str, str]] = {"zero_latents": "zeros"}
    """Controls that hold nothing: rows of an evaluation, each with the method of a message's
    contents that makes it."""
    message_type: ClassVar[type[Message]] = Message

    def __init__(self, lm: FrozenLM, config: WireConfig):
        super().__init__()
        self.lm, self.config = lm, replace(config, reader=called(lm, config.reader))
        layers, (heads, head_dim) = len(lm.blocks), lm.kv_shape
        trained = config.selector == TRAINED
        self.scorer = Scorer(layers if trained else 0, lm.width, heads)
        self.slots = ResidualCorrector(layers, lm.width, heads, head_dim, config.rank)
        self.format = nn.Parameter(initial_soft_prompt(lm, config.format_tokens).float())
        selector = self.scorer if trained else selector_of(config.selector)
        corrector = self.slots if config.rank else None
        self.compressor = KVCompressor(lm, selector, corrector, config.uniform)
        self.measured = Measured()
        self.keep: str | None = None  # no part of what is trained and saved
        self._known: tuple[tuple[int, ...], bytes] = ((), b"")
        self._costs: dict[tuple, tuple[int, int]] = {}
        self.to(lm.device)

    @classmethod
    def of(
        cls,
        lm: LMSource,
        selector: str = "repetition",
        ratio: int = 4,
        window: int | None = None,
        dtype: Dtype | None = None,
    ) -> Wire:
        """A wire without any training, for any supported model, by name or loaded (lm.LMSource):
        eviction alone, and no soft prompt. selector: a name of selectors/. window: 512 tokens, or
        as many as the model has room for, if None. dtype: of the weights of a model that is loaded
        here, float32 if None. Raises WireError for a selector that there is not."""
        selector_of(selector)  # a mistake in it is told before the model is loaded
        lm = as_lm(lm, dtype or "float32")
        window = window or min(WireConfig.window, room_of(lm))
        return cls(lm, WireConfig(lm.name, ratio, window, 0, 0, lm.dtype_name, selector)).eval()

    @cached_property
    def head(self) -> KVPrefix:
        """The head of every prompt (chat template's, or BOS), as a cache of one row."""
        return head_of(self.lm)

    def check_window(self) -> None:
        """Raises WireError where the reader cannot read one whole window and answer."""
        self._windows.check()

    @property
    def _windows(self) -> Windows:
        return Windows(self.lm, self.config.window, self.ratio, self.keep)

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

    def evicting(self, selector: Selector | None = None) -> Wire:
        """The same wire without its residual: its slots are the reader's own keys and values of the
        tokens that its selector keeps, or another. Either reads the messages of the other."""
        selector = selector or self.compressor.selector
        return self._compressing(replace(self.compressor, selector=selector, corrector=None))

    def uniform(self) -> Wire:
        """The same wire with as many slots in every head of every layer, as `cache` needs; it costs
        quality (docs/decisions.md). Either reads the messages of the other."""
        wire = self._compressing(replace(self.compressor, uniform=True))
        wire.config = replace(self.config, uniform=True)
        return wire

    def _compressing(self, compressor: KVCompressor) -> Wire:
        wire = copy(self)
        wire.compressor, wire._costs = compressor, {}  # other slots take other bytes
        return wire

    def evictions(self, also: Sequence[str] = ()) -> dict[str, Wire]:
        """Rows of an evaluation, by name: eviction alone, where there is a residual to leave out,
        and by other selectors of selectors/. Raises WireError for one that there is not."""
        alone = {"evicted": self.evicting()} if self.compressor.corrector else {}
        return alone | {f"evicted_by_{n}": self.evicting(selector_of(n)) for n in also}

    @property
    def bits(self) -> int:
        """Bits of a message's codes, unless told otherwise."""
        return BITS

    def check_bits(self, bits: int) -> None:
        """Raises MessageError for bits that no codec has."""
        check_bits(bits)

    def latents(self, text: str) -> int:
        """Latents that a text becomes."""
        return self._windows.slots(text)

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
        """One CompressedKV per text; `batch` windows run through the LM at a time.

        The LM itself gets no gradient, the residual does. Raises WireError for an empty text, one
        whose latents would not fit the reader's window, or one that the reader's tokenizer loses a
        part of.
        """
        check_texts(contexts, "contexts")
        cuts = [self._windows.cut(row, text) for row, text in enumerate(contexts)]
        for cut in cuts:
            self.measured.warn_beyond(sum(len(ids) for ids, *_ in cut.windows), self.ratio)
        jobs = [(row, *window) for row, cut in enumerate(cuts) for window in cut.windows]
        order = sorted(range(len(jobs)), key=lambda job: len(jobs[job][1]))  # for little padding
        windows: dict[int, CompressedKV] = {}
        for first in range(0, len(jobs), batch):
            which = order[first : first + batch]
            _, pieces, verbatim, starts = zip(*(jobs[job] for job in which), strict=True)
            kept = None if self.keep is None else verbatim
            windows.update(zip(which, self.compress(self.read(pieces, starts), kept), strict=True))
        compressed: list[list[CompressedKV]] = [[] for _ in contexts]
        for job, (row, *_) in enumerate(jobs):
            compressed[row].append(windows[job])
        joined = zip(compressed, cuts, strict=True)
        return [CompressedKV.joined(zs, cut.starts, cut.span) for zs, cut in joined]

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
        """The contents of messages. Raises MessageError for no messages, or for one that another
        wire made or that does not fit the reader."""
        if not messages:
            raise MessageError("got no messages; expected at least one")
        wire_id = self.id
        for message in messages:
            message.check_origin(wire_id, self.reader, self.lm.fingerprint)
            check_readable(message.latents, self.lm, self.ratio)
        return [m.latents for m in messages]

    def prefix(self, latents: Sequence[CompressedKV]) -> KVPrefix:
        """Latents as a cache that the reader continues from, the head before them."""
        return as_prefix(self.head, latents)

    def cache(self, messages: Sequence[Message], room: int = RESERVE) -> DynamicCache:
        """Messages of `uniform` as a cache that `model.generate(past_key_values=...)` of
        transformers continues from, for up to `room` tokens. Raises what `open` raises, and
        ValueError where the cache could not be exact."""
        return transformers_cache(self.lm.model, self.receive(messages), room)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json and bf16 weights, the weights' sha256 in the config."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        weights = self._weights()
        record = {
            "format_version": FORMAT_VERSION,
            "sha256": hashlib.sha256(weights).hexdigest(),
            "architecture": self.lm.architecture,
            "reader_weights": self.lm.fingerprint,
            **{k: v for k, v in asdict(self.config).items() if (k, v) not in LATER},
            **({"measured": asdict(self.measured)} if self.measured != Measured() else {}),
            **saved_folders({self.reader: self.lm.folder}),
        }
        write_whole(folder / WEIGHTS, weights)
        write_whole(folder / "config.json", json.dumps(record, indent=1))

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        lm: LMSource | Mapping[str, LMSource] | None = None,
        dtype: Dtype | None = None,
        device: str | None = None,
        ratio: int | None = None,
    ) -> Wire:
        """Load a wire from a folder or the Hugging Face hub (owner/name), or the shipped one by the
        name "default".

        lm: its reader, loaded (with its tokenizer) or by another name or path than its own, alone
        or by its name. dtype, device: of the reader where it is loaded here; as trained, and
        torch's accelerator where there is one, if None. ratio: tokens in per latent out; its own if
        None. Raises WireError for a folder that is no wire, altered weights or a reader of another
        architecture, and ZooError for no such wire or reader.
        """
        folder = folder_of(name)
        record = read_config(folder)
        with one_error(WireError, folder):
            config, origin = typed(WireConfig, record), typed(Origin, record)
            measured = typed(Measured, record.get("measured", {}), "measured")
            state = read_tensors(folder / WEIGHTS, origin.sha256)
            sizes = {"rank": (config.rank, "slots.down", 2)}
            check_sizes(state, {**sizes, "format_tokens": (config.format_tokens, "format", 0)})
        lm = lm_of(config.reader, lm, dtype or config.dtype, origin.folders, device)
        origin.check(lm, config.reader, folder)
        wire = cls(lm, config)
        wire.measured = measured
        with one_error(WireError, folder):
            fill(wire, state)
        return wire.eval() if ratio is None else wire.eval().at(ratio)

    def _weights(self) -> bytes:
        state = {k: v.detach().to("cpu", torch.bfloat16) for k, v in self.state_dict().items()}
        return save(state)

    def read(self, pieces: Sequence[Tensor], starts: Sequence[int]) -> Reading:
        """The LM's one pass over windows of ids, each after the head and from its own position."""
        head = self.head.repeat(len(pieces))
        placed = replace(head, next_position=torch.tensor(starts, device=self.lm.device))
        with torch.no_grad():
            prompt = Prompt.from_ids(self.lm, pieces, placed)
            return Reading(tuple(pieces), prompt, self.lm.states(prompt))

    def compress(
        self, reading: Reading, verbatim: Sequence[Bool[Tensor, " _"]] | None = None
    ) -> list[CompressedKV]:
        """The latents of a reading, one per window. verbatim: the tokens of each window that are
        kept as text; None for none of them."""
        return self.compressor(reading, self.ratio, verbatim)
