"""The agreement checks: every path through the port against every other, and against Hugging Face.

    latentwire doctor smollm2-135m

tests/test_agreement.py runs the same checks on tiny models of each family. A check takes an LM, a
kind of input and whether the batch is ragged, and returns the largest difference that it saw.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from latentwire.lm.frozen import Caching, FrozenLM
from latentwire.lm.prompt import KVPrefix, Patch, Prompt, RaggedKV
from latentwire.lm.samplers import Greedy, Sampled, Sampler, StraightThroughGumbel, seeded_noise
from latentwire.lm.turns import turn

KINDS = ("ids", "embeds", "prefix", "ragged", "patch_one", "patch_all")
TEXTS = (
    "The Danube rises in the Black Forest and ends in the Black Sea.",
    "Seventeen ships left the harbour at dawn, and by evening only nine of them had come back.",
    "Copper conducts heat.",
)
LOGIT_TOLERANCE = 1e-4
"""Largest difference of logits or log-probabilities allowed in float32, where Hugging Face's own
paths through the model differ by less."""
ROUNDING = 4.0
"""Multiple of that difference that is allowed of a model where it is more: large ones round
more."""
GRADIENT_TOLERANCE = 1e-3
"""Largest relative difference of gradients between decoding modes in float32."""


@dataclass(frozen=True)
class Finding:
    """One check: the largest difference seen and the largest allowed."""

    check: str
    kind: str
    ragged: bool
    difference: float
    tolerance: float

    @property
    def passed(self) -> bool:
        return self.difference <= self.tolerance


@dataclass(frozen=True)
class Case:
    """The same input twice: as a prompt of the port, and as what Hugging Face is given."""

    prompt: Prompt
    embeds: list[Tensor]
    """One [n, d] per row, all of it, prefix included."""
    patches: list[list[tuple[int, list[int], Tensor]]]
    """Per row: (layer, positions in the row, vectors)."""


def make_case(lm: FrozenLM, kind: str, ragged: bool) -> Case:
    """An input of one kind: ids, embeds, prefix (the first three tokens prefilled), ragged (all
    but the first of them, and one more in each row above the last, as slots of the heads),
    patch_one or patch_all (random vectors at two positions of one or every layer, as large as the
    states that are usual there: beside states of size 200 a vector of size 1 only magnifies
    rounding)."""
    texts = TEXTS if ragged else TEXTS[:1]
    rows = [torch.cat([lm.bos, lm.tokenize(text)]) for text in texts]
    embeds = [lm.embed(row) for row in rows]
    none: list[list[tuple[int, list[int], Tensor]]] = [[] for _ in rows]
    if kind == "ids":
        return Case(Prompt.from_ids(lm, rows), embeds, none)
    if kind == "prefix":
        prefix = lm.prefill(Prompt.from_ids(lm, [r[:3] for r in rows]))
        return Case(Prompt.from_ids(lm, [r[3:] for r in rows], prefix), embeds, none)
    if kind == "ragged":
        ends = range(2 + len(rows), 2, -1)
        rest = [row[end:] for row, end in zip(rows, ends, strict=True)]
        begun = [row[:end] for row, end in zip(rows, ends, strict=True)]
        return Case(Prompt.from_ids(lm, rest, _as_ragged(lm, begun)), embeds, none)
    if kind == "embeds":
        scale = embeds[0].std()
        noisy = [e + 0.1 * scale * _noise(e.shape, i).to(e) for i, e in enumerate(embeds)]
        return Case(Prompt.of(lm, [[e] for e in noisy]), noisy, none)
    depth = len(lm.blocks)
    layers = [depth // 2] if kind == "patch_one" else list(range(depth))
    patches, per_row = [], none
    with torch.no_grad():
        states = lm.states(Prompt.from_ids(lm, rows[:1])).inputs[:, 0].float()
    sizes = states.pow(2).mean(-1).sqrt().median(-1).values  # a first token's is many times that
    for layer in layers:
        size = sizes[min(layer + 1, depth - 1)]
        vectors = size.to(embeds[0]) * _noise((len(rows), 2, lm.width), layer).to(embeds[0])
        positions = torch.tensor([[1, 2]] * len(rows), device=lm.device)
        patches.append(Patch(layer, positions, vectors))
        for row, vector in zip(per_row, vectors, strict=True):
            row.append((layer, [1, 2], vector))
    return Case(Prompt.from_ids(lm, rows, patches=patches), embeds, per_row)


def _as_ragged(lm: FrozenLM, rows: Sequence[Tensor]) -> KVPrefix:
    """Rows of ids as a cache whose slots, but for the first, are each head's own."""
    caches = [lm.prefill(Prompt.from_ids(lm, [row])) for row in rows]
    heads = lm.kv_shape[0]
    places = [torch.arange(1, len(row), device=lm.device).repeat(heads) for row in rows]
    counts = torch.tensor([[len(row) - 1] * heads for row in rows], device=lm.device)

    def flat(layer: int, kind: str) -> Tensor:
        return torch.cat([getattr(c, kind)[layer][0, :, 1:].flatten(0, 1) for c in caches])

    return replace(
        lm.prefill(Prompt.from_ids(lm, [row[:1] for row in rows])),
        next_position=torch.tensor([len(row) for row in rows], device=lm.device),
        ragged=tuple(
            RaggedKV(flat(layer, "keys"), flat(layer, "values"), torch.cat(places), counts)
            for layer in range(len(lm.blocks))
        ),
    )


