"""The benchmark of a training step counts what a count by hand gives, and changes no step."""

import json
import sys

import pytest
import torch
from test_alarms import quick  # noqa: F401 (a fixture)
from test_recipes import lm  # noqa: F401 (a fixture)
from tiny import tiny_lm

from latentwire.__main__ import main
from latentwire.bench.train import PARTS, bench_train
from latentwire.lm import FrozenLM
from latentwire.tasks.qa import by_context, load_questions, question_ids
from latentwire.train.settings import Session
from latentwire.wire.training import batch_of, slots_losses
from latentwire.wire.wire import Wire, WireConfig

LAYERS, WIDTH, HEADS, KV_HEADS, HEAD, INNER, RANK, VOCABULARY = 3, 32, 4, 2, 8, 48, 128, 260


def block(rows: int, tokens: int, before: float) -> float:
    """Operations of all blocks of the tiny Llama over `tokens` a row, after `before`."""
    maps = 2 * WIDTH * HEADS * HEAD + 2 * WIDTH * KV_HEADS * HEAD + 3 * WIDTH * INNER
    attention = HEADS * (before + tokens) * 2 * HEAD
    return 2 * LAYERS * rows * tokens * (maps + attention)


def test_operations_are_those_counted_by_hand(lm, quick):  # noqa: F811
    passages = by_context(load_questions(quick.data))[:2]
    result = bench_train(lm, passages, steps=2, rows=2, session=Session())
    flops = {name: row["flops"] for name, row in result["parts"].items()}
    assert list(flops) == list(PARTS) and flops["data"] == 0 < flops["backward"]
    head, texts = len(lm.frame.prefix), [len(lm.tokenize(p.context)) for p in passages]
    slots = [-(-n // 4) for n in texts]
    wire = Wire(lm, WireConfig(lm.name))
    torch.nn.init.normal_(wire.scorer.weight, generator=torch.Generator().manual_seed(0))
    lengths = torch.stack([z.lengths for z in wire.encode([p.context for p in passages])])
    assert lengths.sum((1, 2)).tolist() == [LAYERS * KV_HEADS * n for n in slots]
    seen = lengths.amax((0, 2)).sum().item() / LAYERS  # the longest head of a layer is all heads'
    scored = 2 * LAYERS * 2 * max(texts) * WIDTH * KV_HEADS
    moved = sum(2 * LAYERS * KV_HEADS * n * RANK * (2 * WIDTH + 2 * HEAD) for n in slots)
    encoder = block(2, max(texts), head) + scored + moved
    assert flops["encoder"] == pytest.approx(encoder, rel=0.01)  # rotations are matmuls as well
    batch = batch_of(lm, passages, quick, 0)
    asked = [len(question_ids(lm, q.question)) for p in passages for q in p.questions]
    rows, answer = len(asked), batch.targets.shape[1]
    reader = 2 * 2 * int(batch.mask.sum()) * WIDTH * VOCABULARY  # logits of real targets alone
    for context in (head + max(texts), head + seen):
        reader += block(2, 16, context) + block(rows, max(asked) + answer - 1, context + 16)
    assert flops["reader forward"] == pytest.approx(reader, rel=0.01)
    # Frozen weights get no gradients: what a gradient costs is near what its forward pass did.
    assert flops["backward"] < flops["reader forward"] + 2 * moved
    assert result["share"] == pytest.approx(
        sum(flops.values()) / result["seconds"] / result["ceiling"]
    )
    assert (
        0 < result["busy"] < 1.1
        and result["matmul_seconds"] > 0
        and result["tokens_per_second"] > 0
    )


def test_being_watched_changes_no_step(lm, quick):  # noqa: F811
    passages, names = by_context(load_questions(quick.data)), []
    wire, batch = Wire(lm, WireConfig("tiny", window=64)), batch_of(lm, passages, quick, 0)

    class Within:
        def __init__(self, name):
            names.append(name)

        __enter__ = __exit__ = lambda *_: None

    watched, plain = slots_losses(wire, batch, Within), slots_losses(wire, batch)
    assert {n: v.item() for n, v in watched.items()} == {n: v.item() for n, v in plain.items()}
    assert names == ["encoder", "reader forward", "loss"]


def test_the_command_prints_and_writes(lm, quick, tmp_path, monkeypatch, capsys):  # noqa: F811
    out = tmp_path / "o.json"
    arguments = ["--data", quick.data, "--batch-size", "2", "--steps", "1", "--json", str(out)]
    arguments += ["--mixed-precision", "bf16", "--gradient-checkpointing", "--dtype", "bfloat16"]
    loaded = classmethod(lambda cls, name, dtype: tiny_lm("llama", getattr(torch, dtype)))
    monkeypatch.setattr(FrozenLM, "from_pretrained", loaded)
    monkeypatch.setattr(sys, "argv", ["latentwire", "bench", "train", *arguments])
    main()
    printed, result = capsys.readouterr().out, json.loads(out.read_text())
    assert "reader forward" in printed and "x its matmuls" in printed
    assert result["dtype"] == "bfloat16"
    assert result["gradient_checkpointing"] and result["mixed_precision"] == "bf16"
    monkeypatch.setattr(sys, "argv", ["latentwire", "bench", "train", "--steps", "0"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2 and "expected at least 1 of each" in capsys.readouterr().err
