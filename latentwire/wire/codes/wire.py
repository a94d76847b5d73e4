"""A wire of latent codes: a source that reads texts, and readers that answer from its reading.

    wire = CodeWire.from_pretrained("interlingua")
    (message,) = wire.send(["The lighthouse was finished in 1759 by John Smeaton."])
    for reader in wire.readers:
        print(reader.reader, ask(reader, message, ["Who finished the lighthouse?"]))

No reader runs over the text. The source is loaded when something is sent, so that who only reads
needs the reader and its decoder alone.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from latentwire.artifact import (
    ArtifactError,
    check_sizes,
    fill,
    one_error,
    read_tensors,
    typed,
)
from latentwire.files import write_whole
from latentwire.lm import Dtype, FrozenLM, LMSource, Models, saved_folders
from latentwire.lm.zoo import name_of
from latentwire.texts import check_texts
from latentwire.wire.codes.code import Code, CodeConfig, read
from latentwire.wire.codes.message import TEXT_BYTES, CodeMessage
from latentwire.wire.codes.reader import CodeReader, weights
from latentwire.wire.compressed_kv import head_of
from latentwire.wire.config import Measured
from latentwire.wire.folder import WireError, folder_of, read_record
from latentwire.wire.windows import check_kept

KIND, FORMAT_VERSION = "code wire", 1


@dataclass(frozen=True)
class SavedReader:
    """The fields of config.json for one reader."""

    name: str
    dtype: Dtype
    architecture: str
    weights: str
    """Fingerprint of the LM's weights."""
    hidden: int
    soft_prompt: int
    """Tokens of it."""
    sha256: str
    measured: Measured = field(default_factory=Measured)


@dataclass(frozen=True)
class Saved:
    """The fields of config.json of a code wire."""

    code: CodeConfig
    source_weights: str
    """Fingerprint of the source's weights, 16 hex digits."""
    sha256: str
    readers: tuple[SavedReader, ...]
    folders: dict[str, str] = field(default_factory=dict)
    """Folders of models by name, on the machine that saved it, that had no name elsewhere."""

    def __post_init__(self) -> None:
        if len(self.source_weights) != 16 or set(self.source_weights) - set("0123456789abcdef"):
            raise WireError(f"source_weights is {self.source_weights!r}; expected 16 hex digits")


class Source:
    """The LM that writes a code, loaded when it is first asked for."""

    def __init__(self, name: str, fingerprint: str, models: Models):
        self.name, self.fingerprint, self._models = name, fingerprint, models

    @classmethod
    def of(cls, lm: FrozenLM) -> Source:
        """One that is loaded."""
        return cls(lm.name, lm.fingerprint, Models([lm.name], {lm.name: lm}))

    @property
    def lm(self) -> FrozenLM:
        """The LM. Raises WireError where its weights are not those of the fingerprint."""
        lm = self._models.get(self.name)
        check_copy(self.fingerprint, lm)
        return lm

    @property
    def folder(self) -> Path | None:
        """The folder of this machine that it is in, where it has no name elsewhere."""
        return self._models.folder(self.name)


