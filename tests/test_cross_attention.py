"""Cross-attention into a frozen reader: whatever follows the prefix attends to the latents, in one
pass or many, in a batch or alone, scored or generated."""

from dataclasses import replace

import pytest
import torch
from tiny import tiny_lm

from latentwire.lm import (
    FrozenLM,
    Greedy,
    KVPrefix,
    Patch,
    Prompt,
    StraightThroughGumbel,
    gradient_checkpointing,
    seeded_noise,
)
from latentwire.wire.learned.injectors import INJECTORS, Injector, LatentBatch

WIDTH, CHANNELS = 128, 8  # two heads
QUESTIONS = ["Who built it?", "When?", "And what of the sea?"]


class Case:
    """A reader, its injectors with open gates, and latents of three texts of different lengths."""

    def __init__(self, family: str, before: tuple[str, ...], gate: float = 0.7):
        self.lm: FrozenLM = tiny_lm(family)
        torch.manual_seed(1)
        names = (*before, "cross_attention")
        self.ways: list[Injector] = [
            INJECTORS[name](self.lm, CHANNELS, WIDTH, "regression") for name in names
        ]
        self.head = self.lm.prefill(Prompt.from_ids(self.lm, [self.lm.frame.prefix]))
        mask = torch.tensor([[True] * 5, [False] * 2 + [True] * 3, [False] * 4 + [True]])
        values, states = torch.randn(3, 5, CHANNELS), torch.randn(3, 5, WIDTH)
        self.slots = LatentBatch(values, states, mask, torch.tensor([20, 11, 4]))
        for way in self.ways:
            way.calibrate(self.lm, ["The sea was calm."], [values[0]], [5.0])
        for place in self.ways[-1].places:
            torch.nn.init.constant_(place.gate, gate)

    @property
    def parameters(self) -> dict[str, torch.Tensor]:
        return dict(self.ways[-1].named_parameters())

    def prefix(self, slots: LatentBatch | None = None) -> KVPrefix:
        made = [way(self.lm, self.head, slots or self.slots) for way in self.ways]
        return replace(made[0], memories=made[-1].memories)

    def prompt(self, prefix: KVPrefix | None = None) -> Prompt:
        rows = [self.lm.tokenize(question) for question in QUESTIONS]
        return Prompt.from_ids(self.lm, rows, prefix or self.prefix())


@pytest.fixture(scope="module", params=[(), ("embeddings",)], ids=["alone", "after_embeddings"])
def before(request) -> tuple[str, ...]:
    return request.param


@pytest.fixture(scope="module", params=["llama", "gemma3"])
def case(request, before) -> Case:
    return Case(request.param, before)


