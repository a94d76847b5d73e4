"""The shared wire: one message, written once, read by several frozen LMs of different families.

    wire = SharedWire.from_pretrained("runs/shared/wire")
    data = wire.send(["The lighthouse was finished in 1759."])[0].to_bytes()
    for reader in wire.readers:
        prefix = reader.receive([SharedMessage.from_bytes(data)])      # of reader.lm

An encoder turns a text into latents, a learned discrete code makes them bytes, layers that all
readers share (`trunk`) turn codes into states, and each reader's adapter turns states into its own
cache. A window may have latents beside the shared ones that are private to one reader.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import get_args

import torch
from jaxtyping import Float
from safetensors.torch import save
from torch import Tensor, nn

from latentwire.artifact import (
    check_counts,
    check_sizes,
    fill,
    one_error,
    read_tensors,
    typed,
)
from latentwire.files import write_whole
from latentwire.lm import Dtype, FrozenLM
from latentwire.lm.finite import check_finite
from latentwire.lm.sentences import SentenceEncoder
from latentwire.positions import sinusoids
from latentwire.reading import shortened
from latentwire.texts import check_texts
from latentwire.wire.folder import WireError, folder_of, read_record
from latentwire.wire.learned import fsq
from latentwire.wire.learned.adapter import Adapter
from latentwire.wire.learned.encoders import ENCODERS, WritingEncoder
from latentwire.wire.learned.encoders.base import EncoderConfig, in_blocks, transformer
from latentwire.wire.learned.encoders.lm_states import LMStates
from latentwire.wire.learned.injectors import INJECTORS, Calibration
from latentwire.wire.learned.pooling import POOLINGS
from latentwire.wire.learned.private import Layout, Private
from latentwire.wire.learned.reader import Reader
from latentwire.wire.learned.shared_message import SharedMessage, message_size
from latentwire.wire.windows import check_kept

KIND, FORMAT_VERSION = "shared wire", 1
FILE = re.compile(r"(shared|reader-\d{1,9})-\d{1,9}\.safetensors")
"""Names of files of weights."""
PIECE = 16 * 2**20
"""Most bytes of one file of weights."""


@dataclass(frozen=True)
class SharedConfig:
    """What a shared wire is; saved beside its weights."""

    readers: tuple[str, ...]
    """Zoo names, Hugging Face ids or folders of the LMs that read it."""
    source: str
    """The LM whose states or embeddings are encoded, and whose tokens a training counts."""
    encoder: str = "lm_states"
    """lm_states, lora_states, anchor, minilm, utf8 or pca."""
    ways_in: tuple[str, ...] = ("deep_prefix",)
    """Of embeddings, lora, refiner, deep_prefix, coprocessor and cross_attention, one after
    another."""
    sizes: EncoderConfig = field(default_factory=EncoderConfig)
    """Of the encoder; its width is the trunk's too."""
    bits: int = 4
    """Of the code of one channel, 1 to 8."""
    trunk_layers: int = 2
    """Layers after the code that all readers share."""
    format_tokens: int = 16
    """Soft tokens between context and question that set the form of the answer."""
    calibration: Calibration = "regression"
    """How slots begin that are input embeddings; injectors/embeddings.py says what each is."""
    private: int = 0
    """Latents of a window beside the shared ones, for each reader that the wire was trained with
    and read by it alone."""
    added: int = 0
    """Readers, the last ones, that came after the wire was trained: no latents are theirs alone."""
    dtype: Dtype = "float32"
    """Of the frozen models; what is trained is float32."""

    def __post_init__(self) -> None:
        if not self.readers or len(set(self.readers)) < len(self.readers):
            raise WireError(
                f"readers are {shortened(self.readers)}; expected at least one, no name twice"
            )
        for name, known, given in (
            ("encoder", ENCODERS, (self.encoder,)),
            ("ways_in", INJECTORS, self.ways_in or ("none",)),
            ("pooling", POOLINGS, (self.sizes.pooling,)),
            ("calibration", get_args(Calibration), (self.calibration,)),
        ):
            if not set(given) <= set(known):
                raise WireError(
                    f"{name} is {', '.join(given)[:80]}; expected of {', '.join(known)}"
                )
        numbers = {**asdict(self.sizes), "trunk_layers": self.trunk_layers}
        numbers |= {"bits": self.bits, "format_tokens": self.format_tokens}
        del numbers["pooling"], numbers["sentence_encoder"]
        for name, value in numbers.items():
            if type(value) is not int or value < 1:
                raise WireError(f"{name} is {value!r}; expected a whole number >= 1")
        if type(self.private) is not int or self.private < 0:
            raise WireError(f"private is {self.private!r}; expected a whole number >= 0")
        if type(self.added) is not int or not 0 <= self.added < len(self.readers):
            raise WireError(
                f"added is {self.added!r}; expected 0, or how many of the {len(self.readers)} "
                "readers came later"
            )
        if self.private and not issubclass(ENCODERS[self.encoder], WritingEncoder):
            raise WireError(
                f"private is {self.private}; {self.encoder} has no states to write private latents "
                "from: leave it at 0, or take another encoder"
            )
        listed, last = ", ".join(self.ways_in), len(self.ways_in) - 1
        for i, way in enumerate(self.ways_in):
            place = INJECTORS[way].place
            if (place == "first" and i > 0) or (place == "last" and i < last):
                raise WireError(f"ways_in is {listed}; {way} can only be the {place}")
            if place == "later" and i == 0:
                raise WireError(f"ways_in is {listed}; {way} must come after another")
        if self.calibration != "regression" and INJECTORS[self.ways_in[0]].place != "first":
            raise WireError(
                f"calibration is {self.calibration}, of input embeddings; ways_in is {listed}, "
                "which makes none"
            )
        for name, value, most in (("bits", self.bits, 8), ("channels", self.sizes.channels, 255)):
            if value > most:
                raise WireError(f"{name} is {value}; expected at most {most}")
        pooling, ratio = self.sizes.pooling, self.sizes.ratio
        if self.sizes.window % ratio:
            raise WireError(f"window is {self.sizes.window}; expected a multiple of ratio, {ratio}")
        if self.sizes.width % 2:
            raise WireError(f"width is {self.sizes.width}; expected an even number")
        if pooling != "strided" and not issubclass(ENCODERS[self.encoder], LMStates):
            raise WireError(
                f"pooling is {pooling}; {self.encoder} has one of its own: leave it at strided"
            )
        if pooling == "hierarchical" and ratio & (ratio - 1):
            raise WireError(f"ratio is {ratio}; hierarchical pooling expects a power of two")


