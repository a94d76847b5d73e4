"""Ways in: from the states of latents to a cache that a frozen reader goes on from."""

from latentwire.wire.learned.ways_in.base import Calibration, Slots, WayIn
from latentwire.wire.learned.ways_in.coprocessor import Coprocessor
from latentwire.wire.learned.ways_in.cross_attention import CrossAttention
from latentwire.wire.learned.ways_in.deep_prefix import DeepPrefix
from latentwire.wire.learned.ways_in.embeddings import Embeddings
from latentwire.wire.learned.ways_in.lora import Lora
from latentwire.wire.learned.ways_in.refiner import Refiner

WAYS_IN: dict[str, type[WayIn]] = {
    "embeddings": Embeddings,
    "lora": Lora,
    "refiner": Refiner,
    "deep_prefix": DeepPrefix,
    "cross_attention": CrossAttention,
    "coprocessor": Coprocessor,
}
"""By the name that a wire's config gives. Several stand one after another; each changes the cache
that those before it made."""

__all__ = ["WAYS_IN", "Calibration", "Slots", "WayIn"]
