"""Disk cache of the outputs of frozen models, for later runs and for runs beside this one.

    features = Features(lm)
    found = features("teacher", [ids, prompt.embeds, targets], lambda: {"states": ...})

An entry's name is a hash of all that it follows from: the LM (lm/identity.py) and how it is run,
the code of this package, what is computed, and every tensor that goes in. So an entry is never out
of date, and what is read equals what would be computed. It appears whole or not at all, so any
number of processes may share a folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

import latentwire
from latentwire.files import write_whole
from latentwire.lm import FrozenLM
from latentwire.lm.identity import add_tensor, basis, digest_of, identity
from latentwire.lm.zoo import cache_folder


class Features:
    """Those of one frozen LM, in $LATENTWIRE_FEATURES or the folder "features" of our cache."""

    def __init__(self, lm: FrozenLM, folder: Path | None = None):
        given = os.environ.get("LATENTWIRE_FEATURES")
        self.folder = folder or (Path(given) if given else cache_folder() / "features")
        self.device = lm.device
        self.read, self.written = 0, 0
        of = [_code(), basis({"lm": identity(lm)}), torch.__version__]
        of += [lm.model.config._attn_implementation, lm.device.type]
        if lm.adapter is not None:
            state = sorted(lm.model.state_dict().items())
            of.append(digest_of({name: tensor for name, tensor in state if "lora_" in name}))
        self._of = hashlib.sha256(json.dumps(of).encode())

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
            add_tensor(key, "", part)
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
            write_whole(path, whole)
        except OSError as error:
            text = f"{self.folder} cannot be written ({error.strerror}); features are not kept"
            warnings.warn(text, stacklevel=3)
        else:
            self.written += 1


@lru_cache(maxsize=1)
def _code() -> str:
    """Digest of every file of the package, so that what older code computed is not taken for
    ours."""
    root, key = Path(latentwire.__file__).parent, hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        key.update(path.read_bytes())
    return key.hexdigest()