class SharedWire(nn.Module):
    """An encoder, a code, and an adapter for each reader."""

    def __init__(self, config: SharedConfig, lms: Mapping[str, FrozenLM]):
        """lms: the readers and the source, by name."""
        super().__init__()
        self.config, width = config, config.sizes.width
        self.encoder = ENCODERS[config.encoder](lms[config.source], config.sizes)
        self.widen = nn.Linear(config.sizes.channels, width)
        self.trunk = transformer(width, config.trunk_layers)
        self.private = nn.ModuleList(
            Private(width, config.sizes.channels, config.private)
            for _ in range(self.layout.owners if config.private else 0)
        )
        self.adapters = nn.ModuleList(
            self._adapter(lms[name], i) for i, name in enumerate(config.readers)
        )
        for part in (self.encoder, self.widen, self.trunk, self.private):
            part.to(lms[config.source].device)  # adapters are where their readers are
        self._known: tuple[tuple[int, ...], bytes] = ((), b"")

    @property
    def block(self) -> int:
        """Latents of a whole window that all readers share."""
        return self.encoder.per_window // self.encoder.per_latent

    @property
    def layout(self) -> Layout:
        """Which latents of a message are whose."""
        owners = len(self.config.readers) - self.config.added
        return Layout(self.block, self.config.private, owners)

    @property
    def readers(self) -> list[Reader]:
        """Each reader with what it needs to send and to receive."""
        both = zip(self.config.readers, self.adapters, strict=True)
        return [Reader(self, name, adapter, i) for i, (name, adapter) in enumerate(both)]  # type: ignore

    def reader(self, name: str) -> Reader:
        """One of them. Raises WireError for a name that the wire has no adapter for."""
        for reader in self.readers:
            if reader.reader == name:
                return reader
        raise WireError(
            f"{name} cannot read this wire, which has adapters for "
            f"{', '.join(self.config.readers)}: train one with latentwire add-reader"
        )

    def fit(self, texts: Sequence[str]) -> None:
        """What is measured on training texts before any step, for encoder and adapters."""
        check_texts(texts, "texts")
        self.encoder.fit(texts)
        for adapter in self.adapters:
            self.calibrate(adapter, texts)

    @torch.no_grad()
    def calibrate(self, adapter: nn.Module, texts: Sequence[str]) -> None:
        """What is measured on training texts for one adapter."""
        check_texts(texts, "texts")
        assert isinstance(adapter, Adapter)
        device = adapter.lm.device
        values = [self.layout.shared(row).to(device) for row in self.encode(texts)]
        units = [len(self.encoder.units(text)) / self.encoder.per_latent for text in texts]
        for way in adapter.ways:
            way.calibrate(adapter.lm, texts, values, units)  # type: ignore

    @property
    def id(self) -> bytes:
        """First 8 bytes of the sha256 of all weights that are no adapter's: which wire made a
        message. A reader that is added later leaves it as it is."""
        tensors = self.state_dict(keep_vars=True).values()
        now = tuple(x for t in tensors for x in (t.data_ptr(), t._version))
        known = self._known
        if known[0] != now:
            check_finite(self.state_dict(), WireError)
            self._known = known = now, hashlib.sha256(save(_stored(self._shared()))).digest()[:8]
        return known[1]

    def cost(self, text: str) -> tuple[int, int]:
        """Latents and bytes of the message of a text."""
        latents = self.layout.count(self.encoder.lengths(text))
        return latents, message_size(latents, self.config.sizes.channels, self.config.bits)

    def forward(self, texts: Sequence[str]) -> list[Float[Tensor, "_ c"]]:
        """What `encode` gives, of texts that are not checked."""
        check_texts(texts, "texts")
        return [fsq.bounded(z, self.config.bits) for z in self.encoder(texts, self.private)]

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

    def states(
        self, values: Sequence[Float[Tensor, "_ c"]], layout: Layout
    ) -> list[Float[Tensor, "_ w"]]:
        """Values of codes, laid out so, as the states that adapters read."""
        width, device = self.config.sizes.width, self.widen.weight.device
        rows = []
        for row in values:
            places = layout.places(len(row)).to(device)
            rows.append(self.widen(row.to(device)) + sinusoids(places, width))
        return in_blocks(self.trunk, rows, layout.size)

    def save(self, folder: Path) -> None:
        """config.json, and bf16 weights in files of at most PIECE bytes with their sha256."""
        folder.mkdir(parents=True, exist_ok=True)
        parts = {"shared": self._shared()}
        parts |= {f"reader-{i}": a.state_dict() for i, a in enumerate(self.adapters)}
        sums: dict[str, str] = {}
        for part, state in parts.items():
            for i, piece in enumerate(_pieces(_stored(state))):
                data = save(piece)
                sums[f"{part}-{i}.safetensors"] = hashlib.sha256(data).hexdigest()
                write_whole(folder / f"{part}-{i}.safetensors", data)
        models: dict[str, FrozenLM | SentenceEncoder] = {self.config.source: self.encoder.lm}
        models |= {**{r.reader: r.lm for r in self.readers}, **self.encoder.others}
        record = {
            "kind": KIND,
            "format_version": FORMAT_VERSION,
            "sha256": sums,
            "models": {n: [m.architecture, m.fingerprint] for n, m in models.items()},
            "config": asdict(self.config),
        }
        write_whole(folder / "config.json", json.dumps(record, indent=1))

    @classmethod
    def from_pretrained(
        cls,
        name: Path | str,
        lms: Mapping[str, FrozenLM] | None = None,
        dtype: Dtype | None = None,
    ) -> SharedWire:
        """Load a shared wire from a folder or the Hugging Face hub (owner/name); lms: those of its
        models that are loaded already, by name. dtype: of the others; as it was trained if None.

        Raises WireError for a folder that holds none, weights that were truncated or altered, or a
        model of another architecture or with other weights.
        """
        folder = folder_of(name)
        record = read_record(folder, KIND, FORMAT_VERSION)
        with one_error(WireError, f"{folder}/config.json"):
            saved = typed(Saved, record)
        config = saved.config
        with one_error(WireError, folder):
            state = _read_weights(folder, saved)
            _check_state(config, state)
        found = dict(lms or {})
        for model in dict.fromkeys((config.source, *config.readers)):
            lm = found.get(model) or FrozenLM.from_pretrained(model, dtype or config.dtype)
            found[model] = lm
            _check_copy(folder, model, found[model], saved)
        wire = cls(config, found)
        for model, other in wire.encoder.others.items():
            _check_copy(folder, model, other, saved)
        with one_error(WireError, folder):
            fill(wire, state)
        return wire.eval()

    def with_reader(self, name: str, lm: FrozenLM) -> SharedWire:
        """The same wire with a new adapter, untrained, for one more reader."""
        if name in self.config.readers:
            raise WireError(f"{name} reads this wire already")
        lms = {reader.reader: reader.lm for reader in self.readers}
        lms |= {self.config.source: self.encoder.lm, name: lm}
        readers, added = (*self.config.readers, name), self.config.added + 1
        config = replace(self.config, readers=readers, added=added)
        wire = SharedWire(config, lms)
        wire.load_state_dict(self.state_dict(), strict=False)
        return wire

    def _adapter(self, lm: FrozenLM, number: int) -> Adapter:
        config, sizes, block = self.config, self.config.sizes, self.layout.of(number).size
        ways, tokens, begin = config.ways_in, config.format_tokens, config.calibration
        return Adapter(lm, sizes.channels, sizes.width, block, ways, tokens, begin)

    def _shared(self) -> dict[str, Tensor]:
        return {k: v for k, v in self.state_dict().items() if not k.startswith("adapters.")}