def logits_equal_hugging_face(lm: FrozenLM, kind: str, ragged: bool) -> float:
    """The port's logits against the Hugging Face model's own, row by row, without padding."""
    case = make_case(lm, kind, ragged)
    ours = lm.head(lm.last_hidden(case.prompt))
    worst = 0.0
    for row, (embeds, patches) in enumerate(zip(case.embeds, case.patches, strict=True)):
        with turn(lm.model), ExitStack() as hooks:
            for layer, positions, vectors in patches:
                handle = lm.blocks[layer].register_forward_hook(_overwrite(positions, vectors))
                hooks.callback(handle.remove)
            theirs = lm.model(inputs_embeds=embeds[None], use_cache=False).logits[0]
        n = int(case.prompt.mask[row].sum())
        worst = max(worst, _far(ours[row, -n:], theirs[-n:]))
    return worst


def prefill_equals_full_pass(lm: FrozenLM, kind: str, ragged: bool) -> float:
    """Prefill, then a continuation, against the same in one pass; logits of the continuation."""
    prompt = make_case(lm, kind, ragged).prompt
    more = torch.stack([lm.tokenize(TEXTS[1])[:5]] * len(prompt.mask))
    rest = Prompt.from_ids(lm, list(more), prefix=lm.prefill(prompt))
    full = prompt.append(lm.embed(more), torch.ones_like(more, dtype=torch.bool))
    return _far(lm.head(lm.last_hidden(rest)), lm.head(lm.last_hidden(full)[:, -5:]))


def batch_equals_rows(lm: FrozenLM, kind: str, ragged: bool) -> float:
    """A row of a batch against the row alone, on the logits of the last position."""
    case = make_case(lm, kind, ragged)
    together = lm.head(lm.last_hidden(case.prompt)[:, -1])
    worst = 0.0
    for row in range(len(together)):
        alone = [
            Patch(la, torch.tensor([p]).to(lm.device), v[None]) for la, p, v in case.patches[row]
        ]
        prompt = Prompt.of(lm, [[case.embeds[row]]], patches=alone)
        worst = max(worst, _far(lm.head(lm.last_hidden(prompt)[:, -1])[0], together[row]))
    return worst


def score_equals_decode(lm: FrozenLM, kind: str, ragged: bool) -> float:
    """Scored log-probabilities of generated tokens against generate's own, for every sampler."""
    prompt = make_case(lm, kind, ragged).prompt
    noise = seeded_noise(range(len(prompt.mask)))
    samplers: list[Sampler] = [Greedy(), Greedy(0.7), Sampled(noise), Sampled(noise, 1.3)]
    samplers += [StraightThroughGumbel(noise, tau=0.5, temperature=0.7)]
    worst = 0.0
    for sampler in samplers:
        out = lm.generate(prompt, sampler, 6)
        scored = lm.score(prompt, out.ids, out.mask, sampler.temperature)
        worst = max(worst, _far(scored, out.log_probs))
    return worst


def decoding_modes_agree(lm: FrozenLM, kind: str, ragged: bool) -> float:
    """Gumbel decoding cached, uncached and checkpointed: tokens must be the same (else infinity),
    and so must the gradients at the prompt, relative to the largest."""
    case = make_case(lm, kind, ragged)
    noise = seeded_noise(range(len(case.embeds)))
    results = [
        _gumbel_gradient(lm, case.prompt, noise, mode) for mode in ("kv", "none", "checkpoint")
    ]
    ids, gradient = results[0]
    if not all(torch.equal(ids, other) for other, _ in results[1:]):
        return float("inf")
    return max(_far(gradient, g) for _, g in results[1:]) / max(gradient.abs().max().item(), 1e-30)


