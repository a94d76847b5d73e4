"""Evaluating a wire of several readers: each by itself, and all of them together.

latentwire eval shared --data squad_dev.jsonl --limit 300
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

import torch
from rich.progress import track

from latentwire.evals.harness import Answer, batch_size, evaluate
from latentwire.evals.metrics import bootstrap, exact_match, f1, normalise, ratio
from latentwire.files import owned, write_whole
from latentwire.lm import pad_right
from latentwire.runs.folder import open_run
from latentwire.runs.workers import Executor
from latentwire.tasks.qa import Passage, answer_ids, by_context, load_questions, passages_prompt
from latentwire.terminal import terminal
from latentwire.wire.codes.wire import CodeWire
from latentwire.wire.evaluation import ALMANAC, conditions, evaluate_reader, load_passages
from latentwire.wire.learned.shared_wire import SharedWire
from latentwire.wire.protocol import Reader
from latentwire.wire.text_code import BATCH
from latentwire.wire.text_wire import TextWire

HELD = 24
"""Passages that a reader that was added is compared on."""
LONGEST = 512
"""Most tokens of one."""


def evaluate_readers(
    wire: SharedWire | TextWire | CodeWire,
    data: str = ALMANAC,
    limit: int | None = None,
    out: Path | None = None,
    bits: int | None = None,
    needles: str | None = None,
    executor: Callable[[int], Executor] | None = None,
    also: Sequence[str] = (),
    answer_tokens: int | None = None,
) -> dict:
    """Every reader of a wire, scored as evaluate_wire does, each with a run folder of its own in
    `out`, and what they answer together: {"readers": {name: result}, "joint": scores, ...}.
    executor: who answers for the reader of a number. also, answer_tokens: as in evaluate_wire."""
    results, said = {}, []
    passages, _ = load_passages(data, limit, needles)
    setting = {"kind": "readers", "readers": [reader.reader for reader in wire.readers]}
    with owned(out):
        if out is not None:
            open_run(out, setting)
        if isinstance(wire, TextWire) and bits is None:
            decode_ahead(wire, passages)
        for i, reader in enumerate(wire.readers):
            folder = None if out is None else out / f"reader-{i}"
            asked = (data, limit, folder, bits, needles)
            how = (None if executor is None else executor(i), also, answer_tokens)
            results[reader.reader], answers = evaluate_reader(reader, *asked, *how)
            said.append([a for a in answers if a.condition == "wire"])
        together = {"kind": "readers", "readers": results}
        if len(said) > 1:
            together["joint"] = joint(wire.readers, passages, said, bits)
        if out is not None:
            write_whole(out / "results.json", json.dumps(together, indent=1))
        return together


def decode_ahead(wire: TextWire, passages: Sequence[Passage]) -> None:
    """Have the messages of all passages decoded, which the wire remembers: text is decoded a token
    at a time, and a hundred messages together take little longer than an evaluation's batch."""
    messages = sorted(wire.send([p.context for p in passages]), key=lambda m: m.tokens)
    console = terminal(stderr=True)
    for start in track(range(0, len(messages), BATCH), description="decoding", console=console):
        wire.texts(messages[start : start + BATCH])


