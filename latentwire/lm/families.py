"""The differences between architectures, and nothing else.

The port treats every model alike; the few places where they are not alike (where the blocks
live, which keys are rotated, which layers see only a window, which logits are capped)
are read here, once. A family is supported when it stands in FAMILIES and in the agreement matrix.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from latentwire.lm.turns import turn

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")


@dataclass(frozen=True)
class Family:
    """The names of the parts of one architecture."""

    body: str
    """Attribute of the causal LM that holds the decoder without its head."""
    blocks: str
    """Attribute of the body that holds the list of blocks."""
    norm: str = "norm"
    """Attribute of the body that holds the norm after the last block."""
    linear: tuple[str, ...] = (*ATTENTION, "gate_proj", "up_proj", "down_proj")
    """Names of the linear maps of a block; of its attention alone where experts follow, which are
    one tensor together."""
    attends: str = "self_attn"
    """Attribute of a block that holds its attention."""
    transposed: bool = False
    """Says that those store their weights as [in, out]."""
    rotary: bool = True
    """Says that keys are rotated by their position (RoPE)."""
    rotary_by_type: bool = False
    """Says that layer types rotate by different bases or scales (Gemma 3, OLMo 3)."""
    windowed: bool = False
    """Says that every layer has the config's `sliding_window` (Mistral); elsewhere one without
    `layer_types` is a leftover that the model ignores."""


FAMILIES = {
    "llama": Family("model", "layers"),
    "qwen2": Family("model", "layers"),
    "qwen3": Family("model", "layers"),
    "qwen2_moe": Family("model", "layers", linear=ATTENTION),
    "qwen3_moe": Family("model", "layers", linear=ATTENTION, windowed=True),
    "mistral": Family("model", "layers", windowed=True),
    "ministral": Family("model", "layers"),
    "mixtral": Family("model", "layers", linear=ATTENTION, windowed=True),
    "gemma": Family("model", "layers"),
    "gemma2": Family("model", "layers"),
    "gemma3_text": Family("model", "layers", rotary_by_type=True),
    "olmo": Family("model", "layers"),
    "olmo2": Family("model", "layers"),
    "olmo3": Family("model", "layers", rotary_by_type=True),
    "olmoe": Family("model", "layers", linear=ATTENTION),
    "seed_oss": Family("model", "layers"),
    "arcee": Family("model", "layers", linear=(*ATTENTION, "up_proj", "down_proj")),
    "starcoder2": Family("model", "layers", linear=(*ATTENTION, "c_fc", "c_proj"), windowed=True),
    "smollm3": Family("model", "layers"),
    "phi3": Family(
        "model",
        "layers",
        linear=("qkv_proj", "o_proj", "gate_up_proj", "down_proj"),
        windowed=True,
    ),
    "gpt2": Family(
        "transformer",
        "h",
        norm="ln_f",
        attends="attn",
        linear=("c_attn", "c_proj", "c_fc"),
        transposed=True,
        rotary=False,
    ),
}


EVERY = "every"
"""Layer type of all layers of a windowed family."""

_RECURRENT = "has layers that keep a state in place of keys and values"
_LATENT = "caches keys that are compressed for all heads at once (multi-head latent attention)"
_INTERLEAVED = "rotates neighbouring numbers of a key and not its two halves"
_SCALED = "scales embeddings and logits outside of the modules that give them"
_SINKS = "has attention sinks, which attention to single heads' slots leaves out"
_IMAGES = "reads images too, and only text-only decoders are supported"
REASONS = {
    **dict.fromkeys(("mamba", "mamba2", "falcon_mamba", "jamba", "recurrent_gemma"), _RECURRENT),
    **dict.fromkeys(("qwen3_next", "qwen3_5", "lfm2", "falcon_h1", "granitemoehybrid"), _RECURRENT),
    **dict.fromkeys(("deepseek_v2", "deepseek_v3"), _LATENT),
    **dict.fromkeys(("cohere", "cohere2", "glm", "glm4", "gptj"), _INTERLEAVED),
    **dict.fromkeys(("ernie4_5", "helium"), _INTERLEAVED),
    **dict.fromkeys(("granite", "granitemoe"), _SCALED),
    "gpt_oss": _SINKS,
    "gemma3n": "has embeddings in every layer, and layers that share keys and values",
    **dict.fromkeys(("gemma3", "mistral3", "llama4", "qwen2_vl", "qwen3_vl"), _IMAGES),
}
"""Reasons why architectures that are often asked for are refused."""


class UnsupportedModel(ValueError):
    """The model's architecture has no row in FAMILIES, or its config something that no row has."""


