"""The port: a frozen causal LM and the one forward function that everything is built on.

Training loss, reward, evaluation and generation all call `FrozenLM._forward`; the label shift
exists once, in `shifted_hidden`; logits are computed only for states whose predictions are read.

    lm = FrozenLM.from_pretrained("smollm2-135m")
    prompt = Prompt.from_chat(lm, ["Name a river."])
    print(lm.generate(prompt, Greedy(), max_new_tokens=16).texts[0])
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from copy import copy
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import AutoModelForCausalLM

from latentwire.lm.adapters import adapted, add, lora_parameters, resting
from latentwire.lm.cache import as_cache, attention_mask, grown
from latentwire.lm.checkpointing import recomputed
from latentwire.lm.devices import Dtype, accelerator
from latentwire.lm.families import capped, family_of, softcap
from latentwire.lm.generation import Caching, generated
from latentwire.lm.hooks import (
    Reached,
    Stack,
    attending_eagerly,
    attending_sparingly,
    attention_seen,
    changing,
    entered,
    hooked,
    tensor_of,
)
from latentwire.lm.loading import check_place, check_setting, fingerprint_of, load_model
from latentwire.lm.outputs import Generation, States, token_log_probs
from latentwire.lm.prompt import KVPrefix, Prompt
from latentwire.lm.samplers import Sampler
from latentwire.lm.shape import ShapeMixin
from latentwire.lm.tokenizer import TokenizerMixin
from latentwire.lm.turns import LOADING, turn
from latentwire.lm.zoo import local_folder, locate, name_of
from latentwire.texts import check_texts

Attention = Callable[[Any], AbstractContextManager[None]]
"""A context that puts another attention implementation on a model."""


class FrozenLM(TokenizerMixin, ShapeMixin):
    """A causal LM whose weights never change and never get gradients.

    Gradients flow through it to whatever made the prompt. A view made by `with_adapter` runs the
    same weights with one LoRA adapter on; the plain object always runs with all adapters off.
    """

    fingerprint: str
    """Digest of the weights: the same for one copy of a model in float32 and bfloat16, another
    after quantising or tuning it. Taken while they are whole, since a training may share them
    out."""

    adapter: str | None = None
    """The LoRA adapter that is on in this view."""

    folder: Path | None
    """The folder of this machine that it was loaded from, where its name is that folder's last
    part."""

    def __init__(self, model: Any, tokenizer: Any, name: str):
        """name: a zoo name, a Hugging Face id or a local folder, whose last part is then the
        name."""
        super().__init__(model, tokenizer, name_of(name))
        self.folder = local_folder(name)
        self._family = family_of(model.config)
        check_setting(model, name)
        with turn(model):
            model.eval().requires_grad_(False)
            self.fingerprint = fingerprint_of(model.get_input_embeddings().weight, self.blocks)

    @classmethod
    def from_pretrained(
        cls, name: str | Path, dtype: torch.dtype | Dtype = "float32", device: str | None = None
    ) -> FrozenLM:
        """Load a zoo name, a Hugging Face id or a local folder, fetching it where needed.

        device: "cpu", "cuda", ...; torch's accelerator where there is one if None. Raises ZooError
        where there is no such model, number type or device.
        """
        name = str(name)
        check_place(dtype, device)
        with LOADING:
            model, tokenizer = load_model(locate(name), AutoModelForCausalLM, "a causal LM", dtype)
        return cls(model.to(device or accelerator() or "cpu"), tokenizer, name)

    # -- the model as functions ---------------------------------------------------------------

    def embed(self, ids: Int[Tensor, "*n"]) -> Float[Tensor, "*n d"]:
        """Input embeddings as the first block receives them, the family's scale included."""
        return self._outside(self.model.get_input_embeddings(), ids)

    def embed_soft(self, weights: Float[Tensor, "*n v"]) -> Float[Tensor, "*n d"]:
        """Mixtures of input embeddings, at the family's scale."""
        table = self.model.get_input_embeddings()
        mixed = weights.to(table.weight.dtype) @ table.weight
        scale = getattr(table, "embed_scale", None)
        return mixed if scale is None else mixed * scale.to(mixed.dtype)

    def head(self, final: Float[Tensor, "*n d"]) -> Float[Tensor, "*n v"]:
        """Logits of states after the last norm, soft-capped where the family does so."""
        logits = self._outside(self.model.get_output_embeddings(), final)
        return capped(logits, softcap(self.model.config))

    def logit_lens(self, states: Float[Tensor, "*n d"]) -> Float[Tensor, "*n v"]:
        """Logits of states of any block, read as if they were the last's (nostalgebraist 2020,
        "interpreting GPT: the logit lens")."""
        return self.head(getattr(self.body, self._family.norm)(states.to(self.dtype)))

    def last_hidden(self, prompt: Prompt) -> Float[Tensor, "b t d"]:
        """States after the last norm: what the head reads."""
        return self._forward(prompt)[0]

    def hidden(self, prompt: Prompt, layer: int) -> Float[Tensor, "b t d"]:
        """Output of block `layer` (Hugging Face's hidden_states[layer + 1], except for the last
        block, where Hugging Face applies the final norm). Blocks above it are not run."""
        self._check_layer(layer)
        box: list[Tensor] = []

        def stop(_module, _args, output):
            box.append(tensor_of(output))
            raise Reached

        with suppress(Reached):
            self._forward(prompt, hooks=[(self.blocks[layer], stop)])
        return box[0]

    def states(self, prompt: Prompt, layers: Sequence[int] | None = None) -> States:
        """The states of one pass: the inputs of blocks (of `layers`, ascending; all if None), the
        final states, the cache."""
        layers = range(len(self.blocks)) if layers is None else layers
        seen = Stack(len(layers))
        with turn(self.model), entered([(self.blocks[layer], seen.add) for layer in layers]):
            final, prefix = self._forward(prompt, keep_cache=True)
        assert prefix is not None
        return States(seen.stacked(), final, prefix)

    def attentions(
        self, prompt: Prompt, reduce: Callable[[Tensor], Tensor] = lambda attention: attention
    ) -> list[Tensor]:
        """Attention probabilities [b, h, t, k] of every layer, over the prefix's columns, then the
        embeds. reduce: what is kept of each layer's, since all of them together may be gigabytes.
        Raises ValueError for a prefix with slots of single heads."""
        maps: list[Tensor] = []

        def keep(_module, _args, output):
            maps.append(reduce(output[1]))

        hooks = [(attention, keep) for attention in self._attentions]
        self._forward(prompt, hooks=hooks, attention=attending_eagerly)
        return maps

    def attention_inputs(
        self, prompt: Prompt, layers: Sequence[int]
    ) -> tuple[Float[Tensor, "b t d"], list[tuple[Tensor, Tensor, Tensor, Tensor]]]:
        """The final states, and what attention of these layers is computed from: queries
        [b, h, t, e], rotated and scaled, whose products with keys are soft-capped where the model
        does so (attention_softcap); keys and values [b, g, k, e] over the prefix's slots and
        then the embeds; and which of these each query sees, [b, 1 or h, t, k]."""
        seen: dict[int, tuple[Tensor, Tensor, Tensor, Tensor]] = {}

        def see(layer: int, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> None:
            if layer in layers:
                visible = mask > torch.finfo(mask.dtype).min / 2
                seen[layer] = queries, keys, values, visible[..., : keys.shape[2]]

        final, _ = self._forward(prompt, attention=partial(attention_seen, see))
        return final, [seen[layer] for layer in layers]

    def prefill(self, prompt: Prompt) -> KVPrefix:
        """The prompt as a cache, its own prefix included, for other prompts to continue."""
        prefix = self._forward(prompt, keep_cache=True)[1]
        assert prefix is not None
        return prefix

    def logits(
        self,
        prompt: Prompt,
        targets: Int[Tensor, "b n"],
        mask: Bool[Tensor, "b n"] | None = None,
    ) -> Float[Tensor, "b n v"]:
        """Logits that predict each target given the prompt and the targets before it."""
        return self.head(self.shifted_hidden(prompt, targets, mask))

    def shifted_hidden(
        self,
        prompt: Prompt,
        targets: Int[Tensor, "b n"],
        mask: Bool[Tensor, "b n"] | None = None,
    ) -> Float[Tensor, "b n d"]:
        """The states that predict each target given the prompt and the targets before it; the head
        makes them logits.

        The only place of the label shift: state t predicts token t + 1.
        """
        mask = torch.ones_like(targets, dtype=torch.bool) if mask is None else mask
        full = prompt.append(self.embed(targets[:, :-1]), mask[:, :-1])
        first = prompt.embeds.shape[1] - 1
        return self.last_hidden(full)[:, first : first + targets.shape[1]]

    def packed_logits(
        self, prompt: Prompt, targets: Int[Tensor, "b n"], mask: Bool[Tensor, "b n"]
    ) -> Float[Tensor, "k v"]:
        """The rows of `logits` where the mask is True, one after another: with a large vocabulary,
        logits of padding are most of the memory of a ragged batch."""
        return self.head(self.shifted_hidden(prompt, targets, mask)[mask])

    def score(
        self,
        prompt: Prompt,
        targets: Int[Tensor, "b n"],
        mask: Bool[Tensor, "b n"] | None = None,
        temperature: float = 1.0,
    ) -> Float[Tensor, "b n"]:
        """Log-probabilities of target tokens at a temperature, differentiable; 0 where masked.

        Their negative sum is an evaluation's NLL, and what `token_loss` is the mean of.
        """
        chosen = token_log_probs(self.logits(prompt, targets, mask), targets, temperature)
        return chosen if mask is None else chosen.masked_fill(~mask, 0.0)

    def generate(
        self,
        prompt: Prompt,
        sampler: Sampler,
        max_new_tokens: int | Sequence[int],
        stop_ids: Sequence[int] | None = None,
        stop_strings: Sequence[str] = (),
        caching: Caching = "kv",
        samples: int = 1,
    ) -> Generation:
        """The only generation loop: exactly `max_new_tokens` steps unless every row stops before;
        one number for all rows, or one for each.

        A row ends with a token of `stop_ids` (the model's own if None; () for none) or with the
        first of `stop_strings` in its text. caching: "kv" feeds one token a step over a growing
        cache; "none" runs the whole sequence each step; "checkpoint" does that too, but keeps no
        activations for the backward pass. All three give the same tokens, states and gradients.
        samples: continuations of each row, next to each other in the result; with "kv" they share
        one pass over the prompt. The sampler sees all of them as rows. Raises
        FloatingPointError where the model computes NaN.
        """
        check_texts(stop_strings, "stop_strings")
        most = torch.as_tensor(max_new_tokens, device=self.device).expand(len(prompt.mask))
        if int(most.min()) < 1 or samples < 1:
            short = "samples" if samples < 1 else "max_new_tokens"
            raise ValueError(f"{short} is {min(int(most.min()), samples)}; expected at least 1")
        self._check_length(int((prompt.next_position + most).max()))
        stops = self.stop_ids if stop_ids is None else tuple(stop_ids)
        with resting(self.model, self.adapter):
            return generated(self, prompt, sampler, most, stops, stop_strings, caching, samples)

    # -- adapters -----------------------------------------------------------------------------

    def with_adapter(self, adapter: str | None) -> FrozenLM:
        """A view of the same model in which every call runs with this LoRA adapter on (None: all
        off). Add one first with `add_lora`."""
        if adapter is not None and adapter not in getattr(self.model, "peft_config", {}):
            have = ", ".join(getattr(self.model, "peft_config", {})) or "none"
            raise ValueError(f"no adapter {adapter!r} on {self.name}; it has: {have}")
        view = copy(self)
        view.adapter = adapter
        return view

    def add_lora(self, adapter: str, config: Any) -> FrozenLM:
        """Add a trainable LoRA adapter (a peft.LoraConfig), in float32 or finer, and return the
        view that runs it."""
        add(self.model, adapter, config)
        return self.with_adapter(adapter)

    def adapter_parameters(self) -> dict[str, Tensor]:
        """The trainable tensors of this view's adapter, by name."""
        return lora_parameters(self.model, self.adapter)

    # -- inside -------------------------------------------------------------------------------

    def _forward(
        self,
        prompt: Prompt,
        keep_cache: bool = False,
        hooks: Sequence[tuple[Any, Any]] = (),
        attention: Attention | None = None,
    ) -> tuple[Tensor, KVPrefix | None]:
        """Final states [b, t, d] and, on request, the grown cache. Every path ends here, in one
        turn. hooks: see modules after all that the prompt does to them. attention: what another
        attention implementation is on in; it needs all masks, and knows no slots of heads."""
        self._check_length(int(prompt.positions.max()) + 1)
        cached = keep_cache or prompt.prefix is not None
        cache = as_cache(prompt.prefix, keep_cache) if cached else None
        with turn(self.model):  # what attends now is the model's own, and of no other pass
            setting, sparing = self._attention(prompt, attention)
            changes = [(self._block(layer), hook) for layer, hook in changing(prompt)]
            with hooked([*changes, *hooks]), recomputed(self.blocks, setting):
                output = self.body(
                    inputs_embeds=prompt.embeds,
                    attention_mask=attention_mask(prompt, self.model.config, sparing),
                    position_ids=prompt.positions,
                    past_key_values=cache,
                    use_cache=cache is not None,
                )
        prefix = grown(cache, prompt) if cache is not None and keep_cache else None
        return output.last_hidden_state, prefix

    def _outside(self, module: Any, x: Tensor) -> Tensor:
        """Run a module outside of the body, with this view's adapter where it has any."""
        if not any("lora_" in name for name, _ in module.named_parameters()):
            return module(x)
        with adapted(self.model, self.adapter):
            return module(x)

    def _attention(
        self, prompt: Prompt, other: Attention | None
    ) -> tuple[Callable[[], AbstractContextManager[None]], bool]:
        """The context that is on while blocks run, and if it can do without masks."""
        sparing = other is None and self.model.config._attn_implementation == "sdpa"
        if prompt.prefix is not None and prompt.prefix.ragged:
            if other is not None:
                raise ValueError(
                    "the prefix has slots of single heads, of whose attention there are no maps; "
                    "expected a prefix without"
                )
            return partial(self._setting, partial(attending_sparingly, prompt)), sparing
        if sparing:
            other = partial(attending_sparingly, prompt)
        return partial(self._setting, other or nullcontext), sparing

    @contextmanager
    def _setting(self, attention: Attention) -> Iterator[None]:
        """A turn with what has to be on while blocks run: the adapter and the attention."""
        with adapted(self.model, self.adapter), attention(self.model):
            yield
