"""Defects of earlier systems of this kind, and the test that fails when one comes back. Those that
nothing else holds are here.

    labels shifted twice                  test_alarms: a fault raises its alarm (doubled_shift);
                                          test_agreement: score is Hugging Face's own log-softmax
    BOS trained as the first answer       here: an answer is trained from its first token to EOS
    token, EOS never
    question cut off by a byte limit      here: a question is read whole or refused
    gold length visible at inference      here: what is gold changes no answer
    attention over left padding           test_agreement: every check, ragged; test_wire: a batch is
                                          encoded as its rows are
    an anchor that differs by one space   test_alarms: a fault raises its alarm (another_anchor)
    a checkpoint without its LoRA         test_lens: a saved lens loads as it was;
                                          test_train: a checkpoint of other parameters is refused
    KD with the wrong adapters on         test_agreement: LoRA is switched per call;
                                          here: teacher and student run without adapters
    the best epoch by one lucky batch     test_train: the newest checkpoints and the best are kept;
                                          here: the best is judged by held-out examples alone
    F1 by sets instead of bags of words   test_metrics: f1
    bytes of a batch as an example's      here: a message's bytes are those of one example
    PCA fitted on the evaluation split    here: nothing is fitted on held-out passages;
                                          test_lens_recipes: held-out documents are kept apart
"""

import json
import random
from dataclasses import replace

import pytest
import torch
from test_alarms import quick  # noqa: F401 (a fixture)
from test_recipes import data, lm  # noqa: F401 (fixtures)
from tiny import tiny_lm, tokenizer
from tokenizers.processors import TemplateProcessing

from latentwire.evals.baselines import full_text
from latentwire.evals.harness import evaluate
from latentwire.lm import FrozenLM
from latentwire.lm.adapters import lora_config
from latentwire.tasks.qa import (
    Passage,
    answers,
    by_context,
    load_questions,
    question_prompt,
)
from latentwire.train.checkpoints import Checkpoints
from latentwire.train.loop import LoopConfig, Session, train
from latentwire.wire import training as recipes
from latentwire.wire.evaluation import evaluate_wire
from latentwire.wire.training import train_wire
from latentwire.wire.wire import Wire, WireConfig


def tiny_wire(lm: FrozenLM) -> Wire:  # noqa: F811
    return Wire(lm, WireConfig("tiny-llama", ratio=2, window=64, rank=4, format_tokens=3))


def passages_of(path: str) -> list[Passage]:
    return by_context(load_questions(path))


def test_an_answer_is_trained_from_its_first_token_to_eos(quick):  # noqa: F811
    adds_bos = tokenizer()
    adds_bos.backend_tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", 1)]
    )
    lm = FrozenLM(tiny_lm("llama").model, adds_bos, "tiny")  # noqa: F811
    assert adds_bos("Ada").input_ids[0] == lm.tokenizer.bos_token_id == 1
    batch = recipes.batch_of(lm, passages_of(quick.data), quick, 0)
    asked = [q for p in batch.passages for q in p.questions]
    for question, ids, real in zip(asked, batch.targets, batch.mask, strict=True):
        trained = ids[real].tolist()
        assert trained[-1] == lm.tokenizer.eos_token_id == 2 and not {0, 1, 2} & set(trained[:-1])
        assert lm.detokenize(ids[real]).strip() == question.answers[0]


def test_a_question_is_read_whole_or_refused(lm):  # noqa: F811
    draws = random.Random(0)
    question = "".join(draws.choice("aé灯 ?") for _ in range(160)).strip()
    prefix = full_text(lm)(["Ada."])
    prompt = question_prompt(lm, [question], prefix)
    expected = torch.cat([lm.tokenize("\n\n" + question), lm.frame.suffix])
    assert len(question.encode()) > 200 and prompt.mask.all()
    assert torch.equal(prompt.embeds[0], lm.embed(expected))
    with pytest.raises(ValueError, match="tiny-llama has a context length of 512"):
        answers(lm, ["é" * 300], prefix)


