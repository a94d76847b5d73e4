"""The text wire: text travels in few bytes, and each reader makes its own latents of it.

    wire = TextWire.from_pretrained("shared")
    data = wire.send(["The lighthouse was finished in 1759."])[0].to_bytes()
    for reader in wire.readers:
        prefix = reader.receive([TextMessage.from_bytes(data)])      # of reader.lm

One message serves all readers, whatever their family. It saves bytes on the way and slots in each
reader's cache; it does not save the pass over the text in which a reader makes its latents, nor
that of the source, whose code the text travels in.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from latentwire.artifact import one_error, typed
from latentwire.files import write_whole
from latentwire.lm import (
    Dtype,
    FrozenLM,
    KVPrefix,
    LMSource,
    Models,
    saved_folders,
)
from latentwire.reading import check_name, shortened
from latentwire.texts import check_texts
from latentwire.wire.compressed_kv import CompressedKV
from latentwire.wire.config import Origin, WireConfig, read_config
from latentwire.wire.folder import WireError, folder_of, read_record
from latentwire.wire.message import MessageError
from latentwire.wire.text_code import TextCode
from latentwire.wire.text_message import HEADER_BYTES, TextMessage
from latentwire.wire.wire import Wire

KIND, FORMAT_VERSION = "text wire", 1
REMEMBERED = 4096
"""Messages whose texts, and texts whose messages, are kept."""
TOKENS = 4
"""Most tokens of the source per token of a reader; a text that has more cannot fit, and need not be
decoded to say so."""


@dataclass(frozen=True)
class Saved:
    """The fields of config.json of a text wire."""

    source: str
    """Zoo name, Hugging Face id or folder of the LM in whose code the text travels."""
    wires: tuple[str, ...]
    """Folders in this one with each reader's wire."""
    folders: dict[str, str] = field(default_factory=dict)
    """Folders of models by name, on the machine that saved it, that had no name elsewhere."""

    def __post_init__(self) -> None:
        if not self.wires or len(set(self.wires)) < len(self.wires):
            raise WireError(
                f"wires are {shortened(self.wires)}; expected at least one, no name twice"
            )
        for name in self.wires:
            check_name(name)


class TextWire:
    """The code of one LM, and a wire for each reader."""

    def __init__(self, source: FrozenLM, wires: Sequence[Wire]):
        """source: the LM whose code the text travels in, in float32."""
        names = [wire.reader for wire in wires]
        if not names or len(set(names)) < len(names):
            raise WireError(f"readers are {names}; expected at least one, none of them twice")
        for wire in wires:
            if wire.reader == source.name and wire.lm.fingerprint != source.fingerprint:
                raise WireError(f"source and a reader are two models of one name, {source.name}")
        self.code = TextCode(source)
        self.readers = [TextReader(self, wire) for wire in wires]
        self.message = lru_cache(maxsize=REMEMBERED)(self._message)
        self._read: dict[TextMessage, str] = {}

    def at(self, ratio: int) -> TextWire:
        """The same wire with other numbers of latents than its own ratio gives; messages are the
        same."""
        return self._read_by([reader.wire.at(ratio) for reader in self.readers])

    def keeping(self, rule: str | None) -> TextWire:
        """The same wire, whose readers keep spans of each text as text in their latents, as
        Wire.keeping says; messages are the same, and none says what its reader keeps."""
        return self._read_by([reader.wire.keeping(rule) for reader in self.readers])

    def _read_by(self, wires: Sequence[Wire]) -> TextWire:
        """The same messages, with what is remembered of them, for other wires."""
        other = TextWire(self.code.lm, wires)
        other.message, other._read = self.message, self._read
        return other

    def send(self, texts: Sequence[str]) -> list[TextMessage]:
        """Texts as messages, the same for every reader. Raises WireError for an empty text, or one
        that the source's tokenizer does not give back to the letter."""
        check_texts(texts, "texts")
        return [self.message(text) for text in texts]

    def texts(self, messages: Sequence[TextMessage]) -> list[str]:
        """The texts of messages, to the letter; the last REMEMBERED of them are decoded once,
        however many readers open them. Raises MessageError for one in another LM's code, and for
        one that comes out as another text than was sent."""
        source = self.code.lm
        known = {m: text for m in messages if (text := self._read.get(m)) is not None}
        new = [m for m in dict.fromkeys(messages) if m not in known]
        for message in new:
            if message.source != source.fingerprint:
                raise MessageError(
                    f"message in the code of an LM with weights {message.source}; this wire's "
                    f"source is {source.name} with weights {source.fingerprint}"
                )
        for old in list(self._read)[: max(0, len(self._read) - REMEMBERED)]:
            self._read.pop(old, None)  # another thread may have been here
        texts = self.code.decode([(m.tokens, m.code) for m in new])
        for text, message in zip(texts, new, strict=True):
            if zlib.crc32(text.encode()) != message.checksum:
                raise MessageError(
                    "the text did not come out as it was sent: the message was altered, or "
                    f"{source.name} computes otherwise here (expected float32 on both sides)"
                )
            known[message] = text
        self._read |= known
        return [known[message] for message in messages]

    def _message(self, text: str) -> TextMessage:
        tokens, code = self.code.encode(text)
        return TextMessage(self.code.lm.fingerprint, zlib.crc32(text.encode()), tokens, code)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json, and each reader's wire in a folder of its own."""
        folder = Path(folder)
        places = {f"reader-{i}": reader.wire for i, reader in enumerate(self.readers)}
        for place, wire in places.items():
            wire.save_pretrained(folder / place)
        source = self.code.lm
        record = {
            "kind": KIND,
            "format_version": FORMAT_VERSION,
            "source": source.name,
            "wires": list(places),
            **saved_folders({source.name: source.folder}),
        }
        write_whole(folder / "config.json", json.dumps(record, indent=1))

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        lms: Mapping[str, LMSource] | None = None,
        only: int | None = None,
        dtype: Dtype | None = None,
        device: str | None = None,
        ratio: int | None = None,
    ) -> TextWire:
        """Load a text wire as Wire.from_pretrained does, or the shipped one by the name "shared".

        lms: those of its models that are loaded already, by name. only: of its readers this one
        alone, by its place. dtype: of the readers that are loaded; the source is always in float32,
        or its code could not be read elsewhere. Any copy of the source will do, if both sides have
        the same. device, ratio: as Wire.from_pretrained has them. Raises WireError for a folder
        that holds none, and whatever Wire.from_pretrained raises.
        """
        folder = folder_of(name)
        record = read_record(folder, KIND, FORMAT_VERSION)
        with one_error(WireError, f"{folder}/config.json"):
            saved = typed(Saved, record)
        records = [read_config(folder / place) for place in saved.wires]
        with one_error(WireError, folder):
            configs = [typed(WireConfig, one) for one in records]
            folders = {k: v for one in records for k, v in typed(Origin, one).folders.items()}
        places = range(len(configs)) if only is None else [only]
        names = [saved.source, *(config.reader for config in configs)]
        models, wires = Models(names, lms, {**folders, **saved.folders}, device), []
        for i in places:
            lm = models.get(configs[i].reader, dtype or configs[i].dtype)
            wires.append(Wire.from_pretrained(folder / saved.wires[i], lm))
        coder = models.get(saved.source)
        if coder.dtype not in (torch.float32, torch.float64):
            again = coder.folder or coder.name
            coder = FrozenLM.from_pretrained(again, device=str(coder.device))
        wire = cls(coder, wires)
        return wire if ratio is None else wire.at(ratio)


