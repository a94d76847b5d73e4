"""The port: the only code that calls a Hugging Face model.

Read in this order: prompt.py (what may enter a model), frozen.py (the forward function, scoring),
generation.py (the only generation loop), samplers.py (logits to tokens), cache.py, ragged.py
(attention over slots of single heads), hooks.py, families.py (what differs between architectures);
tokenizer.py (texts and token ids), loaded.py, loading.py and
zoo.py (where models come from), adapters.py, doctor.py.
"""

from latentwire.lm.checkpointing import gradient_checkpointing
from latentwire.lm.devices import Dtype
from latentwire.lm.frozen import FrozenLM
from latentwire.lm.loaded import LMSource, Models, as_lm, called, saved_folders
from latentwire.lm.outputs import (
    Generation,
    States,
    kl_divergence,
    log_softmax,
    token_log_probs,
)
from latentwire.lm.prompt import (
    ChatFrame,
    KVPrefix,
    Memory,
    Patch,
    Prompt,
    RaggedKV,
    Segment,
    Span,
    pad_right,
)
from latentwire.lm.samplers import (
    Choice,
    Greedy,
    Sampled,
    Sampler,
    StraightThroughGumbel,
    seed_of,
    seeded_noise,
)

__all__ = [
    "ChatFrame",
    "Choice",
    "Dtype",
    "FrozenLM",
    "Generation",
    "Greedy",
    "KVPrefix",
    "LMSource",
    "Memory",
    "Models",
    "Patch",
    "Prompt",
    "RaggedKV",
    "Sampled",
    "Sampler",
    "Segment",
    "Span",
    "States",
    "StraightThroughGumbel",
    "as_lm",
    "called",
    "gradient_checkpointing",
    "kl_divergence",
    "log_softmax",
    "pad_right",
    "saved_folders",
    "seed_of",
    "seeded_noise",
    "token_log_probs",
]
