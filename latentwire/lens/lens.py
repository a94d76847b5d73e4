"""The lens: an activation in words, and back.

lens = Lens.from_pretrained("runs/lens-smollm2/lens")
activations = at(lens.lm, lens.config.layer, [(text, [12])])
lens.explain(activations.vectors, samples=4)     # the explanations, best first
lens.reconstruct(["a river in France"])          # words as an activation
"""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.resources import files
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import save
from torch import Tensor, nn

from latentwire.artifact import (
    check_sizes,
    one_error,
    read_tensors,
    typed,
)
from latentwire.files import write_whole
from latentwire.lens.activations import Statistics
from latentwire.lens.checks import LensError, check_layer, checked
from latentwire.lens.decoder import Decoder, DecoderConfig, template_ids
from latentwire.lens.encoder import Encoder, EncoderConfig
from latentwire.lens.objectives import scaled_mse
from latentwire.lm import (
    Dtype,
    FrozenLM,
    Greedy,
    LMSource,
    Sampled,
    seed_of,
    seeded_noise,
)
from latentwire.lm.finite import check_finite
from latentwire.lm.loaded import called, lm_of, saved_folders
from latentwire.lm.zoo import locate_saved
from latentwire.reading import saved_config, shortened
from latentwire.texts import check_texts

FORMAT_VERSION = 1
WEIGHTS = "lens.safetensors"
TEMPLATE = 4096
"""Most characters of the template of a lens that is loaded: an LM runs over it at once."""
TIMING = "block output"
"""The moment at which a patch acts; it is recorded beside the weights."""


@dataclass(frozen=True)
class LensConfig:
    """The parts of a lens; saved beside its weights."""

    model: str
    """Zoo name, Hugging Face id or folder of the LM whose activations it explains."""
    layer: int
    """The block whose output is explained (Hugging Face's hidden_states[layer + 1])."""
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    """Vector to text."""
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    """Text to vector."""
    dtype: Dtype = "float32"
    """Number type of the LM's weights; what is trained is float32."""


@dataclass(frozen=True)
class Saved:
    """The fields of config.json of a lens: the config, and facts that must be the same where it is
    loaded."""

    sha256: str
    architecture: str
    model_weights: str
    template_ids: tuple[tuple[int, ...], ...]
    patch_timing: str
    norm: float
    spread: float
    model: str
    layer: int
    decoder: DecoderConfig
    encoder: EncoderConfig
    dtype: Dtype = "float32"
    folders: dict[str, str] = field(default_factory=dict)
    """Folders of models by name, on the machine that saved it, that had no name elsewhere."""

    def __post_init__(self) -> None:
        _check_scales(self.norm, self.spread)
        if len(self.decoder.template) > TEMPLATE:
            raise LensError(
                f"template has {len(self.decoder.template)} characters; expected at most {TEMPLATE}"
            )


@dataclass(frozen=True)
class Explanation:
    """The decoder's words for one activation, and how much of it is in them."""

    text: str
    vector: Float[Tensor, " d"]
    """The encoder's vector of the text."""
    error: float
    """Squared distance to the activation, in units of the activations' variance: 0 is exact, and
    the mean activation has 1 on average."""


class Lens(nn.Module):
    """Decoder, encoder and what is usual for the activations of one layer of one LM."""

    mean: Tensor

    def __init__(self, lm: FrozenLM, config: LensConfig, statistics: Statistics):
        super().__init__()
        check_layer(config.layer, lm)
        check_finite({"mean of the activations": statistics.mean}, LensError)
        _check_scales(statistics.norm, statistics.spread)
        self.lm, self.config = lm, replace(config, model=called(lm, config.model))
        self.norm, self.spread = statistics.norm, statistics.spread
        self.register_buffer("mean", statistics.mean.float())
        self.decoder = Decoder(lm, config.decoder, statistics.norm)
        self.encoder = Encoder(lm, config.layer, config.encoder)
        self.to(lm.device)

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that training changes, by name; the one list for optimizer, file and load."""
        parts = {"decoder": self.decoder.tensors(), "encoder": self.encoder.tensors()}
        return {f"{part}.{n}": t for part, tensors in parts.items() for n, t in tensors.items()}

    @torch.no_grad()
    def explain(
        self,
        vectors: Float[Tensor, "b d"],
        samples: int = 1,
        temperature: float = 1.0,
        seed: int = 0,
    ) -> list[list[Explanation]]:
        """`samples` explanations of each activation, best reconstruction first: the greedy one, and
        others that are drawn."""
        vectors = checked(vectors, self.lm)
        texts = several(self.decoder, vectors, samples, temperature, seed)
        made = self.reconstruct(texts)
        errors = scaled_mse(made, vectors.repeat_interleave(samples, 0), self.spread).tolist()
        all_made = [Explanation(t, v, e) for t, v, e in zip(texts, made, errors, strict=True)]
        groups = [all_made[i : i + samples] for i in range(0, len(all_made), samples)]
        return [sorted(group, key=lambda e: e.error) for group in groups]

    def reconstruct(self, texts: Sequence[str]) -> Float[Tensor, "b d"]:
        """The encoder's activations of words: texts are tokenized anew, so nothing but their
        characters carries information."""
        check_texts(texts, "texts")
        return self.encoder([self.lm.tokenize(text) for text in texts])

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json and bf16 weights, with all that a load must find equal."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {n: t.detach().to("cpu", torch.bfloat16) for n, t in self.tensors().items()}
        gain = self.decoder.project.gain
        tensors |= {"mean": self.mean.cpu(), "decoder.gain": gain.cpu()}
        weights = save({n: t.contiguous() for n, t in tensors.items()})
        record = {
            "format_version": FORMAT_VERSION,
            "sha256": hashlib.sha256(weights).hexdigest(),
            **_facts(self.lm, self.config),
            "norm": self.norm,
            "spread": self.spread,
            **asdict(self.config),
            **saved_folders({self.config.model: self.lm.folder}),
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
    ) -> Lens:
        """Load a lens from a folder or the Hugging Face hub (owner/name), or the shipped one by the
        name "default".

        lm: its LM, loaded (with its tokenizer) or by another name or path than its own, alone or by
        its name. dtype, device: of the LM where it is loaded here; as trained, and torch's
        accelerator where there is one, if None. Raises LensError for a folder that is no lens,
        altered weights, or another LM than its own, and ZooError for no such lens or LM.
        """
        shipped = Path(str(files("latentwire") / "data" / "lens"))
        folder = shipped if name == "default" else locate_saved(str(name), "a lens")
        saved = _read_config(folder)
        config = LensConfig(saved.model, saved.layer, saved.decoder, saved.encoder, saved.dtype)
        with one_error(LensError, folder):
            state = read_tensors(folder / WEIGHTS, saved.sha256)
            _check_state(config, state)
        lm = lm_of(config.model, lm, dtype or config.dtype, saved.folders, device)
        check_layer(config.layer, lm)
        if config.decoder.max_new_tokens > lm.context_length:
            raise LensError(
                f"max_new_tokens is {config.decoder.max_new_tokens}; {lm.name} has "
                f"{lm.context_length}"
            )
        _check_facts(saved, _facts(lm, config), lm, folder)
        lens = cls(lm, config, Statistics(torch.empty(0), saved.norm, saved.spread))
        lens._fill(state, folder)
        return lens

    @torch.no_grad()
    def _fill(self, saved: dict[str, Tensor], folder: Path) -> None:
        """Saved values into this lens's own tensors; all of them and nothing else."""
        mean = saved.pop("mean", torch.empty(0))
        targets = {**self.tensors(), "decoder.gain": self.decoder.project.gain}
        wrong = set(saved) ^ set(targets)
        wrong |= {n for n in set(saved) & set(targets) if saved[n].shape != targets[n].shape}
        if wrong or mean.shape != (self.lm.width,):
            raise LensError(
                f"{folder}: config.json does not fit the weights ({', '.join(sorted(wrong)[:3])}); "
                "it was altered"
            )
        self.mean = mean.to(self.lm.device)
        check_finite({**saved, "mean": self.mean}, LensError)
        for name, tensor in targets.items():
            tensor.copy_(saved[name])


