"""LoRA adapters of a frozen model, switched for one call at a time (through peft)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import TYPE_CHECKING, Any
from weakref import finalize

import torch
from torch import Tensor, nn

from latentwire.lm.families import family_of

if TYPE_CHECKING:
    from latentwire.lm.frozen import FrozenLM

_ON = "_latentwire_adapter"
"""Attribute of a model that names the adapter that is on: switching walks through every module, and
within a generation nothing has to be switched."""
_LEFT = "_latentwire_left"
"""Attribute of a model that lists the adapters whose owners are gone."""


def lora_config(config: Any, rank: int, blocks: int, attention_only: bool = False) -> Any:
    """LoRA of one rank on every linear map of a model's first blocks, or of their attention, at
    scale 1 (Hu et al. 2021, arXiv 2106.09685). config: the Hugging Face model's."""
    from peft import LoraConfig  # here: it takes a second to import, and few need it

    family = family_of(config)
    return LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=list(family.attention if attention_only else family.linear),
        layers_to_transform=list(range(blocks)),
        layers_pattern=family.blocks,
        fan_in_fan_out=family.transposed,
    )


@contextmanager
def adapted(model: Any, adapter: str | None) -> Iterator[None]:
    """One adapter on (None: none) and every other off, while the context is open."""
    before = getattr(model, _ON, None)
    if before == adapter:
        yield
        return
    switch(model, adapter)
    try:
        yield
    finally:
        switch(model, before)


def fresh_lora(lm: FrozenLM, rank: int, blocks: int, attention_only: bool = False) -> FrozenLM:
    """The view of `lm` that runs with a LoRA of `lora_config`, which is zero at first and begins
    the same whatever was drawn before. The model has it as long as there is this view: models
    outlive what is loaded on them."""
    taken = getattr(lm.model, "peft_config", {})
    name = next(f"lora{i}" for i in count() if f"lora{i}" not in taken)
    config = lora_config(lm.model.config, rank, blocks, attention_only)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        view = lm.add_lora(name, config)
    # It goes when the next one is added: the view may be collected at any moment, in the middle of
    # a walk through the model's modules.
    if not hasattr(lm.model, _LEFT):
        setattr(lm.model, _LEFT, [])
    finalize(view, getattr(lm.model, _LEFT).append, name).atexit = False
    return view


def remove_left(model: Any) -> None:
    """Take the adapters off whose owners are gone; none of them may be on."""
    left: list[str] = getattr(model, _LEFT, [])
    while left:
        model.delete_adapter(left.pop())


def as_module(view: FrozenLM) -> nn.ParameterDict:
    """The trainable tensors of a view's adapter, for the module that trains, saves and loads them:
    the same objects, under names without the adapter's and without dots."""
    end, found = f".{view.adapter}.weight", view.adapter_parameters()
    return nn.ParameterDict(
        {name.removesuffix(end).replace(".", "/"): p for name, p in found.items()}
    )


def lora_parameters(model: Any, adapter: str | None) -> dict[str, Tensor]:
    """The trainable tensors of one adapter, by name."""
    mark = f".{adapter}."
    return {n: p for n, p in model.named_parameters() if mark in n and "lora_" in n}


def switch(model: Any, adapter: str | None) -> None:
    """One adapter on and every other off, until the next switch."""
    setattr(model, _ON, adapter)
    with gradients_kept(model):
        if adapter is None:
            model.disable_adapters()
        else:
            model.set_adapter(adapter)
            model.enable_adapters()


@contextmanager
def gradients_kept(model: Any) -> Iterator[None]:
    """Whether each adapter is trained stays as it was, whatever happens inside: peft freezes what
    it switches off, and a frozen leaf drops the gradient of a graph that was built while it was
    on; and it thaws what it switches on."""
    before = [(p, p.requires_grad) for n, p in model.named_parameters() if "lora_" in n]
    try:
        yield
    finally:
        for parameter, trained in before:
            parameter.requires_grad_(trained)
