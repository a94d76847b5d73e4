"""The decoder's patches through every path: one layer, N layers, all layers, on all families."""

import pytest
import torch
from tiny import CONFIGS, tiny_lm

from latentwire.lens.activations import at, draw, stream, tokenized
from latentwire.lens.decoder import Decoder, DecoderConfig, words
from latentwire.lens.encoder import Encoder, EncoderConfig
from latentwire.lens.interventions import swapping
from latentwire.lens.objectives import next_token_kl
from latentwire.lm import Greedy, Patch, Prompt, Sampled, StraightThroughGumbel, seeded_noise
from latentwire.lm.doctor import TEXTS

LAYERS = [0, 1, 2, 3]
"""The input alone, one layer, N layers, all of the tiny models' layers."""


@pytest.fixture(scope="module", params=list(CONFIGS))
def lm(request):
    return tiny_lm(request.param)


def decoder(lm, layers: int, tokens: int, lora: int = 0) -> Decoder:
    made = Decoder(
        lm, DecoderConfig("It {activation} is", layers, lora=lora, max_new_tokens=tokens)
    )
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():  # projections as training leaves them: no longer the identity
        for tensor in made.tensors().values():
            tensor += 0.05 * torch.randn(tensor.shape, generator=generator)
    return made


def vectors(lm, rows: int = 2) -> torch.Tensor:
    return torch.randn(rows, lm.width, generator=torch.Generator().manual_seed(2))


class Recording:
    """A sampler that never stops and keeps the logits it was shown."""

    def __init__(self, sampler):
        self.sampler, self.seen, self.temperature = sampler, [], sampler.temperature

    def __call__(self, logits, step):
        self.seen.append(logits.detach())
        return self.sampler(logits, step)


@pytest.mark.parametrize(("layers", "length"), [*((n, 10) for n in LAYERS), (2, 50)])
def test_decoding_modes_agree_on_tokens_logits_and_gradients(lm, layers, length):
    d, v = decoder(lm, layers, length), vectors(lm).requires_grad_()
    leaves = {"activation": v, **{n: t for n, t in d.tensors().items() if "project" in n}}
    weighing = torch.randn(lm.width, generator=torch.Generator().manual_seed(3))
    results = {}
    for mode in ("kv", "none", "checkpoint"):
        sampler = Recording(StraightThroughGumbel(seeded_noise([3, 4]), tau=2.0, temperature=1.3))
        out = lm.generate(d.prompt(v), sampler, length, stop_ids=(), caching=mode)
        loss = (out.embeds @ weighing).sum() + out.log_probs.sum()
        results[mode] = out.ids, sampler.seen, torch.autograd.grad(loss, list(leaves.values()))
    ids, logits, gradients = results["none"]
    assert ids.shape == (2, length)
    for mode, allowed in (("kv", 2e-5), ("checkpoint", 1e-3)):
        assert torch.equal(results[mode][0], ids)
        for a, b in zip(results[mode][1], logits, strict=True):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=0)
        for name, a, b in zip(leaves, results[mode][2], gradients, strict=True):
            assert b.norm() > 0, name
            assert (a - b).norm() <= allowed * b.norm(), (mode, name)


@pytest.mark.parametrize("layers", LAYERS)
@pytest.mark.parametrize("temperature", [0.7, 1.3])
def test_score_equals_the_generations_own_probabilities(lm, layers, temperature):
    d, v = decoder(lm, layers, 12), vectors(lm)
    out = d.generate(v, Sampled(seeded_noise(range(6)), temperature), samples=3)
    scored = d.score(v, out.ids, out.mask, temperature)
    torch.testing.assert_close(scored, out.log_probs, atol=1e-4, rtol=0)
    each = d.score(v.repeat_interleave(3, 0), out.ids, out.mask, temperature)
    torch.testing.assert_close(scored, each, atol=1e-5, rtol=0)


