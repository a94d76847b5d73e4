"""A device that is not the CPU, on any machine: torch's own kind of device for others' hardware,
whose memory is the CPU's. It refuses operations on tensors of two devices and numpy, as GPUs do,
and like Apple's has no float64; generators are not told apart. What runs here may still be slow or
wrong on a real one, but puts every tensor where it belongs.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch.library import Library, fallthrough_kernel
from torch.utils import backend_registration as backends
from torch.utils._pytree import tree_map_only

NAME = "apart"
MOVES = ("copy_", "_to_copy", "_copy_from")
INDEXES = ("index", "index_put", "index_put_", "_index_put_impl_")
"""Their second argument, the indices, may lie on the CPU, as CUDA's may."""
CAST = ("mm", "bmm", "addmm", "baddbmm", "matmul", "linear", "scaled_dot_product_attention")
"""What autocast computes in its number type."""
WHOLE = ("arange", "arange.start", "arange.start_step", "eye", "eye.m", "randperm.generator")
"""What torch would make by resizing an empty tensor, which a `Lying` can't be."""


class Lying(torch.Tensor):
    """A tensor that lies on the device: `own` holds its values, on the CPU."""

    own: torch.Tensor

    @staticmethod
    def __new__(cls, own: torch.Tensor) -> "Lying":
        if own.dtype == torch.float64:
            raise TypeError(f"{NAME} has no float64")
        made = torch.Tensor._make_wrapper_subclass(
            cls, own.size(), own.stride(), own.storage_offset(), dtype=own.dtype, device=f"{NAME}:0"
        )
        made.own = own
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, *args, **(kwargs or {}))

    def tolist(self) -> Any:
        return self.own.tolist()

    def untyped_storage(self) -> Any:
        return self.own.untyped_storage()

    def data_ptr(self) -> int:
        return self.own.data_ptr()

    def numpy(self, *_, **__):
        raise TypeError(f"can't convert a tensor on {NAME} to numpy")

    __array__ = numpy


def _run(func: Any, *args: Any, **kwargs: Any) -> Any:
    """An operation on the values; what comes out lies on the device, or where it was asked for."""
    name, device = func._schema.name.removeprefix("aten::"), kwargs.get("device")
    lying: dict[int, Lying] = {}
    others: list[str] = []

    def own(x: Any) -> Any:
        if isinstance(x, Lying):
            lying[id(x.own)] = x
            return x.own
        if isinstance(x, torch.Tensor) and x.dim():
            others.append(x.device.type)
        return [own(y) for y in x] if isinstance(x, (list, tuple)) else x

    given = [own(x) for x in args]
    named = {key: own(value) for key, value in kwargs.items()}
    if name in INDEXES and isinstance(args[0], Lying):
        others = [x.device.type for x in args[2:3] if x.dim() and not isinstance(x, Lying)]
    if lying and others and name not in MOVES:
        raise RuntimeError(f"{name}: tensors on {NAME} and {others[0]}")
    if device is not None:
        named["device"] = "cpu"
    out = func(*given, **named)
    here = name == "copy_" and not isinstance(args[0], Lying)  # in place, into the CPU's memory
    if here or (device is not None and torch.device(device).type == "cpu"):
        return out

    def put(x: Any) -> Any:
        if isinstance(x, (list, tuple)):
            return type(x)(map(put, x))
        if not isinstance(x, torch.Tensor):
            return x
        return lying[id(x)] if id(x) in lying else Lying(x)  # in place: the tensor it was

    return put(out)


class _Device(backends._DummyBackendModule):
    """What torch asks a device's own module."""

    present = False

    def is_available(self) -> bool:
        return self.present

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]

    def device(self, _device: Any) -> Any:
        return nullcontext()

    def get_rng_state(self, _device: Any = None) -> torch.Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: torch.Tensor, _device: Any = None) -> None:
        torch.set_rng_state(state)


class _Hook(backends._DummyPrivateUse1Hook):
    def is_available(self) -> bool:
        return _device.present


class _Generator(torch.Generator):
    """On the CPU wherever it is asked for: torch has them for its own devices alone."""

    def __new__(cls, *_: Any) -> "_Generator":
        return super().__new__(cls)


def _casting(name: str) -> Callable:
    def run(*args: Any, **kwargs: Any) -> Any:
        def cast(x: torch.Tensor) -> torch.Tensor:
            return x.to(torch.get_autocast_dtype(NAME)) if x.is_floating_point() else x

        with torch.autocast(NAME, enabled=False):
            given = tree_map_only(torch.Tensor, cast, (args, kwargs))
            return getattr(torch.ops.aten, name)(*given[0], **given[1])

    return run


_device = _Device()
backends._setup_privateuseone_for_python_backend(NAME, _device, _Hook())
_aten, _any = Library("aten", "IMPL"), Library("_", "IMPL")
_any.fallback(_run, "PrivateUse1")
_any.fallback(fallthrough_kernel, "AutocastPrivateUse1")
for _name in ("_to_copy", *WHOLE):
    _op = getattr(torch.ops.aten, _name.partition(".")[0])
    _kernel = getattr(_op, _name.partition(".")[2] or "default")
    _aten.impl(_name, lambda *a, _kernel=_kernel, **k: _run(_kernel, *a, **k), "PrivateUse1")
for _name in CAST:
    _aten.impl(_name, _casting(_name), "AutocastPrivateUse1")


@contextmanager
def present() -> Iterator[None]:
    """This machine has the device, and torch says so."""
    theirs = torch.Generator, torch.accelerator.synchronize
    torch.Generator, torch.accelerator.synchronize = _Generator, lambda *_: None
    _device.present = True
    try:
        yield
    finally:
        _device.present = False
        torch.Generator, torch.accelerator.synchronize = theirs
