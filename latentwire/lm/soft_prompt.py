"""Soft prompts: how trained input embeddings begin, and the unit of their learning rate."""

from __future__ import annotations

import math

from torch import Tensor

from latentwire.lm.frozen import FrozenLM

INSTRUCTION = "\n\nAnswer the question with a short span copied from the text, nothing else."


def initial_soft_prompt(lm: FrozenLM, count: int) -> Tensor:
    """Embeddings of an instruction, repeated or cut to `count` tokens: a start with a meaning."""
    ids = lm.tokenize(INSTRUCTION)
    return lm.embed(ids.repeat(math.ceil(count / len(ids)))[:count]).detach().clone()


def soft_prompt_rate(lm: FrozenLM) -> float:
    """Unit of the learning rate of soft tokens: the root mean square of the embeddings that they
    begin as. Adam moves each number by the rate, and readers' embeddings differ in size (0.12 in
    smollm2-135m, 1.03 in gemma3-270m), so that one rate for all would hardly move some."""
    return initial_soft_prompt(lm, 16).square().mean().sqrt().item()
