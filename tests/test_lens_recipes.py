"""A whole training and a whole evaluation of a lens on a tiny model, and the commands."""

import json
import os
import signal
import sys
import threading
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from shutil import copytree

import pytest
import torch
import torch.distributed as dist
from test_parallel import assert_same_losses, assert_sharded, in_two_processes
from tiny import tiny_lm

from latentwire.__main__ import main
from latentwire.bench import lens as lens_bench
from latentwire.lens import steps as steps
from latentwire.lens import training as recipes
from latentwire.lens.activations import at, draw, dump, read_documents, tokenized
from latentwire.lens.checks import LensError
from latentwire.lens.config import Data, LensRecipe, Rates, Weights
from latentwire.lens.decoder import DecoderConfig
from latentwire.lens.encoder import EncoderConfig
from latentwire.lens.evaluation import LensEvaluation, evaluate_lens, reconstructions
from latentwire.lens.explain import explain_text
from latentwire.lens.lens import Lens, LensConfig
from latentwire.lens.training import smollm2, train_lens
from latentwire.lm import FrozenLM, Patch, Prompt, Sampled, seeded_noise
from latentwire.tasks.base import DataError
from latentwire.train import parallel
from latentwire.train.loop import LoopConfig
from latentwire.train.schedules import Schedule

PLACES = ("sea", "hill", "wood", "lake", "moor")
DOCUMENTS = [f"Number {7 * i} is a river by the {PLACES[i % 5]} of old." for i in range(30)]
CONTROLS = [
    "mean",
    "zero",
    "other_text",
    "shuffled_words",
    "shuffled_but_last",
    "current_token",
    "previous_tokens",
    "untrained_decoder",
    "logit_lens",
]


@pytest.fixture(scope="module", autouse=True)
def fresh_lm():
    """Each load gives a new model, as in a new process: adapters of one run are not in the next."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FrozenLM, "from_pretrained", classmethod(lambda *_: tiny_lm("llama")))
        yield


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "t.txt"
    path.write_text("\n\n".join(DOCUMENTS))
    return path


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs of the recipe that nothing interrupted, by `refine`; each is trained once."""
    folder = tmp_path_factory.mktemp("lens")
    path = folder / "t.txt"
    path.write_text("\n\n".join(DOCUMENTS))
    return cache(lambda refine: train_lens(recipe(path, folder / refine, refine=refine)))


@pytest.fixture
def trained(runs):
    return str(runs("grpo") / "lens")


def recipe(text, out, **changes) -> LensRecipe:
    on = Schedule(0.5)
    settings = dict(
        text=(text,),
        out=out,
        data=Data(held_out=0.2, window=32, documents=4, positions=2, before=3),
        warm=LoopConfig(steps=4, lr=0.01, warmup=1, save_every=2),
        joint=LoopConfig(steps=3, lr=0.005, warmup=1, save_every=2),
        group=3,
        weights=Weights(kl=on),
        tau=Schedule(2.0, 1.0, over=2.0),
        rates=Rates(projections=Schedule(0.5), encoder=Schedule(2.0, 1.0, over=3.0)),
    )
    decoder = DecoderConfig("It {activation} is", layers=2, lora=2, max_new_tokens=6)
    lens = LensConfig("tiny-llama", 1, decoder, EncoderConfig(before=3, lora=2))
    return LensRecipe("tiny", lens, **(settings | changes))


def losses(folder) -> list[dict]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


@pytest.mark.parametrize(("refine", "stopped"), [("grpo", 6), ("gumbel", 6), ("grpo", 3)])
def test_interrupted_and_resumed_equals_uninterrupted(
    text, runs, tmp_path, monkeypatch, refine, stopped
):
    """In the joint stage of each kind, and in the warm one, which they have in common."""
    straight = runs(refine)
    batch_of, calls = steps.batch_of, []

    def interrupting(*arguments):
        calls.append(1)
        if len(calls) == stopped:
            signal.raise_signal(signal.SIGINT)
        return batch_of(*arguments)

    monkeypatch.setattr(steps, "batch_of", interrupting)
    with pytest.raises(KeyboardInterrupt):
        train_lens(recipe(text, tmp_path / "b", refine=refine))
    assert len(losses(tmp_path / "b")) == stopped
    resumed = train_lens(recipe(text, tmp_path / "b", refine=refine))
    assert losses(straight) == losses(resumed) and len(losses(straight)) == 7
    weights = "lens/lens.safetensors"
    assert (straight / weights).read_bytes() == (resumed / weights).read_bytes()


