"""The differences between architectures, and nothing else.

The port treats every model alike; the few places where they are not alike (where the blocks
live, whether keys are rotated, which layers see only a window, whether the logits are capped)
are read here, once. A family is supported when it stands in FAMILIES and in the agreement matrix.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from latentwire.lm.turns import turn


@dataclass(frozen=True)
class Family:
    """The names of the parts of one architecture."""

    body: str
    """Attribute of the causal LM that holds the decoder without its head."""
    blocks: str
    """Attribute of the body that holds the list of blocks."""
    norm: str = "norm"
    """Attribute of the body that holds the norm after the last block."""
    linear: tuple[str, ...] = (
        *("q_proj", "k_proj", "v_proj", "o_proj"),
        *("gate_proj", "up_proj", "down_proj"),
    )
    """Names of the linear maps of a block."""
    attends: str = "self_attn"
    """Attribute of a block that holds its attention."""
    transposed: bool = False
    """Says that those store their weights as [in, out]."""
    rotary: bool = True
    """Says that keys are rotated by their position (RoPE)."""
    rotary_by_type: bool = False
    """Says that layer types rotate by different bases (Gemma 3)."""


FAMILIES = {
    "llama": Family("model", "layers"),
    "qwen2": Family("model", "layers"),
    "qwen3": Family("model", "layers"),
    "gemma3_text": Family("model", "layers", rotary_by_type=True),
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


class UnsupportedModel(ValueError):
    """The model's architecture has no row in FAMILIES."""


def family_of(config) -> Family:
    """The family of a Hugging Face config; raises UnsupportedModel."""
    if config.model_type not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise UnsupportedModel(
            f"architecture {config.model_type!r} is not supported; expected one of: {known}"
        )
    return FAMILIES[config.model_type]


def sliding_windows(config) -> dict[str, int | None] | None:
    """Attention window in tokens for each layer type, or None where all layers see everything."""
    types = set(getattr(config, "layer_types", None) or ())
    if "sliding_attention" not in types:
        return None
    return {t: config.sliding_window if t == "sliding_attention" else None for t in types}


def window_of(config, layer: int) -> int | None:
    """Attention window of one layer in tokens; None where it sees everything."""
    windows = sliding_windows(config)
    return None if windows is None else windows[config.layer_types[layer]]


def key_gains(model: Any) -> list[Tensor | None]:
    """The gain [e] of the RMS norm that each layer's attention puts on the keys of a head before it
    rotates them (Gemma 3, Qwen3), or None."""
    family = family_of(model.config)
    blocks = getattr(getattr(model, family.body), family.blocks)
    norms = [getattr(getattr(block, family.attends), "k_norm", None) for block in blocks]
    return [n if n is None else n(torch.ones_like(n.weight)).detach() for n in norms]


def softcap(config) -> float | None:
    """Bound c of the final logits c*tanh(x/c) (Gemma 2), or None."""
    return getattr(config, "final_logit_softcapping", None)


def rotate(
    model: Any,
    layer: int,
    keys: Float[Tensor, "b h n e"],
    positions: Int[Tensor, "b h n"],
    back: bool = False,
) -> Float[Tensor, "b h n e"]:
    """Keys of one layer rotated to `positions`, as the model itself rotates them (RoPE,
    Su et al. 2021, arXiv 2104.09864), or back from there; unchanged for a family without
    rotation."""
    family = family_of(model.config)
    if not family.rotary:
        return keys
    b, h, n, e = keys.shape
    body = getattr(model, family.body)
    layer_type = (model.config.layer_types[layer],) if family.rotary_by_type else ()
    with turn(model):  # some kinds of RoPE rescale themselves to the longest position of a call
        cos, sin = body.rotary_emb(keys, positions.reshape(b * h, n), *layer_type)
    cos, sin = cos.view(b, h, n, e), sin.view(b, h, n, e)
    if back:  # YaRN stretches keys too (Peng et al. 2023, arXiv 2309.00071)
        stretch = cos.square() + sin.square()
        cos, sin = cos / stretch, -sin / stretch
    first, second = keys.chunk(2, dim=-1)
    return keys * cos + torch.cat([-second, first], dim=-1) * sin


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