def test_what_is_gold_changes_no_answer(lm, data):  # noqa: F811
    passages = passages_of(data)
    other = [
        replace(p, questions=tuple(replace(q, answers=("x" * 40,)) for q in p.questions))
        for p in passages
    ]
    found = [
        [a.answer for batch in evaluate(lm, None, some, {"": full_text(lm)}) for a in batch]
        for some in (passages, other)
    ]
    assert found[0] == found[1] and len(set(found[0])) > 1


def test_teacher_and_student_run_without_adapters(quick):  # noqa: F811
    plain, adapted = tiny_lm("llama"), tiny_lm("llama")
    view = adapted.add_lora("other", lora_config(adapted.model.config, 2, 3))
    with torch.no_grad():
        for tensor in view.adapter_parameters().values():
            tensor.fill_(0.5)
    batch = recipes.batch_of(plain, passages_of(quick.data), quick, 0)
    expected, found = (recipes.slots_losses(tiny_wire(x), batch) for x in (plain, adapted))
    with_it = recipes.slots_losses(tiny_wire(view), batch)
    for name in ("ce", "kl"):
        assert torch.equal(found[name], expected[name])
        assert not torch.allclose(with_it[name], expected[name])


def test_the_best_is_judged_by_held_out_examples_alone(tmp_path):
    weight, held = torch.ones(1, requires_grad=True), iter([3.0, 1.0, 2.0, 2.0])

    def loss(step):  # its third batch is by far the easiest
        return weight.square().sum() * (0.001 if step == 2 else 1.0), {}

    config, session = LoopConfig(steps=4, lr=0.1, warmup=1), Session(check_every=1)
    probe = lambda: {"held": next(held)}  # noqa: E731
    train("s", {"w": weight}, loss, config, tmp_path, probe=probe, session=session)
    logged = [json.loads(line)["loss"] for line in (tmp_path / "metrics.jsonl").open()]
    assert min(logged) == logged[2]
    assert Checkpoints(tmp_path, "s").best() == {"step": 2.0, "held": 1.0}


def test_a_messages_bytes_are_those_of_one_example(lm, tmp_path):  # noqa: F811
    contexts = ["Ada was born in 1815.", "The Elbe is a river in Europe. " * 3]
    path = tmp_path / "d.jsonl"
    with path.open("w") as file:
        for n, context in enumerate(contexts):
            for question in ("Who?", "What?"):
                row = {"id": f"{n}{question}", "context": context, "question": question}
                file.write(json.dumps({**row, "answers": ["a"]}) + "\n")
    wire = tiny_wire(lm)
    lengths = [len(wire.send([context])[0].to_bytes()) for context in contexts]
    together = [len(message.to_bytes()) for message in wire.send(contexts)]
    assert together == lengths and lengths[0] < lengths[1]
    result = evaluate_wire(wire, str(path))
    assert result["message_bytes"] == sum(lengths) / 2
    assert result["text_bytes"] == sum(len(c.encode()) for c in contexts) / 2


def test_nothing_is_fitted_on_held_out_passages(lm, quick, monkeypatch):  # noqa: F811
    fitted: list[str] = []
    fit, attention = recipes.batch_of, recipes.attention_received

    def batch_of(*arguments):
        batch = fit(*arguments)
        fitted.extend(p.context for p in batch.passages)
        return batch

    def spied(lm, soft_prompt, passage, *rest):
        fitted.append(passage.context)
        return attention(lm, soft_prompt, passage, *rest)

    monkeypatch.setattr(recipes, "batch_of", batch_of)
    monkeypatch.setattr(recipes, "attention_received", spied)
    # As many passages for the scorer as there are, and steps enough to see each several times.
    train_wire(replace(quick, scorer_passages=100, slots=replace(quick.slots, steps=8)))
    contexts = [p.context for p in passages_of(quick.data)]
    assert set(fitted) == set(contexts[: -quick.held_out]) and quick.held_out == 3