def by_hand(place, x: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
    """States [t, d] after attention over a memory [m, w], a head of 64 at a time."""
    queries, keys, values = place.query(place.norm(x)), place.key(memory), place.value(memory)
    seen = [
        (queries[:, head] @ keys[:, head].T / 8).softmax(1) @ values[:, head]
        for head in (slice(0, 64), slice(64, 128))
    ]
    return x + torch.tanh(place.gate) * place.deviation * place.out(torch.cat(seen, 1))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@torch.no_grad()
def test_logits_are_those_of_hugging_face_with_attention_by_hand(family):
    case = Case(family, ())
    lm, way, start = case.lm, case.ways[-1], len(case.head)
    ours = lm.head(lm.last_hidden(case.prompt()))
    for row, question in enumerate(QUESTIONS):
        rest, memory = lm.tokenize(question), way.norm(case.slots.states[row, case.slots.mask[row]])

        def change(place, output, memory=memory):
            x = output[0] if isinstance(output, tuple) else output
            x[0, start:] = by_hand(place, x[0, start:], memory)

        handles = [
            lm.blocks[layer].register_forward_hook(lambda _m, _a, x, at=place: change(at, x))
            for layer, place in zip((0, 1, 2), way.places, strict=True)
        ]
        ids = torch.cat([lm.frame.prefix, rest])
        places = torch.arange(len(ids))
        places[start:] += case.slots.spans[row]
        theirs = lm.model(ids[None], position_ids=places[None]).logits[0, start:]
        for handle in handles:
            handle.remove()
        torch.testing.assert_close(ours[row, -len(rest) :], theirs, atol=1e-4, rtol=0)


def test_deviations_are_those_of_block_outputs():
    case = Case("llama", ())
    lm, texts = case.lm, ["One text.", "Another, longer one."]
    case.ways[0].calibrate(lm, texts, [], [])
    rows = [torch.cat([lm.frame.prefix, lm.tokenize(text)])[None] for text in texts]
    states = [lm.model(row, output_hidden_states=True).hidden_states for row in rows]
    for layer in (0, 1):  # Hugging Face norms the last
        outputs = torch.cat([s[layer + 1][0, len(lm.frame.prefix) :] for s in states])
        deviation = case.ways[0].places[layer].deviation
        torch.testing.assert_close(deviation, outputs.std(0), atol=1e-5, rtol=1e-5)


def test_a_shut_gate_changes_nothing_and_opens(before):
    case = Case("gemma3", before, gate=0.0)
    lm, prefix = case.lm, case.prefix()
    prompt, targets = case.prompt(prefix), torch.tensor([[5, 6, 7]] * 3)
    without = case.prompt(replace(prefix, memories=()))
    assert torch.equal(lm.logits(prompt, targets), lm.logits(without, targets))

    optimizer = torch.optim.SGD(case.parameters.values(), lr=0.1)
    (-lm.score(prompt, targets).mean()).backward()
    for name, parameter in case.parameters.items():
        assert parameter.grad.any() == name.endswith(".gate"), name
    optimizer.step()
    optimizer.zero_grad()
    (-lm.score(case.prompt(), targets).mean()).backward()
    assert all(p.grad is not None and p.grad.any() for p in case.parameters.values())
    assert all(p.grad is None for p in lm.model.parameters())


def test_scores_are_the_log_probabilities_of_decoding(case):
    noise = seeded_noise(range(3))
    for sampler in (Greedy(), StraightThroughGumbel(noise, tau=0.5, temperature=0.7)):
        prompt = case.prompt()
        out = case.lm.generate(prompt, sampler, 6, stop_ids=())
        scored = case.lm.score(prompt, out.ids, out.mask, sampler.temperature)
        torch.testing.assert_close(scored, out.log_probs, atol=1e-4, rtol=0)
    shut = case.prompt(replace(case.prefix(), memories=()))
    far = case.lm.score(shut, out.ids, out.mask, sampler.temperature) - out.log_probs
    assert far.abs().max() > 0.1  # the latents are read


def test_decoding_modes_agree_in_tokens_and_gradients(case):
    parameters, noise = list(case.parameters.values()), seeded_noise(range(3))
    seen = []
    for mode in ("kv", "none", "checkpoint"):
        sampler = StraightThroughGumbel(noise)
        out = case.lm.generate(case.prompt(), sampler, 6, stop_ids=(), caching=mode)
        loss = out.log_probs.sum() + out.embeds.square().sum()
        seen.append((out.ids, torch.autograd.grad(loss, parameters)))
    for ids, gradients in seen[1:]:
        assert torch.equal(ids, seen[0][0])
        for ours, theirs in zip(gradients, seen[0][1], strict=True):
            assert (ours - theirs).abs().max() <= 1e-3 * theirs.abs().max()


def test_a_row_of_a_batch_is_the_row_alone(case):
    prefix, lm = case.prefix(), case.lm
    together = lm.head(lm.last_hidden(case.prompt(prefix))[:, -1])
    slots = case.slots
    for row, question in enumerate(QUESTIONS):
        real = slots.mask[row]
        one = LatentBatch(
            slots.values[row, real][None],
            slots.states[row, real][None],
            real[real][None],
            slots.spans[row : row + 1],
        )
        for alone in (case.prefix(one), prefix.rows(torch.tensor([row]))):
            logits = lm.head(
                lm.last_hidden(Prompt.from_ids(lm, [lm.tokenize(question)], alone))[0, -1]
            )
            torch.testing.assert_close(logits, together[row], atol=1e-4, rtol=0)


def test_a_prompt_in_two_parts_is_the_prompt(case):
    lm, prefix = case.lm, case.prefix()
    whole = lm.tokenize("Once upon a time")
    first = lm.prefill(Prompt.from_ids(lm, [whole[:7]] * 3, prefix))
    parts = lm.last_hidden(Prompt.from_ids(lm, [whole[7:]] * 3, first))
    full = lm.last_hidden(Prompt.from_ids(lm, [whole] * 3, prefix))
    torch.testing.assert_close(lm.head(parts), lm.head(full[:, 7:]), atol=1e-4, rtol=0)


def test_samples_share_the_memories(case):
    noise = seeded_noise(range(6))
    prompt = case.prompt()
    shared = case.lm.generate(prompt, StraightThroughGumbel(noise), 5, stop_ids=(), samples=2)
    each = case.lm.generate(prompt.repeat(2), StraightThroughGumbel(noise), 5, stop_ids=())
    assert torch.equal(shared.ids, each.ids)
    torch.testing.assert_close(shared.log_probs, each.log_probs, atol=1e-4, rtol=0)


def test_checkpointed_blocks_have_the_same_gradients(case):
    targets = torch.tensor([[5, 6, 7]] * 3)

    def gradients(checkpointed: bool):
        with gradient_checkpointing(checkpointed):
            value = case.lm.score(case.prompt(), targets).sum()
        return torch.autograd.grad(value, list(case.parameters.values()))

    for one, two in zip(gradients(False), gradients(True), strict=True):
        assert torch.equal(one, two) and one.any()


def test_block_outputs_have_the_memories_in_them_and_patches_replace_them(case):
    lm, prompt = case.lm, case.prompt()
    torch.testing.assert_close(lm.hidden(prompt, 0), lm.states(prompt).inputs[1])
    shut = case.prompt(replace(case.prefix(), memories=()))
    assert (lm.hidden(prompt, 0) - lm.hidden(shut, 0)).abs().max() > 0.01
    vectors = torch.randn(3, 1, lm.width)
    patched = replace(prompt, patches=(Patch(0, torch.tensor([[-1]] * 3), vectors),))
    assert torch.equal(lm.hidden(patched, 0)[:, -1:], vectors)


def test_bytes_are_those_of_cache_and_memories(case):
    prefix = case.prefix()
    cache = 3 * 2 * 3 * 2 * len(prefix) * 8 * 4  # layers, keys and values, rows, heads
    assert prefix.nbytes() == cache + 3 * 2 * 3 * 5 * WIDTH * 4
