"""Injectors: from the states of latents to a cache that a frozen reader goes on from."""

from latentwire.wire.learned.injectors.base import Calibration, Injector, LatentBatch
from latentwire.wire.learned.injectors.cross_attention import CrossAttention
from latentwire.wire.learned.injectors.deep_prefix import DeepPrefix
from latentwire.wire.learned.injectors.embeddings import Embeddings
from latentwire.wire.learned.injectors.lora import Lora

INJECTORS: dict[str, type[Injector]] = {
    "embeddings": Embeddings,
    "lora": Lora,
    "deep_prefix": DeepPrefix,
    "cross_attention": CrossAttention,
}
"""By the name that a wire's config gives."""

__all__ = ["INJECTORS", "Calibration", "Injector", "LatentBatch"]