def several(
    decoder: Decoder, vectors: Float[Tensor, "b d"], samples: int, temperature: float, seed: int
) -> list[str]:
    """For each activation its greedy explanation and samples - 1 drawn ones, next to each other."""
    greedy = decoder.generate(vectors, Greedy()).texts
    if samples == 1:
        return greedy
    noise = seeded_noise(
        [seed_of(seed, row, i) for row in range(len(vectors)) for i in range(samples - 1)]
    )
    drawn = decoder.generate(vectors, Sampled(noise, temperature), samples - 1).texts
    size = samples - 1
    groups = [[g, *drawn[i * size : (i + 1) * size]] for i, g in enumerate(greedy)]
    return [text for group in groups for text in group]


def _check_scales(norm: float, spread: float) -> None:
    for name, value in (("norm", norm), ("spread", spread)):
        if not 0 < value < math.inf:
            raise LensError(
                f"{name} of the activations is {value}; expected more than 0, and finite"
            )


def _facts(lm: FrozenLM, config: LensConfig) -> dict:
    """Facts that must be the same where a lens is loaded: the LM, and how the template becomes
    ids."""
    return {
        "architecture": lm.architecture,
        "model_weights": lm.fingerprint,
        "template_ids": tuple(
            tuple(ids.tolist()) for ids in template_ids(lm, config.decoder.template)
        ),
        "patch_timing": TIMING,
    }


def _check_facts(saved: Saved, facts: dict, lm: FrozenLM, folder: Path) -> None:
    different = [name for name, value in facts.items() if getattr(saved, name) != value]
    if different == ["model_weights"] and lm.name == saved.model:
        warnings.warn(
            f"{folder.name} was trained on another copy of {lm.name} (its weights differ); "
            "expect somewhat worse explanations",
            stacklevel=3,
        )
    elif different:
        raise LensError(
            f"{folder} was trained on {saved.model} with {different[0]} "
            f"{getattr(saved, different[0])}; {lm.name} has {facts[different[0]]}"
        )


def _check_state(config: LensConfig, state: Mapping[str, Tensor]) -> None:
    """Raises ArtifactError where the config has other sizes than the weights, before anything of
    those sizes is made."""
    encoder = config.encoder
    sizes = {"encoder.before": (encoder.before, "encoder.before", 0)}
    for part, rank in (("decoder", config.decoder.lora), ("encoder", encoder.lora)):
        down = [n for n in state if n.startswith(f"{part}.lora.") and ".lora_A." in n]
        if rank:
            sizes[f"{part}.lora"] = (rank, down[0] if down else f"{part}.lora", 0)
    check_sizes(state, sizes)


def _read_config(folder: Path) -> Saved:
    try:
        record = saved_config(folder)
    except ValueError as error:
        raise LensError(
            f"{folder} is no lens; expected a folder with config.json ({error}), or default"
        ) from None
    version = record.get("format_version") if isinstance(record, dict) else None
    with one_error(LensError, f"{folder}/config.json is not a lens's"):
        if version is not None and (version != FORMAT_VERSION or type(version) is not int):
            raise LensError(
                f"{folder}: lens format {shortened(version)}; expected {FORMAT_VERSION}"
            )
        return typed(Saved, record)
