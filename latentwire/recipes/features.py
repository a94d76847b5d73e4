"""What a frozen part gave, kept on disk for later runs and for runs beside this one.

    features = Features(lm)
    found = features("teacher", [ids, prompt.embeds, targets], lambda: {"states": ...})

An entry's name is a hash of all that it follows from: the LM's weights and how it is run, the code
of this package, what is computed, and every tensor that goes in. So an entry is never out of date,
and what is read equals what would be computed. It appears whole or not at all, under a name of its
own until then, so any number of processes may share a folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

import latentwire
from latentwire.files import write_whole
from latentwire.lm import FrozenLM
from latentwire.lm.zoo import cache_folder

HASHED = 8
"""Weights that are hashed at a time, each of which may be copied from a GPU for it."""

NOT_COMPUTED = ("_name_or_path", "transformers_version")
"""What a model's config says that changes nothing it computes."""


class Features:
    """Those of one frozen LM, in $LATENTWIRE_FEATURES or the folder "features" of our cache."""

    def __init__(self, lm: FrozenLM, folder: Path | None = None):
        given = os.environ.get("LATENTWIRE_FEATURES")
        self.folder = folder or (Path(given) if given else cache_folder() / "features")
        self.device = lm.device
        self.read, self.written = 0, 0
        versions = f"{torch.__version__} {version('transformers')}"
        config = lm.model.config
        about = {k: v for k, v in config.to_dict().items() if k not in NOT_COMPUTED}
        about |= {"attention": config._attn_implementation, "device": lm.device.type}
        of = f"{_code()} {versions} {json.dumps(about, sort_keys=True, default=str)}"
        self._of = hashlib.sha256(of.encode())
        # An adapter that is off changes nothing but the names that peft gives to the rest.
        weights = {
            name.replace(".base_layer", ""): tensor
            for name, tensor in sorted(lm.model.state_dict().items())
            if lm.adapter is not None or "lora_" not in name
        }
        with ThreadPoolExecutor(HASHED) as pool:  # hashing does not hold Python's lock
            for digest in pool.map(_digest, weights.keys(), weights.values()):
                self._of.update(digest)

    def __call__(
        self,
        what: str,
        parts: Sequence[Tensor],
        compute: Callable[[], Mapping[str, Tensor]],
    ) -> dict[str, Tensor]:
        """The tensors of an entry, computed without gradients and kept where there is none yet.

        what: names the computation. parts: every tensor that it depends on beside the LM.
        """
        path = self._path(what, parts)
        found = self._found(path)
        if found is not None:
            self.read += 1
            return found
        with torch.no_grad():
            made = {name: tensor.detach() for name, tensor in compute().items()}
        self._keep(path, made)
        return made

    def size(self) -> int:
        """Bytes of all entries in the folder, of every LM."""
        return sum(path.stat().st_size for path in self.folder.rglob("*.safetensors"))

    def __str__(self) -> str:
        return (
            f"features of frozen parts: {self.read} read, {self.written} written; "
            f"{self.size() / 1e6:,.0f} MB in {self.folder}, which may be removed"
        )

    def _path(self, what: str, parts: Sequence[Tensor]) -> Path:
        key, kind = self._of.copy(), self.device.type
        precision = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        key.update(f"{what} {precision} ".encode())
        for part in parts:
            _add(key, "", part)
        name = key.hexdigest()
        return self.folder / name[:2] / f"{name[2:]}.safetensors"

    def _found(self, path: Path) -> dict[str, Tensor] | None:
        try:
            return load_file(path, device=str(self.device))
        except (OSError, SafetensorError):  # none, or one that a full disk or a crash cut off
            return None

    def _keep(self, path: Path, made: Mapping[str, Tensor]) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            whole = save({name: tensor.contiguous() for name, tensor in made.items()})
            write_whole(path, whole, uuid4().hex)
        except OSError as error:
            text = f"{self.folder} cannot be written ({error.strerror}); features are not kept"
            warnings.warn(text, stacklevel=3)
        else:
            self.written += 1


def _digest(name: str, tensor: Tensor) -> bytes:
    key = hashlib.sha256()
    _add(key, name, tensor)
    return key.digest()


def _add(key: Any, name: str, tensor: Tensor) -> None:
    """Name, type, shape and values."""
    key.update(f"{name} {tensor.dtype} {list(tensor.shape)} ".encode())
    whole = tensor.detach().cpu().contiguous()
    key.update(whole.flatten().view(torch.uint8).numpy())


@lru_cache(maxsize=1)
def _code() -> str:
    """Of every file of the package, so that what older code computed is not taken for ours."""
    root, key = Path(latentwire.__file__).parent, hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        key.update(path.read_bytes())
    return key.hexdigest()
