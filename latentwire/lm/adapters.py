"""LoRA adapters of a frozen model, switched for one call at a time (through peft)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from threading import RLock
from typing import TYPE_CHECKING, Any
from warnings import filterwarnings
from weakref import WeakKeyDictionary, finalize

import torch
from torch import Tensor, nn

from latentwire.lm.families import family_of
from latentwire.lm.turns import turn

if TYPE_CHECKING:
    from latentwire.lm.frozen import FrozenLM

_ON = "_latentwire_adapter"
"""Attribute of a model that names the adapter that is on: switching walks through every module."""
_LEFT = "_latentwire_left"
"""Attribute of a model that lists the adapters whose owners are gone."""
_RESTING: WeakKeyDictionary[Any, list[str | None]] = WeakKeyDictionary()
"""By model, the adapters that generations under way leave on between turns; the last stays."""
_SEEDED = RLock()
"""Held where a LoRA is drawn with a seed: torch has one generator for all threads."""
_OWNER = re.compile(r"\.lora_\w+\.([^.]+)")
"""In the name of a tensor, the adapter that it belongs to."""


def lora_config(config: Any, rank: int, blocks: int) -> Any:
    """LoRA of one rank on every linear map of a model's first blocks, or of their attention, at
    scale 1 (Hu et al. 2021, arXiv 2106.09685). config: the Hugging Face model's."""
    from peft import LoraConfig  # here: it takes a second to import, and few need it

    family = family_of(config)
    return LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=list(family.linear),
        layers_to_transform=list(range(blocks)),
        layers_pattern=family.blocks,
        fan_in_fan_out=family.transposed,
    )


@contextmanager
def adapted(model: Any, adapter: str | None) -> Iterator[None]:
    """A turn with one adapter on (None: none) and every other off."""
    with turn(model):
        before = getattr(model, _ON, None)
        switch(model, adapter)
        try:
            yield
        finally:
            switch(model, before)


@contextmanager
def resting(model: Any, adapter: str | None) -> Iterator[None]:
    """Leave this adapter on between the turns of a generation, which then need not switch. Other
    threads' turns come in between, and switch for themselves."""
    with turn(model):
        stack = _RESTING.setdefault(model, [])
        stack.append(adapter)
        switch(model, adapter)
    try:
        yield
    finally:
        with turn(model):
            stack.remove(adapter)
            switch(model, stack[-1] if stack else None)


def fresh_lora(lm: FrozenLM, rank: int, blocks: int) -> FrozenLM:
    """The view of `lm` that runs with a LoRA of `lora_config`, which is zero at first and begins
    the same whatever was drawn before. The model has it as long as there is this view: models
    outlive what is loaded on them."""
    with turn(lm.model), _SEEDED, torch.random.fork_rng(devices=[]):
        taken = getattr(lm.model, "peft_config", {})
        name = next(f"lora{i}" for i in count() if f"lora{i}" not in taken)
        torch.manual_seed(0)
        view = lm.add_lora(name, lora_config(lm.model.config, rank, blocks))
        # It goes when the next one is added: the view may be collected at any moment, in the middle
        # of a walk through the model's modules.
        if not hasattr(lm.model, _LEFT):
            setattr(lm.model, _LEFT, [])
        finalize(view, getattr(lm.model, _LEFT).append, name).atexit = False
    return view


def add(model: Any, adapter: str, config: Any) -> None:
    """Put an adapter on a model, off at first and in float32 or finer. Raises ValueError for a name
    that peft cannot hold or that is taken, before anything is changed; a config that does not fit
    leaves the model as it was."""
    _check_name(model, adapter)
    # Once and for good: taking a filter off again would take those of other threads with it.
    filterwarnings("ignore", "Already found a `peft_config` attribute in the model", UserWarning)
    with turn(model), _gradients_kept(model):
        on = getattr(model, _ON, None)
        try:
            model.add_adapter(config, adapter_name=adapter)
            left: list[str] = getattr(model, _LEFT, [])
            while left:
                model.delete_adapter(left.pop())
        except Exception:
            if adapter in getattr(model, "peft_config", {}):
                model.delete_adapter(adapter)
            model._hf_peft_config_loaded = hasattr(model, "peft_config")
            raise
        finally:
            setattr(model, _ON, adapter)  # which peft has switched on
            switch(model, on)
        for parameter in lora_parameters(model, adapter).values():
            parameter.data = parameter.data.to(torch.promote_types(parameter.dtype, torch.float32))
        model.eval()


def _check_name(model: Any, adapter: str) -> None:
    taken = getattr(model, "peft_config", {})
    if adapter in taken:
        raise ValueError(f"adapter {adapter!r} is there already; expected another name")
    if not re.fullmatch(r"\w[\w-]*", adapter) or hasattr(nn.ModuleDict(), adapter):
        raise ValueError(
            f"adapter is named {adapter!r}; expected letters, digits, - and _ (no dot), and "
            "not a name of torch's own such as 'keys'"
        )


def as_module(view: FrozenLM) -> nn.ParameterDict:
    """The trainable tensors of a view's adapter, for the module that trains, saves and loads them:
    the same objects, under names without the adapter's and without dots."""
    tensors = anonymous(view).items()
    return nn.ParameterDict({n.removesuffix(".weight").replace(".", "/"): p for n, p in tensors})


def anonymous(view: FrozenLM) -> dict[str, Tensor]:
    """The trainable tensors of a view's adapter, under names without the adapter's."""

    def without(name: str) -> str:
        match = _OWNER.search(name)
        assert match is not None
        return name[: match.start(1) - 1] + name[match.end(1) :]

    return {without(name): p for name, p in view.adapter_parameters().items()}


def lora_parameters(model: Any, adapter: str | None) -> dict[str, Tensor]:
    """The trainable tensors of one adapter, by name."""
    with turn(model):
        owners = ((_OWNER.search(n), n, p) for n, p in model.named_parameters())
        return {n: p for owner, n, p in owners if owner and owner[1] == adapter}


def switch(model: Any, adapter: str | None) -> None:
    """One adapter on and every other off, until the next switch; within a turn.

    Set directly, since peft's own methods freeze what they switch off and thaw what they switch on:
    another thread's backward pass would drop the gradients of a leaf that is frozen meanwhile.
    """
    if getattr(model, _ON, None) == adapter:
        return
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper

    for module in model.modules():
        if isinstance(module, (BaseTunerLayer, ModulesToSaveWrapper)):
            module._disable_adapters = adapter is None
            if adapter is not None:
                module._active_adapter = [adapter]
    setattr(model, _ON, adapter)


@contextmanager
def _gradients_kept(model: Any) -> Iterator[None]:
    """Keep each adapter trained or frozen as it was when peft adds one, which freezes others."""
    before = [(p, p.requires_grad) for n, p in model.named_parameters() if "lora_" in n]
    try:
        yield
    finally:
        for parameter, trained in before:
            parameter.requires_grad_(trained)
