"""Encoders: from a text to the channels of a shared wire's latents, before they become codes."""

from latentwire.wire.encoders.base import Encoder
from latentwire.wire.encoders.lm_states import LMStates
from latentwire.wire.encoders.pca import PCA
from latentwire.wire.encoders.utf8 import UTF8

ENCODERS: dict[str, type[Encoder]] = {"lm_states": LMStates, "utf8": UTF8, "pca": PCA}
"""By the name that a wire's config gives."""

__all__ = ["ENCODERS", "Encoder"]