@dataclass(frozen=True)
class TextReader:
    """One reader of a text wire, with what an evaluation asks of any wire."""

    blanks: ClassVar[Mapping[str, str]] = Wire.blanks
    message_type: ClassVar[type[TextMessage]] = TextMessage

    shared: TextWire
    wire: Wire

    @property
    def lm(self) -> FrozenLM:
        return self.wire.lm

    @property
    def config(self) -> WireConfig:
        return self.wire.config

    @property
    def reader(self) -> str:
        """Name of the LM."""
        return self.wire.reader

    @property
    def format(self) -> Tensor:
        """Soft tokens between context and question."""
        return self.wire.format

    @property
    def models(self) -> Mapping[str, FrozenLM]:
        """Maps what they do to the frozen models that take part."""
        return {"reader": self.lm, "source": self.shared.code.lm}

    @property
    def trained(self) -> Mapping[str, Tensor]:
        """Holds what was trained for this reader."""
        return self.wire.state_dict()

    @property
    def id(self) -> bytes:
        return self.wire.id

    @property
    def ratio(self) -> int:
        """Tokens in per latent out."""
        return self.wire.ratio

    @property
    def keep(self) -> str | None:
        """The rule of what the reader keeps of a text as text."""
        return self.wire.keep

    @property
    def bits(self) -> None:
        """A text has no codes of so many bits."""

    def check_bits(self, bits: int | None) -> None:
        """Raises MessageError for any: the text is sent to the letter."""
        if bits is not None:
            raise MessageError(f"this wire sends text to the letter; got codes of {bits} bits")

    def evictions(self, also: Sequence[str] = ()) -> dict[str, TextReader]:
        """Rows of an evaluation, as Wire.evictions has them."""
        return {n: replace(self, wire=wire) for n, wire in self.wire.evictions(also).items()}

    @property
    def source(self) -> str:
        """Fingerprint of the LM whose code the text travels in."""
        return self.shared.code.lm.fingerprint

    def latents(self, text: str) -> int:
        """Latents that the reader makes of a text."""
        return self.wire.latents(text)

    def cost(self, text: str, bits: int | None = None) -> tuple[int, int]:
        """Latents that the reader makes of a text, and bytes of its message."""
        self.check_bits(bits)
        return self.latents(text), HEADER_BYTES + len(self.shared.message(text).code)

    def send(self, texts: Sequence[str], bits: int | None = None) -> list[TextMessage]:
        """Texts as messages, the same for every reader."""
        self.check_bits(bits)
        return self.shared.send(texts)

    def open(self, messages: Sequence[TextMessage]) -> list[CompressedKV]:
        """The reader's latents of the texts that the messages carry. Raises MessageError for no
        messages, for one far beyond the reader's window, or as TextWire.texts does, WireError for a
        text that the reader cannot hold."""
        if not messages:
            raise MessageError("got no messages; expected at least one")
        most = self.lm.context_length * self.ratio * TOKENS
        if (tokens := max(m.tokens for m in messages)) > most:
            raise MessageError(f"message has a text of {tokens} tokens; {self.reader} holds {most}")
        with torch.no_grad():
            return self.wire.encode(self.shared.texts(messages))

    def prefix(self, latents: Sequence[CompressedKV]) -> KVPrefix:
        """Latents as a cache that the reader continues from."""
        return self.wire.prefix(latents)

    def receive(self, messages: Sequence[TextMessage]) -> KVPrefix:
        """Messages as a cache that the reader continues from. Raises what `open` raises."""
        return self.prefix(self.open(messages))