def test_the_warm_start_teaches_both_parts(text, tmp_path):
    warm = LoopConfig(steps=30, lr=0.05, warmup=2)
    data = Data(held_out=0.2, window=32, documents=4, positions=4, before=3)
    out = train_lens(recipe(text, tmp_path / "a", warm=warm, data=data, refine="none"))
    rows = losses(out)
    for name in ("nll", "mse"):
        first, last = (sum(r[name] for r in part) / 5 for part in (rows[:5], rows[-5:]))
        assert last < 0.75 * first, name


def test_grpo_raises_the_reward(text, tmp_path):
    """With the encoder held still, only the decoder's choice of words can lower the error."""
    made = recipe(
        text,
        tmp_path / "a",
        data=Data(held_out=0.2, window=32, documents=2, positions=4),
        joint=LoopConfig(steps=40, lr=0.05, warmup=1),
        weights=Weights(mse=Schedule(0.0), reference=Schedule(0.0)),
        group=8,
        rates=Rates(encoder=Schedule(0.0)),
    )
    short = replace(made.lens.decoder, max_new_tokens=2)
    out = train_lens(replace(made, lens=replace(made.lens, decoder=short)))
    errors = [r["mse"] for r in losses(out) if r["stage"] == "joint"]
    assert sum(errors[-13:]) < 0.97 * sum(errors[:13])


