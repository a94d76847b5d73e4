"""Encoders: from a text to the channels of a shared wire's latents, before they become codes."""

from latentwire.wire.learned.encoders.anchor import Anchor
from latentwire.wire.learned.encoders.base import Encoder, WritingEncoder
from latentwire.wire.learned.encoders.lm_states import LMStates
from latentwire.wire.learned.encoders.pca import PCA
from latentwire.wire.learned.encoders.utf8 import UTF8

ENCODERS: dict[str, type[Encoder]] = {
    "lm_states": LMStates,
    "utf8": UTF8,
    "pca": PCA,
    "anchor": Anchor,
}
"""By the name that a wire's config gives."""

__all__ = ["ENCODERS", "Encoder", "WritingEncoder"]
