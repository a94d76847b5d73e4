"""A model and its tokenizer from a folder, and what is asked of them before they are used."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoTokenizer
from transformers.utils import logging

from latentwire.files import digest
from latentwire.lm.devices import Dtype
from latentwire.lm.zoo import ZooError
from latentwire.reading import parse_json, read_regular, shortened

# transformers asks on standard input whether to run a repository's own code where this is not said.
SAFE: dict[str, Any] = {"trust_remote_code": False}


LAYERS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers")
"""Names that configs have for the number of their layers."""


def load_model(folder: Path, kind: Any, said: str, dtype: torch.dtype | str) -> tuple[Any, Any]:
    """Model and tokenizer of a folder, whose own code is never run. kind: one of transformers' auto
    classes; said: what that is, in words. Raises ZooError for a folder that holds none."""
    bar = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # loading takes a second, and its bar hides our output
    try:
        _check_layers(folder)
        model = kind.from_pretrained(folder, dtype=dtype, use_safetensors=True, **SAFE)
        return model, AutoTokenizer.from_pretrained(folder, **SAFE)
    except Exception as error:  # transformers raises every kind for a file that it cannot read
        reason = " ".join(str(error).split())
        if "trust_remote_code" in reason:
            reason = (
                "it needs code of its own, which is never run; expected a model of transformers"
            )
        raise ZooError(f"{folder} cannot be loaded as {said}: {reason[:500]}") from error
    finally:
        if bar:
            logging.enable_progress_bar()


def check_place(dtype: torch.dtype | str, device: str | None) -> None:
    """Raise ZooError for a number type or a device that a model cannot have here."""
    if isinstance(dtype, str) and dtype not in get_args(Dtype):
        raise ZooError(f"dtype is {shortened(dtype)}; expected of {', '.join(get_args(Dtype))}")
    try:
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError, TypeError) as error:
        reason = str(error).split("\n")[0][:200]
        raise ZooError(f"device is {shortened(device)}, which is not here: {reason}") from None


def _check_layers(folder: Path) -> None:
    """Raise ValueError where config.json names more layers than there are tensors: transformers
    makes every layer before it looks into the weights."""
    config = parse_json(read_regular(folder / "config.json"))
    parts = [config, *(part for part in config.values() if isinstance(part, dict))]
    counts = [part[key] for part in parts for key in LAYERS if isinstance(part.get(key), int)]
    tensors = 0
    for file in (file for file in folder.glob("*.safetensors") if file.is_file()):
        with safe_open(str(file), framework="pt") as weights:
            tensors += len(weights.keys())
    if tensors and max(counts, default=0) > tensors:
        raise ValueError(
            f"config.json has {max(counts)} layers, and the weights have {tensors} tensors"
        )


def fingerprint_of(embeddings: Tensor, blocks: Any) -> str:
    """Digest of the first embeddings, and the first row of each of the blocks' matrices: models
    that were tuned from one original often share their embeddings."""
    matrices = (p for n, p in blocks.named_parameters() if p.dim() > 1 and "lora_" not in n)
    # Experts are one tensor [n, out, in] together, of which the first row is still a few numbers.
    rows = [embeddings[:64], *(matrix.flatten(0, -2)[0] for matrix in matrices)]
    some = torch.cat([row.detach().flatten().to("cpu", torch.bfloat16) for row in rows])
    return digest(some.view(torch.int16).numpy().tobytes())


def check_setting(model: Any, name: str) -> None:
    """Raises ValueError for attention that ignores our masks, or weights in several places."""
    if (attention := model.config._attn_implementation) not in ("eager", "sdpa"):
        raise ValueError(
            f"{name} runs {attention}, which does not take the masks of a prompt; load it with "
            "attn_implementation='sdpa' or 'eager'"
        )
    places = {str(place) for place in getattr(model, "hf_device_map", {}).values()}
    if len(places) > 1:
        raise ValueError(
            f"{name} is spread over {', '.join(sorted(places))}; expected one device: load it with "
            "device_map={'': 0}, in fewer bits where it is too large"
        )
