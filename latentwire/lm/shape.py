"""The parts and sizes of a model, and checks of what is asked of it."""

from __future__ import annotations

from typing import Any

import torch

from latentwire.lm.devices import Dtype
from latentwire.lm.families import Family


class ShapeMixin:
    """Parts and sizes of the causal LM in `model`, of any family."""

    model: Any
    name: str
    _family: Family

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @property
    def dtype_name(self) -> Dtype:
        """The number type of its weights, as recipes and saved configs call it."""
        return "bfloat16" if self.dtype == torch.bfloat16 else "float32"

    @property
    def body(self) -> Any:
        """The decoder without its head."""
        return getattr(self.model, self._family.body)

    @property
    def blocks(self) -> Any:
        return getattr(self.body, self._family.blocks)

    @property
    def _attentions(self) -> list[Any]:
        return [getattr(block, self._family.attends) for block in self.blocks]

    @property
    def width(self) -> int:
        return self.model.config.hidden_size

    @property
    def kv_shape(self) -> tuple[int, int]:
        """KV heads of a layer, and the width of one."""
        config = self.model.config
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        return heads, getattr(config, "head_dim", None) or self.width // config.num_attention_heads

    @property
    def context_length(self) -> int:
        """Most positions that the model was made for, in tokens. With LongRoPE (Ding et al. 2024,
        arXiv 2402.13753) those before its factors change for a whole text: a cache made before
        would stay rotated by the others."""
        config, rope = self.model.config, getattr(self.model.config, "rope_parameters", None) or {}
        if rope.get("rope_type") == "longrope":
            return rope["original_max_position_embeddings"]
        return config.max_position_embeddings

    @property
    def architecture(self) -> str:
        """Family and sizes: what two copies of one model share."""
        config = self.model.config
        return f"{config.model_type}-{len(self.blocks)}x{self.width}-v{config.vocab_size}"

    def _check_layer(self, layer: int) -> None:
        if not 0 <= layer < len(self.blocks):
            raise ValueError(f"layer {layer} of {self.name}; expected 0..{len(self.blocks) - 1}")

    def _block(self, layer: int) -> Any:
        self._check_layer(layer)
        return self.blocks[layer]

    def _check_length(self, used: int) -> None:
        if used > self.context_length:
            raise ValueError(
                f"input takes {used} positions; {self.name} has a context length of "
                f"{self.context_length}"
            )
