"""The port: the only code that calls a Hugging Face model.

Read in this order: prompt.py (what may enter a model), frozen.py (the forward function, scoring,
the only generation loop), picks.py (logits to tokens), cache.py, hooks.py, families.py (what
differs between architectures); words.py (texts and token ids), loading.py and zoo.py (where models
come from), adapters.py, doctor.py.
"""

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
