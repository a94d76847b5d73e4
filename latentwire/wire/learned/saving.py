"""The sizes and parts of a shared wire, checked, and the folders that hold one."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import get_args

import torch
from safetensors.torch import save
from torch import Tensor

from latentwire.artifact import check_counts, check_sizes, one_error, read_tensors, typed
from latentwire.files import write_whole
from latentwire.lm import Dtype
from latentwire.reading import shortened
from latentwire.texts import check_texts
from latentwire.wire.folder import WireError, read_record
from latentwire.wire.learned.encoders import ENCODERS
from latentwire.wire.learned.encoders.base import EncoderConfig
from latentwire.wire.learned.encoders.lm_states import LMStates
from latentwire.wire.learned.injectors import INJECTORS, Calibration
from latentwire.wire.learned.injectors.embeddings import Embeddings
from latentwire.wire.learned.pooling import POOLINGS

KIND, FORMAT_VERSION = "shared wire", 1
FILE = re.compile(r"(shared|reader-\d{1,9})-\d{1,9}\.safetensors")
"""Names of files of weights."""
PIECE = 16 * 2**20
"""Most bytes of one file of weights."""


@dataclass(frozen=True)
class SharedConfig:
    """The sizes and parts of a shared wire; saved beside its weights."""

    readers: tuple[str, ...]
    """Zoo names, Hugging Face ids or folders of the LMs that read it."""
    source: str
    """The LM whose states or embeddings are encoded, and whose tokens a training counts."""
    encoder: str = "lm_states"
    """lm_states, anchor, utf8 or pca."""
    injector: str = "deep_prefix"
    """embeddings, lora, deep_prefix or cross_attention."""
    sizes: EncoderConfig = field(default_factory=EncoderConfig)
    """Sizes of the encoder; its width is the trunk's too."""
    bits: int = 4
    """Bits of the code of one channel, 1 to 8."""
    trunk_layers: int = 2
    """Layers after the code that all readers share."""
    format_tokens: int = 16
    """Soft tokens between context and question that set the form of the answer."""
    calibration: Calibration = "regression"
    """The beginning of slots that are input embeddings; injectors/embeddings.py says what each
    is."""
    dtype: Dtype = "float32"
    """Number type of the frozen models; what is trained is float32."""

    def __post_init__(self) -> None:
        check_texts(self.readers, "readers")
        if not self.readers or len(set(self.readers)) < len(self.readers):
            raise WireError(
                f"readers are {shortened(self.readers)}; expected at least one, no name twice"
            )
        for name, known, given in (
            ("encoder", ENCODERS, self.encoder),
            ("injector", INJECTORS, self.injector),
            ("pooling", POOLINGS, self.sizes.pooling),
            ("calibration", get_args(Calibration), self.calibration),
        ):
            if given not in known:
                raise WireError(f"{name} is {given[:80]}; expected of {', '.join(known)}")
        if self.calibration != "regression" and not issubclass(
            INJECTORS[self.injector], Embeddings
        ):
            raise WireError(
                f"calibration is {self.calibration}, of input embeddings; {self.injector} makes "
                "none"
            )
        self._check_sizes()

    def _check_sizes(self) -> None:
        numbers = {**asdict(self.sizes), "trunk_layers": self.trunk_layers}
        numbers |= {"bits": self.bits, "format_tokens": self.format_tokens}
        del numbers["pooling"], numbers["sentence_encoder"]
        for name, value in numbers.items():
            if type(value) is not int or value < 1:
                raise WireError(f"{name} is {value!r}; expected a whole number >= 1")
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


@dataclass(frozen=True)
class Saved:
    """The fields of config.json of a shared wire."""

    sha256: dict[str, str]
    """The digest of each file of weights, by its name."""
    models: dict[str, tuple[str, ...]]
    """Architecture and fingerprint of each frozen model, by its name."""
    config: SharedConfig
    folders: dict[str, str] = field(default_factory=dict)
    """Folders of models by name, on the machine that saved it, that had no name elsewhere."""

    def __post_init__(self) -> None:
        for name in self.sha256:
            if not FILE.fullmatch(name):
                raise WireError(f"sha256 lists {name[:80]!r}; expected names that save gives files")


def read_folder(folder: Path) -> tuple[Saved, dict[str, Tensor]]:
    """The config of a shared wire's folder and all its tensors, of which none is of another size
    than the config says. Raises WireError for a folder that holds no such wire."""
    record = read_record(folder, KIND, FORMAT_VERSION)
    with one_error(WireError, f"{folder}/config.json"):
        saved = typed(Saved, record)
    with one_error(WireError, folder):
        state: dict[str, Tensor] = {}
        for file, expected in saved.sha256.items():
            kind, place, *_ = f"{file}-".split("-")
            begin = f"adapters.{place}." if kind == "reader" else ""
            state |= {begin + n: t for n, t in read_tensors(folder / file, expected).items()}
        _check_state(saved.config, state)
    return saved, state


def write_folder(
    folder: Path,
    config: SharedConfig,
    parts: Mapping[str, Mapping[str, Tensor]],
    models: Mapping[str, tuple[str, str]],
    **fields: dict[str, str],
) -> None:
    """config.json, and bf16 weights in files of at most PIECE bytes with their sha256. parts: what
    is shared and each reader's; models: architecture and fingerprint by name; fields: others of
    the config."""
    folder.mkdir(parents=True, exist_ok=True)
    sums: dict[str, str] = {}
    for part, state in parts.items():
        for i, piece in enumerate(_pieces(stored(state))):
            data = save(piece)
            sums[f"{part}-{i}.safetensors"] = hashlib.sha256(data).hexdigest()
            write_whole(folder / f"{part}-{i}.safetensors", data)
    record = {
        "kind": KIND,
        "format_version": FORMAT_VERSION,
        "sha256": sums,
        "models": models,
        "config": asdict(config),
        **fields,
    }
    write_whole(folder / "config.json", json.dumps(record, indent=1))


def stored(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights as files hold them."""
    return {k: v.detach().to("cpu", torch.bfloat16).contiguous() for k, v in state.items()}


def _check_state(config: SharedConfig, state: Mapping[str, Tensor]) -> None:
    """Raises ArtifactError where the config has other sizes than the weights, before anything of
    those sizes is made."""
    sizes, encoder = config.sizes, ENCODERS[config.encoder]
    layers = {"layers": (sizes.layers, "encoder.layers.layers.")} if encoder.learns else {}
    trunk = {"trunk_layers": (config.trunk_layers, "trunk.layers.")}
    check_counts(state, {"readers": (len(config.readers), "adapters."), **trunk, **layers})
    widths = {
        f"format_tokens of reader {i}": (config.format_tokens, f"adapters.{i}.format", 0)
        for i in range(len(config.readers))
    }
    widths["width"] = (sizes.width, "widen.weight", 0)
    widths["channels"] = (sizes.channels, "widen.weight", 1)
    if not encoder.learns or (issubclass(encoder, LMStates) and sizes.pooling == "strided"):
        widths["ratio"] = (sizes.ratio, "encoder.pool.maps", 0)
    check_sizes(state, widths)


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
