"""Identities of frozen models: a run is the same run, and a cache entry the same entry, while these
are the same.

    identity(lm)    # {"weights": "90e0...", "config": ..., "tokenizer": ..., ...}

A fingerprint (FrozenLM.fingerprint) is shorter and coarser: it travels in every message, is the
same in float32 and bfloat16, and reads a few rows. Here every tensor counts to the bit.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

import latentwire
from latentwire.files import digest
from latentwire.lm.frozen import FrozenLM
from latentwire.lm.sentences import SentenceEncoder

Model = FrozenLM | SentenceEncoder

HASHED = 8
"""Weights that are hashed at a time, each of which may be copied from a GPU for it."""
NOT_COMPUTED = ("_name_or_path", "transformers_version")
"""Fields of a model's config that change nothing it computes."""
_known: WeakKeyDictionary[Any, tuple[tuple, str]] = WeakKeyDictionary()


def identity(model: Model) -> dict[str, Any]:
    """Digest weights, config, tokenizer and chat template, and list the ids that end an answer.
    Neither a device nor a name is among them."""
    config, tokenizer = model.model.config.to_dict(), model.tokenizer
    found = {
        "weights": _weights(model),
        "config": _digest({k: v for k, v in config.items() if k not in NOT_COMPUTED}),
        "tokenizer": _tokenizer(tokenizer),
        "chat_template": _digest(tokenizer.chat_template),
    }
    return found | ({"stop_ids": list(model.stop_ids)} if isinstance(model, FrozenLM) else {})


def basis(models: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Collect what a run rests on, for its config: identities of its models by name, and the
    releases whose numbers it has. A build ("+cu128") is no other release: like the device it moves
    numbers by rounding alone."""
    releases = {"latentwire": latentwire.__version__, "torch": torch.__version__}
    releases["transformers"] = version("transformers")
    versions = {name: release.partition("+")[0] for name, release in releases.items()}
    return {"models": dict(models), "versions": versions}


def add_tensor(key: Any, name: str, tensor: Tensor) -> None:
    """Add name, type, shape and values to a hash."""
    key.update(f"{name} {tensor.dtype} {list(tensor.shape)} ".encode())
    whole = tensor.detach().cpu().contiguous()
    key.update(whole.flatten().view(torch.uint8).numpy())


def _weights(model: Model) -> str:
    """Hash every tensor that is frozen and used: adapters are trained, and change nothing here but
    the names that peft gives to the rest; a pooler is not read. Hashed once while no tensor is
    written to."""
    tensors = {
        name.replace(".base_layer", ""): tensor
        for name, tensor in sorted(model.model.state_dict(keep_vars=True).items())
        if "lora_" not in name and not name.startswith("pooler.")
    }
    now = tuple((name, t.data_ptr(), t._version) for name, t in tensors.items())
    known = _known.get(model.model)
    if known is None or known[0] != now:
        known = _known[model.model] = now, digest_of(tensors)
    return known[1]


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """Hash names, types, shapes and values."""
    key = hashlib.sha256()
    with ThreadPoolExecutor(HASHED) as pool:  # hashing does not hold Python's lock
        for part in pool.map(_hashed, tensors.keys(), tensors.values()):
            key.update(part)
    return key.hexdigest()[:16]


def _hashed(name: str, tensor: Tensor) -> bytes:
    key = hashlib.sha256()
    add_tensor(key, name, tensor)
    return key.digest()


def _tokenizer(tokenizer: Any) -> str:
    """Hash vocabulary, merges, normaliser, added tokens and all else that a fast tokenizer's file
    holds, but for the state that its last call left."""
    if tokenizer.is_fast:
        state = json.loads(tokenizer.backend_tokenizer.to_str())
        state |= {"truncation": None, "padding": None}
    else:
        state = sorted(tokenizer.get_vocab().items())
    about = [type(tokenizer).__name__, tokenizer.special_tokens_map]
    return _digest([*about, tokenizer.clean_up_tokenization_spaces, state])


def _digest(value: Any) -> str:
    return digest(json.dumps(value, sort_keys=True, default=str))