def weights_get_no_gradient(lm: FrozenLM, kind: str, ragged: bool) -> float:
    """The number of weights of the LM that hold a gradient after a backward pass through it."""
    prompt = make_case(lm, kind, ragged).prompt
    _gumbel_gradient(lm, prompt, seeded_noise(range(len(prompt.mask))), "kv")
    return float(sum(p.grad is not None for p in lm.model.parameters()))


def hidden_equals_hugging_face(lm: FrozenLM, kind: str, ragged: bool) -> float:
    """`hidden(prompt, layer)` against hidden_states[layer + 1]; the last layer, which Hugging Face
    norms, is left out."""
    case = make_case(lm, kind, ragged)
    layers = range(0, len(lm.blocks) - 1, max(1, len(lm.blocks) // 4))
    worst = 0.0
    for row, embeds in enumerate(case.embeds):
        with turn(lm.model):
            whole = {"use_cache": False, "output_hidden_states": True}
            theirs = lm.model(inputs_embeds=embeds[None], **whole)
        n = int(case.prompt.mask[row].sum())
        for layer in layers:
            expected = theirs.hidden_states[layer + 1][0, -n:]
            difference = _far(lm.hidden(case.prompt, layer)[row, -n:], expected)
            worst = max(worst, difference / max(expected.abs().max().item(), 1.0))
    return worst


Check = Callable[[FrozenLM, str, bool], float]
CHECKS: dict[str, tuple[Check, tuple[str, ...], float]] = {
    "logits = Hugging Face": (logits_equal_hugging_face, KINDS, LOGIT_TOLERANCE),
    "hidden = Hugging Face": (hidden_equals_hugging_face, KINDS[:4], LOGIT_TOLERANCE),
    "prefill + rest = full pass": (prefill_equals_full_pass, KINDS, LOGIT_TOLERANCE),
    "row in batch = row alone": (batch_equals_rows, KINDS, LOGIT_TOLERANCE),
    "score = decode": (score_equals_decode, KINDS, LOGIT_TOLERANCE),
    "cached = uncached = checkpointed": (decoding_modes_agree, KINDS, GRADIENT_TOLERANCE),
    "no gradient on weights": (weights_get_no_gradient, KINDS[:1], 0.0),
}
"""Name -> (check, kinds of input it runs on, tolerance)."""


def examine(lm: FrozenLM) -> Iterator[Finding]:
    """All checks on one model, as they finish."""
    logits = max(LOGIT_TOLERANCE, ROUNDING * rounding(lm))
    for name, (check, kinds, tolerance) in CHECKS.items():
        tolerance = logits if tolerance == LOGIT_TOLERANCE else tolerance
        for kind in kinds:
            for ragged in (False, True):
                yield Finding(name, kind, ragged, check(lm, kind, ragged), tolerance)


@torch.no_grad()
def rounding(lm: FrozenLM) -> float:
    """Largest difference of Hugging Face's own logits between one pass and two, the second of which
    goes on from the first one's cache."""
    with turn(lm.model):
        return max(_rounding(lm, text) for text in TEXTS)


def _rounding(lm: FrozenLM, text: str) -> float:
    ids = torch.cat([lm.bos, lm.tokenize(text)])[None]
    half = ids.shape[1] // 2
    begun = lm.model(ids[:, :half], use_cache=True).past_key_values
    rest = lm.model(ids[:, half:], past_key_values=begun).logits[0]
    return _far(rest, lm.model(ids).logits[0, half:])


def _gumbel_gradient(lm: FrozenLM, prompt: Prompt, noise, mode: Caching) -> tuple[Tensor, Tensor]:
    embeds = prompt.embeds.detach().clone().requires_grad_()
    fresh = Prompt(embeds, prompt.mask, prompt.positions, prompt.prefix, prompt.patches)
    out = lm.generate(fresh, StraightThroughGumbel(noise), 5, stop_ids=(), caching=mode)
    (gradient,) = torch.autograd.grad(out.log_probs.sum() + out.embeds.square().sum(), embeds)
    return out.ids, gradient


def _overwrite(positions: list[int], vectors: Tensor):
    def hook(_module, _args, output):
        hidden = output[0] if isinstance(output, tuple) else output
        hidden[:, positions] = vectors
        return output

    return hook


def _noise(shape, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _far(a: Tensor, b: Tensor) -> float:
    return (a.detach() - b.detach()).abs().max().item()
