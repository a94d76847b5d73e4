"""Evaluating a wire: its answers beside those of the same reader with the full text, with less
text, with none, and with latents that say nothing.

    latentwire eval default --data squad_dev.jsonl --limit 500
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import lru_cache
from importlib.resources import files
from pathlib import Path

import torch
from rich.progress import track

from latentwire.evals.baselines import Condition, closed_book, full_text, truncated
from latentwire.evals.harness import Answer, evaluate, summarise
from latentwire.lm import KVPrefix
from latentwire.tasks.qa import Passage, by_context, load_questions, question_prompt, with_format
from latentwire.wire.message import Message
from latentwire.wire.wire import Wire

ALMANAC = str(files("latentwire") / "data" / "almanac.jsonl")
"""The reading set that the package ships."""
TIMED = 8
"""Passages on which times and cache sizes are measured."""


def conditions(wire: Wire, passages: Sequence[Passage]) -> dict[str, Condition]:
    """The rows of an evaluation. The wire's latents go through the bytes of their messages, so that
    what is scored is what would travel."""
    texts = [p.context for p in passages]
    following = dict(zip(texts, texts[1:] + texts[:1], strict=True))

    @lru_cache(maxsize=64)
    def sent(text: str) -> Message:
        return Message.from_bytes(wire.send([text])[0].to_bytes())

    def zeroed(wanted: Sequence[str]) -> KVPrefix:
        return wire.prefix([sent(t).latents.zeros() for t in wanted])

    return {
        "text": full_text(wire.lm),
        "wire": lambda wanted: wire.receive([sent(t) for t in wanted]),
        "truncated_tokens": truncated(wire.lm, wire.count),
        "closed_book": closed_book(wire.lm),
        "zero_latents": zeroed,
        "foreign_latents": lambda wanted: wire.receive([sent(following[t]) for t in wanted]),
    }


def evaluate_wire(
    wire: Wire, data: str = ALMANAC, limit: int | None = None, out: Path | None = None
) -> dict:
    """Score all conditions on the first `limit` questions of `data`; the whole result as one dict.

    out: a run folder that gets results.json and predictions.jsonl. Raises DataError for fewer than
    two passages, since another example's latents need another example.
    """
    passages = by_context(load_questions(data, limit, least=2))
    rows = conditions(wire, passages)
    answers: list[Answer] = []
    batches = evaluate(wire.lm, wire.format, passages, rows)
    total = -(-len(passages) // 6)
    for batch in track(batches, description="answering", total=total):
        answers += batch
    scores = {name: summarise([a for a in answers if a.condition == name]) for name in rows}
    result = {
        "wire": wire.id.hex(),
        "reader": wire.config.reader,
        "data": Path(data).name,
        "n": sum(a.condition == "wire" for a in answers),
        "passages": len(passages),
        "ratio": wire.config.ratio,
        "rows": scores,
        "retention": scores["wire"]["f1"] / max(scores["text"]["f1"], 1e-9),
        **costs(wire, passages),
    }
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps(asdict(a), ensure_ascii=False) for a in answers]
        (out / "predictions.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        (out / "results.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
    return result


@torch.no_grad()
def costs(wire: Wire, passages: Sequence[Passage]) -> dict[str, float]:
    """Means over the first passages: tokens in and latents out, bytes of message and text; and as
    ratios of wire to text, measured in turn in this process: time to first token with the message
    at hand, the same with encoding counted, and KV-cache bytes."""
    sample = passages[:TIMED]
    text = full_text(wire.lm)
    messages = wire.send([p.context for p in sample])
    read = [text([p.context]) for p in sample]
    received = [wire.receive([m]) for m in messages]
    seconds: dict[str, list[float]] = {"text": [], "wire": [], "encode": []}
    for passage, message in list(zip(sample, messages, strict=True)) * 2:
        forms = {
            "text": text,
            "wire": lambda _, m=message: wire.prefix([m.latents]),
            "encode": lambda texts: wire.prefix(wire.encode(texts)),
        }
        for name, form in forms.items():
            seconds[name].append(_first_token(wire, passage, form))
    median = {name: statistics.median(values) for name, values in seconds.items()}
    n = len(sample)
    return {
        "tokens_in": sum(len(wire.lm.ids(p.context)) for p in sample) / n,
        "latents_out": sum(len(m.latents) for m in messages) / n,
        "ttft_ratio": median["wire"] / median["text"],
        "encode_ttft_ratio": median["encode"] / median["text"],
        "kv_ratio": sum(p.nbytes() for p in received) / sum(p.nbytes() for p in read),
        "message_bytes": sum(len(m.to_bytes()) for m in messages) / n,
        "text_bytes": sum(len(p.context.encode()) for p in sample) / n,
    }


def _first_token(wire: Wire, passage: Passage, context: Condition) -> float:
    """Seconds from a context to the logits of the answer's first token."""
    if wire.lm.device.type == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    prefix = with_format(wire.lm, wire.format, context([passage.context]))
    prompt = question_prompt(wire.lm, [passage.questions[0].question], prefix)
    wire.lm.head(wire.lm.final(prompt)[:, -1]).argmax(-1).item()
    return time.perf_counter() - began
