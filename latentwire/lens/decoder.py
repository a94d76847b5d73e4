"""Vector to text: a frozen LM reads an activation in the slot of a prompt and says what it holds.

decoder = Decoder(lm, DecoderConfig("In short, {activation} means:"))
decoder.generate(vectors, Sampled(seeded_noise(range(4))), samples=4).texts
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from latentwire.lens.activations import Text
from latentwire.lens.checks import LensError, check_places, checked
from latentwire.lens.parts import Projection, trainable
from latentwire.lm import FrozenLM, Generation, Patch, Prompt, Sampler
from latentwire.lm.adapters import fresh_lora
from latentwire.lm.frozen import Caching
from latentwire.lm.prompt import LAST
from latentwire.ridge import Ridge
from latentwire.texts import check_least

SLOT = "{activation}"
"""The place of a template where the activation stands."""


@dataclass(frozen=True)
class DecoderConfig:
    """The parts of a decoder; saved beside its weights."""

    template: str = "The text here, {activation}, says:\n"
    """The prompt, with {activation} exactly once."""
    layers: int = 0
    """At how many of the first blocks' outputs the activation is put in again, beside the input; as
    many as the model has is all of them. Each place has a projection of its own."""
    lora: int = 0
    """Rank of a LoRA on the LM; 0 for none."""
    max_new_tokens: int = 24
    """Longest explanation, in tokens, EOS counted."""

    RETIRED: ClassVar = {"scale": "match", "train_prompt": True, "own_copy": False}
    """Fields of earlier releases, and the only values that are still read."""

    def __post_init__(self) -> None:
        slots = self.template.count(SLOT)
        if slots != 1:
            raise LensError(
                f"template {self.template!r} has {slots} slots; expected exactly one {SLOT}"
            )
        check_least(self, LensError, layers=0, lora=0, max_new_tokens=1)


class Decoder(nn.Module):
    """An LM that explains activations.

    norm: the usual norm of the activations that it will be given; each enters at the norm that is
    usual at its place.
    """

    def __init__(self, lm: FrozenLM, config: DecoderConfig, norm: float = 1.0):
        super().__init__()
        check_places(config.layers, lm)
        self.config, self.norm = config, norm
        self.ids = template_ids(lm, config.template)
        own = _entries(lm, Prompt.from_ids(lm, [torch.cat(self.ids)]), config.layers)
        # The median, because a first token's norm is many times that of the others.
        gain = own[:, 0].norm(dim=-1).median(dim=1).values / norm
        self.project = Projection(lm.width, gain.to("cpu", torch.float32))
        before, after = (lm.embed(ids).detach().float().clone() for ids in self.ids)
        self.before, self.after = nn.Parameter(before), nn.Parameter(after)
        self.to(lm.device)
        rank = config.lora
        self.lm = fresh_lora(lm, rank, len(lm.blocks)) if rank else lm.with_adapter(None)

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that training changes, by name."""
        return trainable(self, self.lm)

    @torch.no_grad()
    def fit(self, layer: int, texts: Sequence[Text], batch: int = 16) -> None:
        """Begin each projection as the ridge regression of the LM's own state at its place on the
        activation of the same token (the output of block `layer`). The slot then looks, at every
        block, like the token that the activation was taken from, which the LM knows how to read."""
        usual = math.sqrt(self.lm.width) / self.norm  # to a root mean square of 1
        ridge = Ridge(1, self.lm.width, len(self.project.gain) * self.lm.width)
        for start in range(0, len(texts), batch):
            part = texts[start : start + batch]
            prompt = Prompt.from_ids(self.lm, [text.ids for text in part])
            here = torch.zeros_like(prompt.mask)
            for row, text in enumerate(part):
                here[row, len(here[row]) - len(text.usable) :] = True
            states = _entries(self.lm, prompt, max(layer + 1, self.config.layers))[:, here]
            entries = states[: len(self.project.gain)].transpose(0, 1).flatten(1)
            ridge.add(usual * states[layer + 1][None], entries[None])
        weight, bias = (x[0].to(self.lm.device) for x in ridge.solve())
        gain = self.project.gain
        by_place = weight.unflatten(1, (len(gain), -1)).permute(1, 2, 0)
        self.project.weight.copy_(usual * by_place / gain[:, None, None])
        self.project.bias.copy_(bias.unflatten(0, (len(gain), -1)))

    def prompt(self, vectors: Float[Tensor, "b d"]) -> Prompt:
        """The template with each row's activation in its slot."""
        entering = self.project(checked(vectors, self.lm))
        rows = [[self.before, vector[None], self.after] for vector in entering[0]]
        slot = torch.full((len(vectors), 1), len(self.before), device=self.lm.device)
        patches = [Patch(block, slot, v[:, None]) for block, v in enumerate(entering[1:])]
        return Prompt.of(self.lm, rows, patches=patches)

    def generate(
        self,
        vectors: Float[Tensor, "b d"],
        sampler: Sampler,
        samples: int = 1,
        caching: Caching = "kv",
    ) -> Generation:
        """`samples` explanations of each activation, next to each other; differentiable as the
        sampler is. They end with EOS or after `max_new_tokens`."""
        prompt, most = self.prompt(vectors), self.config.max_new_tokens
        return self.lm.generate(prompt, sampler, most, caching=caching, samples=samples)

    def score(
        self,
        vectors: Float[Tensor, "b d"],
        ids: Int[Tensor, "c n"],
        mask: Bool[Tensor, "c n"],
        temperature: float = 1.0,
    ) -> Float[Tensor, "c n"]:
        """Log-probabilities of given explanations, c / b for each activation."""
        return self.lm.score(self._shared(vectors, len(ids)), ids, mask, temperature)

    def _shared(self, vectors: Tensor, rows: int) -> Prompt:
        """The prompt for `rows` explanations, which share one pass over all but its last token."""
        prompt, times = self.prompt(vectors), rows // len(vectors)
        if times == 1 or len(self.after) == 0:
            return prompt.repeat(times)
        start = replace(prompt.columns(slice(None, -1)), patches=prompt.patches)
        return replace(prompt.columns(LAST), prefix=self.lm.prefill(start)).repeat(times)


def template_ids(lm: FrozenLM, template: str) -> tuple[Tensor, Tensor]:
    """Token ids before the slot (BOS included where the model's tokenizer puts one) and after."""
    before, after = template.split(SLOT)
    return torch.cat([lm.bos, lm.tokenize(before)]), lm.tokenize(after)


def words(decoded: Generation, lm: FrozenLM) -> Bool[Tensor, "b n"]:
    """True on an explanation's own tokens: the stop token is not one of them."""
    stops = torch.tensor(lm.stop_ids, device=decoded.ids.device)
    return decoded.mask & ~torch.isin(decoded.ids, stops)


@torch.no_grad()
def _entries(lm: FrozenLM, prompt: Prompt, layers: int) -> Float[Tensor, "n b t d"]:
    """The LM's own states where an activation enters: the input, and the outputs of the first
    `layers` blocks."""
    inputs = lm.states(prompt).inputs.float()
    if layers < len(lm.blocks):
        return inputs[: layers + 1]
    return torch.cat([inputs, lm.hidden(prompt, layers - 1)[None].float()])
