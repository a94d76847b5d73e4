"""The port: the only code that calls a Hugging Face model."""

from latentwire.lm.checkpointing import gradient_checkpointing
from latentwire.lm.frozen import Dtype, FrozenLM
from latentwire.lm.outputs import (
    Decoded,
    Scored,
    States,
    entropy,
    kl_divergence,
    log_softmax,
    token_log_probs,
)
from latentwire.lm.picks import (
    Choice,
    Greedy,
    Pick,
    Sampled,
    StraightThroughGumbel,
    seed_of,
    seeded_noise,
)
from latentwire.lm.prompt import (
    Frame,
    HeadSlots,
    KVPrefix,
    Memory,
    Patch,
    Prompt,
    Segment,
    Span,
    pad_right,
)

__all__ = [
    "Choice",
    "Decoded",
    "Dtype",
    "Frame",
    "FrozenLM",
    "Greedy",
    "HeadSlots",
    "KVPrefix",
    "Memory",
    "Patch",
    "Pick",
    "Prompt",
    "Sampled",
    "Scored",
    "Segment",
    "Span",
    "States",
    "StraightThroughGumbel",
    "entropy",
    "gradient_checkpointing",
    "kl_divergence",
    "log_softmax",
    "pad_right",
    "seed_of",
    "seeded_noise",
    "token_log_probs",
]
