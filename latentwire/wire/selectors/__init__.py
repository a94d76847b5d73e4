"""Selectors say which tokens of a text stay as slots, one file each. base.py has what each is
given; scorer.py is the trained one, all others work on any reader as they are."""

from latentwire.wire.folder import WireError
from latentwire.wire.selectors.attention import Attention
from latentwire.wire.selectors.base import Reading, Selector
from latentwire.wire.selectors.key_norm import KeyNorm
from latentwire.wire.selectors.random import Random
from latentwire.wire.selectors.repetition import Repetition
from latentwire.wire.selectors.scorer import Scorer
from latentwire.wire.selectors.streaming import Streaming

TRAINED = "scorer"
"""The selector that a wire is trained with; its name in a config."""
SELECTORS: dict[str, type[Selector]] = {
    "attention": Attention,
    "key_norm": KeyNorm,
    "random": Random,
    "repetition": Repetition,
    "streaming": Streaming,
}
"""Those that need no training, by the name that `latentwire eval --also` takes."""


def selector_of(name: str) -> Selector:
    """A selector that needs no training. Raises WireError where there is none of this name."""
    if name not in SELECTORS:
        raise WireError(f"no selector {name!r}; expected one of: {', '.join(SELECTORS)}")
    return SELECTORS[name]()


__all__ = ["SELECTORS", "TRAINED", "Reading", "Scorer", "Selector", "selector_of"]
