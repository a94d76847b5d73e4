"""The shared wire: one message, written once, read by several frozen LMs of different families.

    wire = SharedWire.from_pretrained("runs/shared/wire")
    data = wire.send(["The lighthouse was finished in 1759."])[0].to_bytes()
    for reader in wire.readers:
        prefix = reader.receive([SharedMessage.from_bytes(data)])      # of reader.lm

An encoder turns a text into latents, a learned discrete code makes them bytes, layers that all
readers share (`trunk`) turn codes into states, and each reader's adapter turns states into its own
cache.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import save
from torch import Tensor, nn

from latentwire.artifact import fill, one_error
from latentwire.lm import Dtype, FrozenLM, LMSource, Models, called, saved_folders
from latentwire.lm.finite import check_finite
from latentwire.lm.sentences import SentenceEncoder
from latentwire.lm.zoo import local_folder, name_of
from latentwire.texts import check_texts
from latentwire.wire.folder import WireError, folder_of
from latentwire.wire.learned import fsq
from latentwire.wire.learned.adapter import Adapter
from latentwire.wire.learned.encoders import ENCODERS
from latentwire.wire.learned.encoders.base import in_blocks, transformer
from latentwire.wire.learned.pooling import sinusoids
from latentwire.wire.learned.reader import Reader
from latentwire.wire.learned.saving import Saved, SharedConfig, read_folder, stored, write_folder
from latentwire.wire.learned.shared_message import SharedMessage, message_size
from latentwire.wire.windows import check_kept


class SharedWire(nn.Module):
    """An encoder, a code, and an adapter for each reader."""

    def __init__(self, config: SharedConfig, lms: Mapping[str, FrozenLM]):
        """lms: the readers and the source, by name."""
        super().__init__()
        names = {name: called(lms[name], name) for name in (config.source, *config.readers)}
        lms, width = {names[name]: lms[name] for name in names}, config.sizes.width
        readers = tuple(names[name] for name in config.readers)
        self.config = config = replace(config, readers=readers, source=names[config.source])
        self.encoder = ENCODERS[config.encoder](lms[config.source], config.sizes)
        self.widen = nn.Linear(config.sizes.channels, width)
        self.trunk = transformer(width, config.trunk_layers)
        self.adapters = nn.ModuleList(self._adapter(lms[name]) for name in config.readers)
        for part in (self.encoder, self.widen, self.trunk):
            part.to(lms[config.source].device)  # adapters are where their readers are
        self._known: tuple[tuple[int, ...], bytes] = ((), b"")

    @property
    def block(self) -> int:
        """Latents of a whole window."""
        return self.encoder.per_window // self.encoder.per_latent

    @property
    def readers(self) -> list[Reader]:
        """Each reader with what it needs to send and to receive."""
        both = zip(self.config.readers, self.adapters, strict=True)
        return [Reader(self, name, adapter, i) for i, (name, adapter) in enumerate(both)]  # type: ignore

    def reader(self, name: str) -> Reader:
        """One of them. Raises WireError for a name that the wire has no adapter for."""
        for reader in self.readers:
            if reader.reader in (name, name_of(name)):
                return reader
        raise WireError(
            f"{name} cannot read this wire, which has adapters for "
            f"{', '.join(self.config.readers)}: train one with latentwire add-reader"
        )

    def fit(self, texts: Sequence[str]) -> None:
        """Measure encoder and adapters on training texts, before any step."""
        check_texts(texts, "texts")
        self.encoder.fit(texts)
        for adapter in self.adapters:
            self.calibrate(adapter, texts)

    @torch.no_grad()
    def calibrate(self, adapter: nn.Module, texts: Sequence[str]) -> None:
        """Measure one adapter on training texts."""
        check_texts(texts, "texts")
        assert isinstance(adapter, Adapter)
        device = adapter.lm.device
        values = [row.to(device) for row in self.encode(texts)]
        units = [len(self.encoder.units(text)) / self.encoder.per_latent for text in texts]
        adapter.injector.calibrate(adapter.lm, texts, values, units)

    @property
    def id(self) -> bytes:
        """First 8 bytes of the sha256 of all weights that are no adapter's: which wire made a
        message. A reader that is added later leaves it as it is."""
        tensors = self.state_dict(keep_vars=True).values()
        now = tuple(x for t in tensors for x in (t.data_ptr(), t._version))
        known = self._known
        if known[0] != now:
            check_finite(self.state_dict(), WireError)
            self._known = known = now, hashlib.sha256(save(stored(self._shared()))).digest()[:8]
        return known[1]

    def cost(self, text: str) -> tuple[int, int]:
        """Latents and bytes of the message of a text."""
        latents = sum(self.encoder.lengths(text))
        return latents, message_size(latents, self.config.sizes.channels, self.config.bits)

    def forward(self, texts: Sequence[str]) -> list[Float[Tensor, "_ c"]]:
        """As `encode`, of texts that are not checked."""
        check_texts(texts, "texts")
        return [fsq.bounded(z, self.config.bits) for z in self.encoder(texts)]

    def encode(self, texts: Sequence[str]) -> list[Float[Tensor, "_ c"]]:
        """Texts as the values of their codes, in [-1, 1], with gradients. Raises WireError for an
        empty text, or one that an LM's tokenizer loses a part of, where its tokens are encoded."""
        self._check(texts)
        return self(texts)

    @torch.no_grad()
    def send(self, texts: Sequence[str]) -> list[SharedMessage]:
        """Texts as messages. Raises what `encode` raises."""
        self._check(texts)
        wire_id, bits = self.id, self.config.bits
        made = []
        for text in texts:
            codes = fsq.nearest(self.encode([text])[0], bits)
            made.append(SharedMessage(wire_id, codes, bits, self.encoder.span(text)))
        return made

    def _check(self, texts: Sequence[str]) -> None:
        check_texts(texts, "texts")
        for row, text in enumerate(texts):
            units = self.encoder.units(text)
            if len(units) == 0:
                raise WireError(f"context {row} is empty; expected at least one token")
            if self.encoder.lm_units:
                check_kept(self.encoder.lm, row, text, units)

    def states(self, values: Sequence[Float[Tensor, "_ c"]]) -> list[Float[Tensor, "_ w"]]:
        """Values of codes as the states that adapters read."""
        width, device = self.config.sizes.width, self.widen.weight.device
        rows = []
        for row in values:
            places = torch.arange(len(row), device=device) % self.block
            rows.append(self.widen(row.to(device)) + sinusoids(places, width))
        return in_blocks(self.trunk, rows, self.block)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json, and bf16 weights in files with their sha256."""
        parts = {"shared": self._shared()}
        parts |= {f"reader-{i}": a.state_dict() for i, a in enumerate(self.adapters)}
        models: dict[str, FrozenLM | SentenceEncoder] = {self.config.source: self.encoder.lm}
        models |= {r.reader: r.lm for r in self.readers}
        models |= {name_of(name): other for name, other in self.encoder.others.items()}
        copies = {name: (model.architecture, model.fingerprint) for name, model in models.items()}
        folders = {self.config.source: self.encoder.lm.folder}
        folders |= {reader.reader: reader.lm.folder for reader in self.readers}
        sentences = self.config.sizes.sentence_encoder
        folders |= {name_of(sentences): local_folder(sentences)}
        config = _reading(self.config, name_of(sentences))
        write_folder(Path(folder), config, parts, copies, **saved_folders(folders))

    @classmethod
    def from_pretrained(
        cls,
        name: Path | str,
        lms: Mapping[str, LMSource] | None = None,
        dtype: Dtype | None = None,
        device: str | None = None,
    ) -> SharedWire:
        """Load a shared wire from a folder or the Hugging Face hub (owner/name); lms: those of its
        models that are loaded already, by name. dtype, device: of the others, as
        Wire.from_pretrained has them.

        Raises WireError for a folder that holds none, weights that were truncated or altered, or a
        model of another architecture or with other weights.
        """
        folder = folder_of(name)
        saved, state = read_folder(folder)
        config = saved.config
        names = dict.fromkeys((config.source, *config.readers))
        models = Models(names, lms, saved.folders, device)
        found = {name: models.get(name, dtype or config.dtype) for name in names}
        for model, lm in found.items():
            _check_copy(folder, model, lm, saved)
        sentences = config.sizes.sentence_encoder
        wire = cls(_reading(config, saved.folders.get(sentences, sentences)), found)
        for other in wire.encoder.others.values():
            _check_copy(folder, sentences, other, saved)
        with one_error(WireError, folder):
            fill(wire, state)
        return wire.eval()

    def with_reader(self, name: str, lm: FrozenLM) -> SharedWire:
        """The same wire with a new adapter, untrained, for one more reader."""
        if name_of(name) in self.config.readers:
            raise WireError(f"{name} reads this wire already")
        lms = {reader.reader: reader.lm for reader in self.readers}
        lms |= {self.config.source: self.encoder.lm, name: lm}
        wire = SharedWire(replace(self.config, readers=(*self.config.readers, name)), lms)
        wire.load_state_dict(self.state_dict(), strict=False)
        return wire

    def _adapter(self, lm: FrozenLM) -> Adapter:
        config, sizes = self.config, self.config.sizes
        parts = config.injector, config.format_tokens, config.calibration
        return Adapter(lm, sizes.channels, sizes.width, self.block, *parts)

    def _shared(self) -> dict[str, Tensor]:
        return {k: v for k, v in self.state_dict().items() if not k.startswith("adapters.")}


def _reading(config: SharedConfig, sentence_encoder: str) -> SharedConfig:
    """The same sizes with another name or folder of the sentence encoder."""
    return replace(config, sizes=replace(config.sizes, sentence_encoder=sentence_encoder))


def _check_copy(folder: Path, name: str, model: FrozenLM | SentenceEncoder, saved: Saved) -> None:
    """Raises WireError for a frozen model that is not the one that the wire was trained for."""
    known, here = saved.models.get(name, ()), (model.architecture, model.fingerprint)
    if here != known:
        raise WireError(
            f"{folder} was trained for {name} {' '.join(known)}; this copy is {' '.join(here)}"
        )