def family_of(config) -> Family:
    """The family of a Hugging Face config; raises UnsupportedModel."""
    name = config.model_type
    if name not in FAMILIES:
        reason = f": it {REASONS[name]}" if name in REASONS else ""
        known = ", ".join(FAMILIES)
        raise UnsupportedModel(
            f"architecture {name!r} is not supported{reason}; expected one of: {known}"
        )
    if getattr(config, "use_bidirectional_attention", None):
        raise UnsupportedModel(
            f"this {name!r} is not supported: its tokens attend to later ones "
            "(use_bidirectional_attention); expected a causal LM"
        )
    return FAMILIES[name]


def sliding_windows(config) -> dict[str, int | None] | None:
    """Attention window in tokens for each layer type, or None where all layers see everything."""
    if family_of(config).windowed:
        return None if config.sliding_window is None else {EVERY: config.sliding_window}
    types = set(getattr(config, "layer_types", None) or ())
    if "sliding_attention" not in types:
        return None
    return {t: config.sliding_window if t == "sliding_attention" else None for t in types}


def window_of(config, layer: int) -> int | None:
    """Attention window of one layer in tokens; None where it sees everything."""
    windows = sliding_windows(config)
    if windows is None:
        return None
    return windows[EVERY if EVERY in windows else config.layer_types[layer]]


def key_gains(model: Any) -> list[Tensor | None]:
    """The gain [e] of the RMS norm that each layer's attention puts on the keys of a head before it
    rotates them (Gemma 3, Qwen3), [h * e] where it is one norm of all heads' (OLMo 2), or None."""
    family = family_of(model.config)
    blocks = getattr(getattr(model, family.body), family.blocks)
    norms = [getattr(getattr(block, family.attends), "k_norm", None) for block in blocks]
    return [n if n is None else n(torch.ones_like(n.weight)).detach() for n in norms]


def softcap(config) -> float | None:
    """Bound c of the final logits c*tanh(x/c) (Gemma 2), or None."""
    return getattr(config, "final_logit_softcapping", None)


def attention_softcap(config) -> float | None:
    """The same bound of attention's logits, before the mask (Gemma 2), or None."""
    return getattr(config, "attn_logit_softcapping", None)


def capped(logits: Float[Tensor, "*n"], cap: float | None) -> Float[Tensor, "*n"]:
    """Logits within a bound; as they are where it is None."""
    return logits if cap is None else cap * torch.tanh(logits / cap)


def rotates(config, layer: int) -> bool:
    """True where a layer rotates its keys by their position: some of SmolLM3's do not."""
    of_layers = getattr(config, "no_rope_layers", None)
    return family_of(config).rotary and (not of_layers or bool(of_layers[layer]))


def rotate(
    model: Any,
    layer: int,
    keys: Float[Tensor, "b h n e"],
    positions: Int[Tensor, "b h n"],
    back: bool = False,
) -> Float[Tensor, "b h n e"]:
    """Keys of one layer rotated to `positions`, as the model itself rotates them (RoPE,
    Su et al. 2021, arXiv 2104.09864), or back from there; unchanged in a layer without
    rotation."""
    family = family_of(model.config)
    if not rotates(model.config, layer):
        return keys
    b, h, n, _ = keys.shape
    body = getattr(model, family.body)
    layer_type = (model.config.layer_types[layer],) if family.rotary_by_type else ()
    with turn(model):  # some kinds of RoPE rescale themselves to the longest position of a call
        cos, sin = body.rotary_emb(keys, positions.reshape(b * h, n), *layer_type)
    turned = cos.shape[-1]  # Phi-4-mini leaves the last quarter of a key as it is
    cos, sin = cos.view(b, h, n, turned), sin.view(b, h, n, turned)
    if back:  # YaRN stretches keys too (Peng et al. 2023, arXiv 2309.00071)
        stretch = cos.square() + sin.square()
        cos, sin = cos / stretch, -sin / stretch
    part, rest = keys[..., :turned], keys[..., turned:]
    first, second = part.chunk(2, dim=-1)
    part = part * cos + torch.cat([-second, first], dim=-1) * sin
    return torch.cat([part.to(keys.dtype), rest], dim=-1)  # OLMo 3's cosines are float32


def moved(
    model: Any,
    layer: int,
    keys: Float[Tensor, "b h n e"],
    positions: Int[Tensor, "b h n"],
    shift: Int[Tensor, "*_"],
) -> Float[Tensor, "b h n e"]:
    """Keys of one layer that are rotated to `positions`, rotated to `positions + shift`, which may
    be negative: attention depends on distances alone."""
    return rotate(model, layer, rotate(model, layer, keys, positions, back=True), positions + shift)


def rescales(model: Any) -> bool:
    """True where rotation depends on the length of the whole input too (LongRoPE, Ding et al. 2024,
    arXiv 2402.13753), so that moving keys changes what they mean."""
    kinds = getattr(model, family_of(model.config).body).rotary_emb.rope_type
    return "longrope" in (kinds.values() if isinstance(kinds, dict) else [kinds])