@pytest.mark.parametrize("layers", LAYERS)
def test_k_samples_of_one_prefill_equal_single_calls(lm, layers):
    d, v = decoder(lm, layers, 8), vectors(lm)
    for mode in ("kv", "none"):
        together = d.generate(v, Sampled(seeded_noise([5, 6, 7, 8])), samples=2, caching=mode)
        for i, seed in enumerate((5, 6, 7, 8)):
            alone = d.generate(v[i // 2 : i // 2 + 1], Sampled(seeded_noise([seed])))
            real = alone.ids.shape[1]
            assert together.ids[i, :real].tolist() == alone.ids[0].tolist()
            assert together.texts[i] == alone.texts[0]


@pytest.mark.parametrize("layers", LAYERS)
def test_the_prompt_is_the_template_with_the_vector_in_its_slot(lm, layers):
    d, v = decoder(lm, layers, 4), vectors(lm, 1)
    places = [v @ w.T * g + b for w, b, g in zip(*d.project.parameters(), d.project.gain)]  # noqa: B905
    embeds = torch.cat([d.before, places[0], d.after])
    hooks = []
    for layer, vector in enumerate(places[1:]):

        def overwrite(_module, _args, output, vector=vector):
            hidden = output[0] if isinstance(output, tuple) else output
            hidden[:, len(d.before)] = vector
            return output

        hooks.append(lm.blocks[layer].register_forward_hook(overwrite))
    with torch.no_grad():
        expected = lm.model(inputs_embeds=embeds[None], use_cache=False).logits[0, -1]
    for hook in hooks:
        hook.remove()
    ours = lm.head(lm.last_hidden(d.prompt(v))[0, -1])
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)


def test_a_decoder_starts_with_the_vector_at_the_usual_norm(lm):
    v = vectors(lm)
    norm = v.norm(dim=1).mean().item()
    decoder = Decoder(lm, DecoderConfig(layers=3), norm)
    matched = decoder.project(v)
    prompt = Prompt.from_ids(lm, [torch.cat(decoder.ids)])
    for layer in range(3):
        usual = lm.hidden(prompt, layer)[0].norm(dim=1).median()
        assert matched[layer + 1].norm(dim=1).mean().item() == pytest.approx(usual.item(), rel=1e-4)


def test_extracted_activations_equal_hugging_faces_hidden_states(lm):
    texts = tokenized(lm, list(TEXTS), window=40, skip=2)
    for layer in range(2):  # Hugging Face applies the final norm to the last
        for batch in stream(lm, layer, texts, count=5, seed=1):
            for vector, text, position in zip(
                batch.vectors, batch.texts, batch.positions, strict=True
            ):
                theirs = lm.model(text.ids[None], output_hidden_states=True).hidden_states
                expected = theirs[layer + 1][0, position]
                torch.testing.assert_close(vector, expected, atol=1e-5, rtol=1e-5)


def test_swapping_an_activation_with_itself_changes_nothing(lm):
    texts = tokenized(lm, list(TEXTS), window=40, skip=2)
    for layer in range(3):
        batch = at(lm, layer, draw(texts, 2, 0))
        swap = swapping(lm, layer, batch.texts, batch.positions)
        original = swap(None)
        assert next_token_kl(original, swap(batch.vectors)).abs().max() <= 1e-6
        if layer < 2:  # what the last block says is not mixed any more: a swap there is seen too
            assert next_token_kl(original, swap(batch.vectors.flip(0))).max() > 1e-4


def test_a_swap_equals_a_patched_full_pass(lm):
    """Also of two tokens of one text, of a first token, and for several vectors of one token."""
    texts = tokenized(lm, list(TEXTS), window=40, skip=0)
    places = [(texts[0], 9), (texts[1], 6), (texts[0], 12), (texts[2], 0)]
    v = vectors(lm, 8)
    ours = swapping(lm, 1, *zip(*places, strict=True), k=2)(v)
    for row, (text, position) in enumerate(p for p in places for _ in range(2)):
        patch = Patch(1, torch.tensor([[position]]), v[row][None, None])
        full = lm.last_hidden(Prompt.from_ids(lm, [text.ids[: position + 1]], patches=[patch]))
        torch.testing.assert_close(ours[row], lm.head(full[0, -1]), atol=1e-4, rtol=0)


def test_the_encoder_reads_the_state_of_its_last_position(lm):
    encoder = Encoder(lm, 1, EncoderConfig(before=3))
    rows = [lm.tokenize("a river"), lm.tokenize("in the far north")]
    made = encoder(rows)
    for vector, ids in zip(made, rows, strict=True):
        embeds = torch.cat([encoder.before, lm.embed(ids)])
        theirs = lm.model(inputs_embeds=embeds[None], output_hidden_states=True).hidden_states
        torch.testing.assert_close(vector, theirs[2][0, -1], atol=1e-5, rtol=1e-5)


def test_the_encoder_takes_soft_text_and_leaves_it_as_it_was(lm):
    encoder = Encoder(lm, 1, EncoderConfig(before=3))
    ids = lm.tokenize("a river")
    soft = lm.embed(ids).detach().clone().requires_grad_()
    before = soft.detach().clone()
    made = encoder([soft, soft[:0]])
    torch.testing.assert_close(made[:1], encoder([ids]), atol=1e-6, rtol=0)
    assert torch.equal(soft, before)
    made[0].sum().backward()
    assert soft.grad.norm() > 0
    assert all(p.grad is None for n, p in lm.model.named_parameters() if "lora_" not in n)


def test_gradients_reach_the_decoder_through_the_encoder(lm):
    """A straight-through explanation, read by the encoder, with a LoRA on each of the two."""
    fresh = tiny_lm(lm.name.removeprefix("tiny-"))
    d = decoder(fresh, 2, 6, lora=2)
    encoder = Encoder(fresh, 1, EncoderConfig(before=3, lora=2))
    v = vectors(fresh)
    out = d.generate(v, StraightThroughGumbel(seeded_noise([1, 2])))
    keep = words(out, fresh)
    made = encoder([row[k] for row, k in zip(out.embeds, keep, strict=True)])
    (made - v).square().sum().backward()
    for name, tensor in (d.tensors() | {f"e{n}": t for n, t in encoder.tensors().items()}).items():
        assert tensor.grad is not None, name
    assert all(p.grad is None for n, p in fresh.model.named_parameters() if "lora_" not in n)
    assert len(d.tensors()) > len(encoder.tensors()) > 4  # the encoder's LoRA ends at its layer


def test_without_its_lora_a_part_is_the_plain_model(lm):
    fresh = tiny_lm(lm.name.removeprefix("tiny-"))
    plain = decoder(fresh, 1, 4)
    adapted = decoder(fresh, 1, 4, lora=2)
    v = vectors(fresh)
    with torch.no_grad():
        for name, tensor in plain.tensors().items():
            adapted.tensors()[name].copy_(tensor)
    a = plain.generate(v, Greedy(), caching="none").log_probs
    assert not torch.equal(adapted.generate(v, Greedy()).log_probs, a)
    torch.testing.assert_close(plain.generate(v, Greedy()).log_probs, a, atol=1e-5, rtol=0)
