"""Hooks on a model's blocks: they live in a context manager, within one turn, and are gone when it
exits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from sys import modules
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from latentwire.lm.families import sliding_windows, window_of
from latentwire.lm.prompt import Memory, Patch, Prompt
from latentwire.lm.ragged import RaggedKV


class Reached(Exception):
    """Raised inside a forward pass when the layer that was asked for has been computed."""


def tensor_of(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


class Stack:
    """The inputs of some blocks as one tensor [l, b, t, d]."""

    def __init__(self, size: int):
        self.size, self._inputs = size, []
        self._whole: Tensor | None = None

    def add(self, _module: Any, args: Any, kwargs: Any) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        if not torch.is_grad_enabled():  # in place from the start: stacked, it would be there twice
            whole = (
                hidden.new_empty(self.size, *hidden.shape) if self._whole is None else self._whole
            )
            hidden, self._whole = whole[len(self._inputs)].copy_(hidden), whole
        self._inputs.append(hidden)

    def stacked(self) -> Tensor:
        return torch.stack(self._inputs) if self._whole is None else self._whole


def replacing(patch: Patch):
    def replace_output(_module, _args, output):
        hidden = tensor_of(output)
        rows = torch.arange(len(hidden), device=hidden.device)[:, None].expand_as(patch.positions)
        patched = hidden.index_put((rows, patch.positions), patch.vectors.to(hidden.dtype))
        return _with(output, patched)

    return replace_output


def attending(memory: Memory):
    def attend(_module, _args, output):
        hidden = tensor_of(output)
        return _with(output, memory.attend(hidden, memory.keys, memory.values, memory.mask))

    return attend


def changing(prompt: Prompt) -> list[tuple[int, Any]]:
    """The hooks that change block outputs in a pass over a prompt, by layer: memories first,
    since a patch says what an output is."""
    memories = () if prompt.prefix is None else prompt.prefix.memories
    changes = [(memory.layer, attending(memory)) for memory in memories]
    return changes + [(patch.layer, replacing(patch)) for patch in prompt.patches]


def _with(output: Any, hidden: Tensor) -> Any:
    return (hidden, *output[1:]) if isinstance(output, tuple) else hidden


def attending_eagerly(model: Any) -> AbstractContextManager[None]:
    """Attention as plain matrix products, which give probabilities beside the output."""
    return _implementation(model, "eager")


@contextmanager
def attention_seen(see: Callable[..., None], model: Any) -> Iterator[None]:
    """Each layer calls `see(layer, queries, keys, values, mask)` before it attends: queries
    [b, h, t, e] rotated and scaled, keys and values [b, g, k, e] of g KV heads, mask additive."""
    name = model.config._attn_implementation

    def seen(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, **options: Any):
        see(module.layer_idx, query * options["scaling"], key, value, mask)
        # Eager attention is each architecture's own: Gemma 2's caps its logits, and nothing else.
        eager = modules[type(module).__module__].eager_attention_forward
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(name, eager)
        return attend(module, query, key, value, mask, **options)

    with _attending_by(seen, model):
        yield


@contextmanager
def attending_sparingly(prompt: Prompt, model: Any) -> Iterator[None]:
    """Attention of a pass over `prompt`: over each head's own slots where its prefix has any, and
    causal where a layer's mask is None."""
    slots = () if prompt.prefix is None else prompt.prefix.ragged
    with _attending_by(partial(_attend, slots, _since(prompt, slots, model.config)), model):
        yield


def _attend(
    slots: Sequence[RaggedKV],
    since: Sequence[Tensor | None],
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Any,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    if not slots:
        attend = ALL_ATTENTION_FUNCTIONS["sdpa"]
        return attend(module, query, key, value, mask, **options)
    layer = module.layer_idx
    scaled, cap = query * options["scaling"], options.get("softcap")
    attended = slots[layer].attend(scaled, key, value, mask, since[layer], cap)
    return attended.transpose(1, 2), None


def _since(prompt: Prompt, slots: Sequence[RaggedKV], config: Any) -> list[Tensor | None]:
    """The first position that each column sees in each layer; None where that is all of them."""
    if not slots or sliding_windows(config) is None:
        return [None] * len(slots)
    last = int(prompt.positions.max())
    windows = [window_of(config, layer) for layer in range(len(slots))]
    return [
        None if window is None or last - held.first < window else prompt.positions - window + 1
        for window, held in zip(windows, slots, strict=True)
    ]


@contextmanager
def _attending_by(attend: Callable[..., Any], model: Any) -> Iterator[None]:
    name = f"latentwire-{id(attend)}"  # of this pass: other models may run at the same time
    ALL_ATTENTION_FUNCTIONS.register(name, attend)
    try:
        with _implementation(model, name):
            yield
    finally:
        ALL_ATTENTION_FUNCTIONS._global_mapping.pop(name)


@contextmanager
def _implementation(model: Any, name: str) -> Iterator[None]:
    """In the config alone, which all layers share: `set_attn_implementation` walks through all
    modules, which costs milliseconds, and this is done for each token."""
    config = model.config
    before = config._attn_implementation
    config._attn_implementation = name
    try:
        yield
    finally:
        config._attn_implementation = before


@contextmanager
def hooked(hooks: Sequence[tuple[Any, Any]]) -> Iterator[None]:
    """Modules, each with what is called after it."""
    with _removed([module.register_forward_hook(hook) for module, hook in hooks]):
        yield


@contextmanager
def entered(hooks: Sequence[tuple[Any, Any]]) -> Iterator[None]:
    """Modules, each with what is called before it, and is given its named arguments too."""
    with _removed([m.register_forward_pre_hook(hook, with_kwargs=True) for m, hook in hooks]):
        yield


@contextmanager
def _removed(handles: Sequence[Any]) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