def test_what_grpo_rewards_by_kl(text, tmp_path):
    """The gradient is that of the advantages worked out from patched passes of the whole text."""
    made = recipe(text, tmp_path, reward="kl", weights=Weights(reference=Schedule(0.0)))
    lm = tiny_lm("llama")
    texts = tokenized(lm, read_documents([text])[:2], 32, 4)
    lens = Lens(lm, made.lens, recipes._measured(lm, texts, made, tmp_path))
    batch = at(lm, 1, [(texts[0], [6, 11]), (texts[1], [9])])
    parts = steps.joint_losses(lens, None, batch, made, 0, tau=1.0)
    assert set(parts) == {"mse", "kl", "policy"}

    noise = seeded_noise(steps._seeds(batch, made, 0, 3))
    said = lens.decoder.generate(batch.vectors, Sampled(noise, 1.0), 3)
    vectors = lens.reconstruct(said.texts).detach()
    kls = torch.zeros(9)
    for row in range(9):
        document, position = batch.texts[row // 3], batch.positions[row // 3]
        ids = document.ids[: position + 1]
        patch = Patch(1, torch.tensor([[position]]), vectors[row][None, None])
        logits = [
            lm.head(lm.last_hidden(Prompt.from_ids(lm, [ids], patches=patches))[0, -1]).log_softmax(
                -1
            )
            for patches in ([], [patch])
        ]
        kls[row] = (logits[0].exp() * (logits[0] - logits[1])).sum()
    torch.testing.assert_close(parts["kl"], kls.mean(), atol=1e-5, rtol=1e-4)
    errors = (vectors - batch.vectors[torch.arange(9) // 3]).square().sum(1)
    torch.testing.assert_close(parts["mse"], errors.mean() / lens.spread**2)
    rewards = -kls.view(3, 3)
    spread = rewards.std(1, correction=0, keepdim=True) + 1e-6
    advantages = ((rewards - rewards.mean(1, keepdim=True)) / spread).flatten()
    scored = lens.decoder.score(batch.vectors, said.ids, said.mask, 1.0)
    expected = -(scored.sum(1) / said.mask.sum(1) * advantages).mean()
    tensors = list(lens.decoder.tensors().values())
    for ours, theirs in zip(
        torch.autograd.grad(parts["policy"], tensors, allow_unused=True),
        torch.autograd.grad(expected, tensors, allow_unused=True),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-3)


def test_training_reads_a_dump_as_it_reads_the_model(text, runs, tmp_path):
    made = recipe(text, tmp_path / "a")
    dumped = replace(made, data=replace(made.data, dump=tmp_path / "dump"))
    plain, read = runs("grpo"), train_lens(dumped)
    assert (tmp_path / "dump" / "index.json").exists()
    for ours, theirs in zip(losses(read), losses(plain), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-3), ours["step"]
    with pytest.raises(LensError, match="was dumped with layer 1; expected 2"):
        other = replace(dumped, lens=replace(made.lens, layer=2), out=tmp_path / "c")
        train_lens(other)


def test_other_processes_wait_for_a_dump_in_no_collective(text, tmp_path, monkeypatch):
    """A collective of NCCL gives up after ten minutes; a dump of much text takes hours."""
    made = recipe(text, tmp_path / "a", data=Data(dump=tmp_path / "dump"))
    lm = tiny_lm("llama")
    texts = tokenized(lm, DOCUMENTS[:3], 32, 4)
    monkeypatch.setattr(parallel, "rank", lambda: 1)
    monkeypatch.setattr(parallel, "mean", None)
    first = threading.Timer(0.3, dump, (tiny_lm("llama"), 1, texts, tmp_path / "dump"))
    first.start()
    source = recipes._source(lm, texts, made)
    assert len(source(draw(texts, 2, 0))) == 6
    first.join()


def test_pairs_of_somebody_are_what_the_decoder_learns_to_say(text, tmp_path):
    pairs, lm = tmp_path / "pairs.jsonl", tiny_lm("llama")
    rows = [
        {"text": d, "token": len(lm.tokenize(d)) - 9, "explanation": PLACES[i % 5]}
        for i, d in enumerate(DOCUMENTS)  # "by the sea of old.": the token ends the place's name
    ]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = recipe(
        text,
        tmp_path / "a",
        data=Data(held_out=0.2, window=40, documents=5, positions=2, pairs=pairs),
        warm=LoopConfig(steps=50, lr=0.04, warmup=2),
        refine="none",
    )
    trained = Lens.from_pretrained(str(train_lens(made) / "lens"))
    says = {}
    for document, place in zip(DOCUMENTS[:5], PLACES, strict=True):
        rows = explain_text(trained, document, [len(lm.tokenize(document)) - 9])
        says[place] = rows[0].explanations[0].text
    assert says == {place: place for place in PLACES}
    pairs.write_text('{"text": "The sea.", "token": 8, "explanation": "a"}')
    with pytest.raises(DataError, match=r"pair 1: token is 8; expected one of the text's, 1..7"):
        train_lens(replace(made, out=tmp_path / "b"))
    assert not (tmp_path / "b").exists()


def test_damaged_statistics_are_one_line(runs, tmp_path):
    text, out = runs("grpo").parent / "t.txt", copytree(runs("grpo"), tmp_path / "a")
    kept = out / "statistics.safetensors"
    kept.write_bytes(kept.read_bytes()[:40])
    with pytest.raises(LensError, match=r"statistics\.safetensors is truncated or damaged; remove"):
        train_lens(recipe(text, tmp_path / "a"))


def test_rates_are_those_of_the_parts():
    falling = Schedule(7.0, 1.0, over=2.0, unit="epochs")
    rates = Rates(Schedule(2.0), prompts=Schedule(3.0), base=Schedule(5.0), encoder=falling)
    expected = {  # at the start, after one epoch, at the end
        "decoder.project": (2.0, 2.0, 2.0),
        "decoder.before": (1.5, 1.5, 1.5),  # of soft tokens, in units of the embeddings' size
        "decoder.lora": (5.0, 5.0, 5.0),
        "encoder.project": (14.0, 8.0, 2.0),
        "encoder.after": (10.5, 6.0, 1.5),
        "encoder.lora": (35.0, 20.0, 5.0),
    }
    found = {n: tuple(rates.of(n, step, 10, 0.5) for step in (0, 10, 25)) for n in expected}
    assert found == expected


def gradients(text, out) -> dict[str, torch.Tensor]:
    """Of one step of both stages, on documents of which some have fewer activations than others."""
    made = recipe(text, out, data=Data(0.2, 32, documents=4, positions=7, before=3))
    lm = tiny_lm("llama")
    texts = tokenized(lm, read_documents([text]), 32, 4)
    lens = Lens(lm, made.lens, recipes._measured(lm, texts, made, out))
    copy = steps.frozen_copy(lens)
    for step in (0, 1):
        batch, weight = steps.batch_of(partial(at, lm, 1), texts, made, step)
        parts = steps.joint_losses(lens, copy, batch, made, step, tau=1.0)
        parts |= steps.warm_losses(lens, batch, batch.up_to([made.data.before] * len(batch)))
        (weight * torch.stack(list(parts.values())).sum()).backward()
    parallel.average_gradients(list(lens.tensors().values()))
    return {n: t.grad for n, t in lens.tensors().items()}


def test_two_processes_give_the_gradients_of_one(text, tmp_path):
    text.write_text("\n\n".join(d[: 12 if i % 3 else 40] for i, d in enumerate(DOCUMENTS)))

    def one_of_two(rank: int) -> None:
        torch.save(gradients(text, tmp_path), tmp_path / f"{rank}.pt")
        dist.destroy_process_group()

    assert in_two_processes(one_of_two) == [0, 0]
    alone = gradients(text, tmp_path)
    for rank in (0, 1):
        shared = torch.load(tmp_path / f"{rank}.pt")
        assert list(shared) == list(alone)
        for name, gradient in alone.items():
            allowed = 1e-5 * max(gradient.norm().item(), 1e-3)
            assert (shared[name] - gradient).norm().item() <= allowed, name


def test_fsdp2_shares_out_the_frozen_weights_and_gives_the_same_losses(text, tmp_path, monkeypatch):
    few = LoopConfig(steps=2, lr=0.01, warmup=1)
    # One joint step: rounding decides between samples of one group that say the same.
    made = recipe(text, tmp_path / "a", warm=few, joint=replace(few, steps=1))
    lm = tiny_lm("llama")
    # Many tokens end an explanation, so that processes do not generate for as long as each other.
    monkeypatch.setattr(FrozenLM, "stop_ids", (2, *range(4, 100)))
    weights = lm.blocks[0].mlp.up_proj.weight.detach().clone()

    def sharded(rank: int) -> None:
        os.environ |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
        monkeypatch.setattr(FrozenLM, "from_pretrained", lambda *_: lm)
        train_lens(replace(made, out=tmp_path / "b"))
        # peft has put the matrix beside its LoRA, which stays whole
        up = lm.blocks[0].mlp.up_proj
        assert_sharded(rank, up.base_layer.weight, weights)
        assert not any(hasattr(p, "to_local") for p in up.lora_A.parameters())
        with pytest.raises(LensError, match="gumbel t"):
            train_lens(replace(made, out=tmp_path / "c", refine="gumbel"))
        dist.destroy_process_group()

    assert in_two_processes(sharded) == [0, 0]
    alone = train_lens(made)
    assert_same_losses(alone, tmp_path / "b", steps=3)
    saved = [
        json.loads((out / "lens" / "config.json").read_text()) for out in (alone, tmp_path / "b")
    ]
    assert saved[0]["model_weights"] == saved[1]["model_weights"]


def test_held_out_documents_are_kept_apart(text, tmp_path, monkeypatch):
    seen: list[str] = []
    tokenize = recipes.tokenized

    def keeping(lm, documents, window, skip):
        seen.extend([] if seen else documents)  # the first call is what is trained on
        return tokenize(lm, documents, window, skip)

    monkeypatch.setattr(recipes, "tokenized", keeping)
    once = LoopConfig(steps=1, lr=0.01, warmup=1)
    short = recipe(text, tmp_path / "a", warm=once, refine="none")
    held_out = read_documents([train_lens(short) / "held_out.txt"])
    assert len(held_out) == 6 and sorted(seen + held_out) == sorted(DOCUMENTS)


def test_evaluation_is_beside_its_controls(text, trained):
    lens = Lens.from_pretrained(trained)
    config = LensEvaluation(documents=8, positions=2, samples=2)
    result = evaluate_lens(lens, [text], config)
    assert list(result["controls"]) == CONTROLS and result["n"] == 16
    for row in (result, *result["controls"].values(), *result["references"].values()):
        assert row["fve_low"] <= row["fve"] <= row["fve_high"]
        assert {"cosine", "kl", "loss_recovered"} <= set(row)
    gaps = {name: gain["mean"] for name, gain in result["differences"].items()}
    own = {name: result["fve"] - row["fve"] for name, row in result["controls"].items()}
    assert gaps == pytest.approx(own, abs=1e-6)
    above = [gain["low"] > 0 for gain in result["differences"].values()]
    assert result["beats_every_control"] is all(above)
    mean, zero = result["controls"]["mean"], result["controls"]["zero"]
    assert (mean["fve"], mean["fve_low"], mean["fve_high"]) == pytest.approx((0, 0, 0), abs=1e-9)
    assert mean["loss_recovered"] == 0 and zero["cosine"] == 0
    again = evaluate_lens(lens, [text], config)
    assert again == result
    assert len(result["examples"]) == 10 and json.dumps(result)


def test_scores_are_what_hugging_face_gives(text, trained):
    """FVE, cosine, KL and loss recovered of the lens, with hooks of our own on the model."""
    lens = Lens.from_pretrained(trained)
    text.write_text("\n\n".join(DOCUMENTS[:10]))
    result = evaluate_lens(lens, [text], LensEvaluation(documents=10, positions=3))
    texts = tokenized(lens.lm, DOCUMENTS[:10], 128, 4)
    errors, distances, cosines, kls, losses_of = [], [], [], [], {"no": [], "own": [], "mean": []}
    for document, positions in draw(texts, 3, 0, followed=True):
        for position in positions:
            ids = document.ids[None, : position + 1]
            theirs = lens.lm.model(ids, output_hidden_states=True)
            vector = theirs.hidden_states[2][0, -1]
            made = lens.explain(vector[None])[0][0].vector
            errors.append((made - vector).square().sum())
            distances.append((lens.mean - vector).square().sum())
            cosines.append(made @ vector / made.norm() / vector.norm())
            log_probs = {"no": theirs.logits[0, -1].log_softmax(-1)}
            for name, swapped in (("own", made), ("mean", lens.mean)):

                def overwrite(_module, _args, output, swapped=swapped):
                    hidden = output[0] if isinstance(output, tuple) else output
                    hidden[:, -1] = swapped
                    return output

                hook = lens.lm.blocks[1].register_forward_hook(overwrite)
                log_probs[name] = lens.lm.model(ids).logits[0, -1].log_softmax(-1)
                hook.remove()
            kls.append((log_probs["no"].exp() * (log_probs["no"] - log_probs["own"])).sum())
            for name, values in log_probs.items():
                losses_of[name].append(-values[document.ids[position + 1]])
    mean_loss = {name: sum(v) / len(v) for name, v in losses_of.items()}
    recovered = (mean_loss["mean"] - mean_loss["own"]) / (mean_loss["mean"] - mean_loss["no"])
    expected = {
        "fve": 1 - sum(errors) / sum(distances),
        "cosine": sum(cosines) / len(cosines),
        "kl": sum(kls) / len(kls),
        "loss_recovered": recovered,
    }
    assert len(kls) == result["n"] == 30
    for name, value in expected.items():
        assert result[name] == pytest.approx(value.item(), rel=1e-2, abs=1e-4), name


def test_controls_are_what_their_names_say(text, trained):
    lens = Lens.from_pretrained(trained)
    texts = tokenized(lens.lm, ["Number 0 is a river.", "Number 14 is a river."], 32, 4)
    batch = at(lens.lm, 1, [(texts[0], [9, 10]), (texts[1], [12])])
    said = ["two words", "b", "word"]
    rows = reconstructions(lens, batch, said, ["x", "y z", ""], LensEvaluation())
    ids = lens.lm.tokenize

    def same(name, texts):
        expected = lens.encoder([ids(t) for t in texts])
        torch.testing.assert_close(rows[name], expected, atol=1e-5, rtol=1e-5)

    same("lens", said)
    same("other_text", ["word", "word", "two words"])  # the next that is of another document
    same("current_token", ["i", "s", " "])
    same("previous_tokens", ["Number 0 ", "i", "4 is"])
    same("true_text", ["umber 0 i", "s", " is "])
    assert torch.equal(rows["zero"], torch.zeros(3, 32))
    assert torch.equal(rows["mean"], lens.mean.expand(3, -1))
    same("shuffled_words", ["words two", "b", "word"])
    same("shuffled_but_last", ["two words", "b", "word"])
    same("untrained_decoder", ["x", "y z", ""])
    top = lens.lm.logit_lens(batch.vectors).argsort(descending=True, dim=1)
    ranked = [row[: len(t)] for row, t in zip(top, said, strict=True)]
    torch.testing.assert_close(rows["logit_lens"], lens.encoder(ranked), atol=1e-5, rtol=1e-5)
    three = reconstructions(lens, batch, ["a b c", "d", "e"], [""] * 3, LensEvaluation())
    order = lens.reconstruct(["b a c", "a b c"])
    assert (three["shuffled_but_last"][0] - order[0]).abs().max() < 1e-5
    best = reconstructions(lens, batch, said, [""] * 3, LensEvaluation(samples=2))["other_text"]
    nearer = min(lens.reconstruct(said[:2]), key=lambda v: (v - batch.vectors[2]).square().sum())
    torch.testing.assert_close(best[2], nearer, atol=1e-5, rtol=1e-5)


def test_the_logit_lens_at_the_last_layer_is_the_model(text):
    lm = tiny_lm("llama")
    (document,) = tokenized(lm, DOCUMENTS[:1], 32, 4)
    batch = at(lm, 2, [(document, [7])])
    expected = lm.model(document.ids[None, :8]).logits[0, -1]
    torch.testing.assert_close(lm.logit_lens(batch.vectors)[0], expected, atol=1e-4, rtol=0)


def run(monkeypatch, capsys, *arguments: str) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["latentwire", "lens", *arguments])
    try:
        main()
        status = 0
    except SystemExit as stop:
        status = int(stop.code or 0)
    printed = capsys.readouterr()
    return status, printed.out, printed.err


def test_commands(text, trained, tmp_path, monkeypatch, capsys):
    status, out, _ = run(monkeypatch, capsys, "explain", trained, "The sea.", "--token", "3")
    assert status == 0 and len(out.splitlines()) == 2 and out.splitlines()[1].startswith("   3 ' '")
    page = tmp_path / "page.html"
    status, out, _ = run(
        monkeypatch,
        capsys,
        "explain",
        trained,
        "</b> sea",
        "--all",
        "--k",
        "2",
        "--html",
        str(page),
    )
    assert status == 0 and len(out.splitlines()) == 9  # the first token is named as left out
    html = page.read_text()
    assert '<div id="text">&lt;<button' in html and html.count("<button") == 7
    data = html.split('id="rows">')[1].split("</script>")[0]
    assert "</" not in data
    rows = json.loads(data)
    assert [r["token"] for r in rows] == list("/b> sea") and len(rows[0]["explanations"]) == 2
    status, out, _ = run(
        monkeypatch, capsys, "edit", trained, "The sea.", "a river", "--token", "3"
    )
    assert status == 0 and out.startswith("next token, as it is") and len(out.splitlines()) == 7
    assert out.splitlines()[-1].endswith("now it says 'a river'.")
    status, out, _ = run(monkeypatch, capsys, "explain", trained, "The sea.", "--words")
    assert status == 0 and len(out.splitlines()) == 3
    result = str(tmp_path / "o.json")
    status, out, _ = run(
        monkeypatch, capsys, "eval", trained, "--text", str(text), "--limit", "5", "--json", result
    )
    assert status == 0 and "Too few for a verdict: 5 activations" in out
    assert list(json.loads((tmp_path / "o.json").read_text())["controls"]) == CONTROLS


def test_explain_all_says_which_token_it_leaves_out(trained, monkeypatch, capsys):
    status, out, _ = run(monkeypatch, capsys, "explain", trained, "The sea.", "--all")
    rows = out.splitlines()[1:]
    assert status == 0 and len(rows) == len("The sea.")
    assert rows[0].split(None, 4)[:4] == ["0", "'T'", "-", "-"]
    assert "no lens is trained on its state" in rows[0]
    assert [row.split()[0] for row in rows] == [str(i) for i in range(8)]


def test_mistakes_are_one_line(text, trained, tmp_path, monkeypatch, capsys):
    (tmp_path / "one.txt").write_text("Only one document is in here.")
    fresh = ("--out", str(tmp_path / "fresh"))
    cases = [
        (("explain", trained, "The sea.", "--token", "8"), "token 8 of a text of 8 tokens"),
        (("explain", trained, "The sea.", "--token", "1", "--all"), "expected one of them"),
        (("explain", trained, ""), "the text is empty"),
        (("explain", trained, "a"), "the first token that a model reads"),
        (("explain", trained, "a", "--all"), "the first token that a model reads"),
        (("explain", trained, "The sea.", "--token", "0"), "put a word before it, or take a later"),
        (("edit", trained, "The sea.", "a", "--token", "0"), "the first token that a model reads"),
        (("edit", trained, "The sea.", "a", "--token", "-1"), "token -1 of a text of 8 tokens"),
        (("explain", trained, "a", "--k", "0"), "k is 0; expected at least 1"),
        (
            ("explain", trained, "a", "--html", str(tmp_path / "no" / "p.html")),
            "there is no folder",
        ),
        (("explain", str(tmp_path / "none"), "a"), "is no lens; expected a folder"),
        (("eval", trained, "--text", str(tmp_path / "none.txt")), "no such file"),
        (
            ("eval", trained, "--text", str(tmp_path / "one.txt")),
            "has 1 usable documents",
        ),
        (("eval", trained, "--text", str(text), "--limit", "1"), "documents is 1; expected"),
        (("train", "smollm2"), "no text to train on"),
        (
            ("train", "smollm2", "--text", str(text), "--out", str(Path(trained).parent)),
            "holds a run with another config",
        ),
        (("train", "smollm2", "--lens.layer", "30", "--text", str(text)), "layer 30"),
        (("train", "smollm"), "unknown recipe 'smollm' (did you mean 'smollm2'?)"),
        (
            ("train", "smollm2", "--text", str(text), "--data.documents", "40", *fresh),
            "training documents for steps of 40",
        ),
    ]
    for arguments, message in cases:
        monkeypatch.chdir(tmp_path)
        status, _, err = run(monkeypatch, capsys, *arguments)
        assert status == 2 and message in err and err.count("\n") == 1, (arguments, err)


def test_bench_compares_costs(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(lens_bench, "_apart", lens_bench.cost)  # in this process, on a tiny model
    monkeypatch.setattr(lens_bench, "PROMPT", 100)
    path = tmp_path / "o.json"
    monkeypatch.setattr(
        sys, "argv", ["latentwire", "bench", "lens", "--tokens", "4", "--json", str(path)]
    )
    main()
    assert "cached, 4 tokens" in capsys.readouterr().out
    result = json.loads(path.read_text())
    cached, whole = result["generation"]["4"]["cached"], result["generation"]["4"]["uncached"]
    assert cached["time_ratio"] == pytest.approx(cached["seconds"] / whole["seconds"])
    assert "memory_ratio" in result["scoring"]
    short = lens_bench._compared(None, (1.0, 2.0))
    assert set(short) == set(cached) and set(short.values()) == {None}


def test_contradictions_are_refused_at_once():
    with pytest.raises(LensError, match="kl has a gate, and checks of a lens open none"):
        replace(smollm2(), weights=Weights(kl=Schedule(1.0, gate=("held", "below", 1.0))))
    with pytest.raises(LensError, match="group is 1; GRPO compares at least 2"):
        replace(smollm2(), group=1)
    with pytest.raises(LensError, match="before is 0; expected at least 1"):
        Data(before=0)