@dataclass(frozen=True)
class Saved:
    """What config.json of a shared wire holds."""

    sha256: dict[str, str]
    """Of each file of weights, by its name."""
    models: dict[str, tuple[str, ...]]
    """Architecture and fingerprint of each frozen model, by its name."""
    config: SharedConfig

    def __post_init__(self) -> None:
        for name in self.sha256:
            if not FILE.fullmatch(name):
                raise WireError(f"sha256 lists {name[:80]!r}; expected names that save gives files")


def _check_copy(folder: Path, name: str, model: FrozenLM | SentenceEncoder, saved: Saved) -> None:
    """Raises WireError for a frozen model that is not the one that the wire was trained for."""
    known, here = saved.models.get(name, ()), (model.architecture, model.fingerprint)
    if here != known:
        raise WireError(
            f"{folder} was trained for {name} {' '.join(known)}; this copy is {' '.join(here)}"
        )


def _read_weights(folder: Path, saved: Saved) -> dict[str, Tensor]:
    """All tensors by the names that the whole wire gives them."""
    state: dict[str, Tensor] = {}
    for file, expected in saved.sha256.items():
        kind, place, *_ = f"{file}-".split("-")
        begin = f"adapters.{place}." if kind == "reader" else ""
        tensors = read_tensors(folder / file, expected)
        state |= {begin + name: tensor for name, tensor in tensors.items()}
    return state