class CodeWire:
    """The code of one source, and the readers that have a decoder for it."""

    def __init__(self, code: Code, source: Source, readers: Sequence[CodeReader]):
        names = [reader.reader for reader in readers]
        if len(set(names)) < len(names):
            raise WireError(f"readers are {names}; expected none of them twice")
        for reader in readers:
            if reader.reader == source.name and reader.lm.fingerprint != source.fingerprint:
                raise WireError(f"source and a reader are two models of one name, {source.name}")
        self.code, self._source = code, source
        self.readers = list(readers)
        for reader in readers:
            reader._wire = self

    @property
    def source(self) -> FrozenLM:
        """The LM that reads texts. Raises WireError where it is another copy than the code's."""
        return self._source.lm

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the source's weights."""
        return self._source.fingerprint

    @cached_property
    def id(self) -> bytes:
        """First 8 bytes of the sha256 of the code's weights and its source's fingerprint."""
        return hashlib.sha256(bytes.fromhex(self.fingerprint) + weights(self.code)).digest()[:8]

    def reader(self, name: str) -> CodeReader:
        """The reader of a name or folder. Raises WireError where no decoder was trained for it."""
        for reader in self.readers:
            if reader.reader in (name, name_of(name)):
                return reader
        have = ", ".join(reader.reader for reader in self.readers)
        raise WireError(
            f"no decoder for {name}; there are decoders for: {have}. `latentwire add-reader` "
            "trains one"
        )

    def at(self, ratio: int) -> CodeWire:
        """The same wire with readers that keep another share of the slots."""
        return CodeWire(self.code, self._source, [reader.at(ratio) for reader in self.readers])

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json, the code's weights, and each reader's; the readers' digests are in
        it."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)

        def put(name: str, module: nn.Module) -> str:
            data = weights(module)
            write_whole(folder / f"{name}.safetensors", data)
            return hashlib.sha256(data).hexdigest()

        readers = tuple(
            SavedReader(
                reader.reader,
                reader.dtype,
                reader.lm.architecture,
                reader.lm.fingerprint,
                reader.decoder.hidden,
                len(reader.format),
                put(f"reader-{i}", reader),
                reader.measured,
            )
            for i, reader in enumerate(self.readers)
        )
        folders = {reader.reader: reader.lm.folder for reader in self.readers}
        folders = saved_folders({self._source.name: self._source.folder, **folders})
        code = self.code.config, self.fingerprint, put("code", self.code)
        saved = Saved(*code, readers, **folders)
        record = {"kind": KIND, "format_version": FORMAT_VERSION, **asdict(saved)}
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
    ) -> CodeWire:
        """Load a code wire as Wire.from_pretrained does, or the shipped one by the name
        "interlingua".

        lms: those of its models that are loaded already, by name. only: of its readers this one
        alone, by its place. dtype: of the models that are loaded; as each was trained if None.
        device, ratio: as Wire.from_pretrained has them. Raises WireError for a folder that holds
        none, for weights that were truncated or altered, and for a reader of another architecture
        than it was trained for.
        """
        folder = folder_of(name)
        record = read_record(folder, KIND, FORMAT_VERSION)
        with one_error(WireError, f"{folder}/config.json"):
            saved = typed(Saved, record)
        places = range(len(saved.readers)) if only is None else [only]
        names = [saved.code.source, *(reader.name for reader in saved.readers)]
        models = Models(names, lms, saved.folders, device)
        readers = [_reader(folder, saved, i, models, dtype) for i in places]
        with one_error(WireError, folder):
            state = read_tensors(folder / "code.safetensors", saved.sha256)
            check_sizes(state, {"channels": (saved.code.channels, "weight", 1)})
            width, rest = divmod(len(state["weight"]), len(saved.code.layers))
            if rest:
                raise ArtifactError(f"layers are {saved.code.layers}, which the weights do not fit")
            code = Code(saved.code, width)
            fill(code, state)
        source = Source(saved.code.source, saved.source_weights, models)
        if source.name in models:
            check_copy(saved.source_weights, source.lm)
        wire = cls(code.eval(), source, readers)
        return wire if ratio is None else wire.at(ratio)

    def tokenize(self, text: str) -> Tensor:
        """Token ids of a text as the source reads it."""
        return self.source.tokenize(text)

    def features(self, text: str) -> Float[Tensor, "n f"]:
        """The features that the code is made of: states of the source's pass over a text."""
        head = head_of(self.source)
        return read(self.source, head, self.code.config, self.tokenize(text))

    @torch.no_grad()
    def send(self, texts: Sequence[str], with_text: bool = False) -> list[CodeMessage]:
        """Texts as messages, the same for every reader. with_text: the text travels beside its
        codes. Raises WireError for an empty text, one that the source's tokenizer loses a part of,
        or one beyond the source's context."""
        check_texts(texts, "texts")
        messages = []
        room = self.source.context_length - len(self.source.frame.prefix)
        for row, text in enumerate(texts):
            ids = self.tokenize(text)
            if not 1 <= len(ids) <= room:
                raise WireError(
                    f"context {row} has {len(ids)} tokens; {self.source.name} reads 1 to {room}"
                )
            if with_text and len(text.encode()) > TEXT_BYTES:
                raise WireError(f"context {row} is too long to travel as text: send it without")
            check_kept(self.source, row, text, ids)
            levels = self.code.nearest(self.code(self.features(text))).cpu()
            bits = self.code.config.bits
            messages.append(CodeMessage(self.id, levels, bits, text if with_text else None))
        return messages


def check_copy(fingerprint: str, lm: FrozenLM) -> None:
    """Raises WireError where an LM's weights are not those of a fingerprint."""
    if lm.fingerprint != fingerprint:
        raise WireError(
            f"the code is of a copy of {lm.name} with weights {fingerprint}; this one has "
            f"{lm.fingerprint}: use that copy, or train a code for this one"
        )


def _reader(
    folder: Path, saved: Saved, place: int, models: Models, dtype: Dtype | None
) -> CodeReader:
    """One reader of a saved wire; its LM is loaded where it is not in `lms`, and then is."""
    of = saved.readers[place]
    with one_error(WireError, folder):
        state = read_tensors(folder / f"reader-{place}.safetensors", of.sha256)
        sizes = {
            "hidden": (of.hidden, "decoder.down", 1),
            "channels": (saved.code.channels, "decoder.weight", 0),
            "soft_prompt": (of.soft_prompt, "format", 0),
        }
        check_sizes(state, sizes)
    lm = models.get(of.name, dtype or of.dtype)
    if lm.architecture != of.architecture:
        raise WireError(
            f"{folder} has a decoder for {of.name} {of.architecture}; got {lm.name} "
            f"{lm.architecture}"
        )
    if lm.fingerprint != of.weights:
        warnings.warn(
            f"the decoder for {of.name} was trained on another copy of it (its weights differ); "
            "expect somewhat lower scores",
            stacklevel=3,
        )
    reader = CodeReader(lm, saved.code.channels, of.hidden, of.soft_prompt)
    reader.measured = of.measured
    with one_error(WireError, folder):
        fill(reader, state)
    return reader.eval()