@torch.no_grad()
def joint(
    readers: Sequence[Reader],
    passages: Sequence[Passage],
    said: Sequence[Sequence[Answer]],
    bits: int | None = None,
) -> dict[str, float | int]:
    """Scores of the answers that readers of the same messages give together.

    said: each reader's answers from its latents. To every question the answers of all readers are
    candidates; each reader gives each candidate its mean log-probability per token, EOS counted,
    and the candidate with the largest sum is the answer. Beside its scores: how often all readers
    gave the same answer (as SQuAD compares them), and the F1 of an oracle that always picks the
    best candidate.
    """
    of = [{(a.context, a.id): a for a in answers} for answers in said]
    asked = [(p.context, q.id) for p in passages for q in p.questions]
    sums = sum(_scores(reader, passages, of, bits) for reader in readers)
    best = torch.as_tensor(sums).argmax(1).tolist()
    rows = [[one[key] for one in of] for key in asked]
    chosen = [row[i] for row, i in zip(rows, best, strict=True)]
    contexts = [context for context, _ in asked]
    scores = {
        "f1": [f1(a.answer, a.gold) for a in chosen],
        "em": [exact_match(a.answer, a.gold) for a in chosen],
        "agreement": [float(len({normalise(a.answer) for a in row}) == 1) for row in rows],
        "oracle_f1": [max(a.f1 for a in row) for row in rows],
    }
    result: dict[str, float | int] = {"n": len(asked)}
    for name, values in scores.items():
        low, high = bootstrap(values, contexts)
        result |= {name: sum(values) / len(values), f"{name}_low": low, f"{name}_high": high}
    return result


def held_out(data: str, readers: Sequence[Reader]) -> list[Passage]:
    """The last HELD passages of `data`, which no training sees, but for such as are long."""
    last = by_context(load_questions(data))[-HELD:]
    return [p for p in last if max(len(r.lm.tokenize(p.context)) for r in readers) <= LONGEST]


@torch.no_grad()
def losses(readers: Sequence[Reader], passages: Sequence[Passage]) -> dict[str, list[Answer]]:
    """The loss of each reader, by name, by latents in place of the text: an Answer for each
    question, with the difference in nats as its `nll`."""
    made = {}
    for reader in readers:
        rows = conditions(reader, passages)
        both = {name: rows[name] for name in ("text", "wire")}
        answers = list(chain.from_iterable(evaluate(reader.lm, reader.format, passages, both, 1)))
        text, wire = ([a for a in answers if a.condition == name] for name in both)
        made[reader.reader] = [
            replace(a, nll=a.nll - b.nll)
            for a, b in zip(_in_order(wire), _in_order(text), strict=True)
        ]
    return made


def lost(readers: Sequence[Reader], added: str, passages: Sequence[Passage]) -> list[str]:
    """In words, what the reader that was added loses by latents beside those that the wire was
    trained with, in nats per answer token with 95% intervals over passages."""

    def mean(answers: Sequence[Answer]) -> str:
        differences, tokens = [a.nll for a in answers], [float(a.tokens) for a in answers]
        value, low, high = ratio(differences, tokens, [a.context for a in answers])
        return f"{value:.2f} ({low:.2f} to {high:.2f})"

    if not passages:
        none = f"none of the last {HELD} passages has at most {LONGEST} tokens"
        return [f"readers are not compared: {none}"]
    return [
        f"{name}, {'added' if name == added else 'there before'}: {mean(answers)} nats per answer "
        f"token lost to its full text, on {len(passages)} passages held out"
        for name, answers in losses(readers, passages).items()
    ]


def _in_order(answers: Sequence[Answer]) -> list[Answer]:
    return sorted(answers, key=lambda a: (a.context, a.id))


def _scores(
    reader: Reader,
    passages: Sequence[Passage],
    of: Sequence[Mapping[tuple[str, str], Answer]],
    bits: int | None,
) -> torch.Tensor:
    """Mean log-probability [questions, candidates] that a reader gives each candidate."""
    lm, size = reader.lm, batch_size(reader.lm)
    latents = conditions(reader, passages, bits)["wire"]
    parts = [passages[i : i + size] for i in range(0, len(passages), size)]
    made = []
    for part in track(parts, description="rescoring", console=terminal(stderr=True)):
        prompt = passages_prompt(lm, reader.format, part, latents([p.context for p in part]))
        keys = list(chain.from_iterable([(p.context, q.id) for q in p.questions] for p in part))
        candidates = []
        for answers in of:
            targets, mask = pad_right([answer_ids(lm, answers[key].answer) for key in keys])
            candidates.append(lm.score(prompt, targets, mask).sum(1) / mask.sum(1))
        made.append(torch.stack(candidates, 1).cpu())
    return torch.cat(made)