def _check_state(config: SharedConfig, state: Mapping[str, Tensor]) -> None:
    """Raises ArtifactError where the config has other sizes than the weights, before anything of
    those sizes is made."""
    sizes, encoder = config.sizes, ENCODERS[config.encoder]
    owners = len(config.readers) - config.added if config.private else 0
    formats = {
        f"format_tokens of reader {i}": (config.format_tokens, f"adapters.{i}.format", 0)
        for i in range(len(config.readers))
    }
    ways = {
        f"ways_in of reader {i}": (len(config.ways_in), f"adapters.{i}.ways.")
        for i in range(len(config.readers))
    }
    check_counts(state, {"readers": (len(config.readers), "adapters."), **ways})
    layers = {"layers": (sizes.layers, "encoder.layers.layers.")} if encoder.learns else {}
    trunk = {"trunk_layers": (config.trunk_layers, "trunk.layers.")}
    check_counts(state, {**trunk, **layers, "owners of private latents": (owners, "private.")})
    widths = {"width": (sizes.width, "widen.weight", 0)}
    widths["channels"] = (sizes.channels, "widen.weight", 1)
    if owners:
        widths["private"] = (config.private, "private.0.query", 0)
    if not encoder.learns or (issubclass(encoder, LMStates) and sizes.pooling == "strided"):
        widths["ratio"] = (sizes.ratio, "encoder.pool.maps", 0)
    check_sizes(state, {**widths, **formats})


def _stored(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights as files hold them."""
    return {k: v.detach().to("cpu", torch.bfloat16).contiguous() for k, v in state.items()}


def _pieces(state: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """The tensors in order, in as few dicts of at most PIECE bytes as that allows."""
    pieces: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in state.items():
        size += tensor.nbytes + 256  # a name and its place in the file's header
        if pieces[-1] and size > PIECE:
            pieces.append({})
            size = tensor.nbytes + 256
        pieces[-1][name] = tensor
    return pieces
