"""The costs of a wire beside the full text: tokens, bytes, cache and time; and how far scores of
raw embeddings are from those of their tokens."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from zstandard import compress

from latentwire.evals.baselines import full_text, replayed
from latentwire.lm import KVPrefix
from latentwire.lm.devices import wait_for
from latentwire.tasks.qa import (
    Passage,
    answer_targets,
    passages_prompt,
    question_prompt,
)
from latentwire.wire.protocol import Reader

TIMED = 8
"""Passages on which times and cache sizes are measured, and raw embeddings are replayed."""


def sizes(wire: Reader, passages: Sequence[Passage], bits: int | None) -> dict[str, float]:
    """Means over all passages: tokens in, latents out, bytes of the message, and of the text in
    UTF-8 and after zstd -19."""
    tokens = [len(wire.lm.tokenize(p.context)) for p in passages]
    texts = [p.context.encode() for p in passages]
    latents, sent = zip(*(wire.cost(p.context, bits) for p in passages), strict=True)
    return {
        "tokens_in": statistics.fmean(tokens),
        "latents_out": statistics.fmean(latents),
        "message_bytes": statistics.fmean(sent),
        "text_bytes": statistics.fmean(map(len, texts)),
        "zstd_bytes": statistics.fmean(len(compress(text, 19)) for text in texts),
    }


@torch.no_grad()
def costs(wire: Reader, passages: Sequence[Passage]) -> dict[str, float]:
    """Seconds to first token (medians) and KV-cache bytes (means) of the full text and of the wire,
    measured in turn in this process, and the ratios of wire to text. The wire's time is measured
    with the message at hand, and again with encoding counted."""

    def read(messages: Sequence[Any]) -> KVPrefix:
        return wire.prefix(wire.open(messages))

    text, received, whole = full_text(wire.lm), [], []
    seconds: dict[str, list[float]] = {"text": [], "wire": [], "encode": []}
    for passage in passages:
        # Texts that nobody saw before: ids, and texts of messages for all readers, are remembered.
        one, two = (f"{passage.context}\n{wire.reader} {n}" for n in "ab")
        messages = wire.send([one])
        whole.append(text([one]))
        seconds["text"].append(_first_token(wire, passage, lambda t=two: text([t])))
        seconds["wire"].append(_first_token(wire, passage, lambda m=messages: read(m)))
        received.append(read(messages))
        seconds["encode"].append(_first_token(wire, passage, lambda t=two: read(wire.send([t]))))
    median = {name: statistics.median(values) for name, values in seconds.items()}
    text_kv, kv = (statistics.fmean(p.nbytes() for p in cached) for cached in (whole, received))
    return {
        "text_ttft_seconds": median["text"],
        "ttft_seconds": median["wire"],
        "encode_ttft_seconds": median["encode"],
        "ttft_ratio": median["wire"] / median["text"],
        "encode_ttft_ratio": median["encode"] / median["text"],
        "text_kv_bytes": text_kv,
        "kv_bytes": kv,
        "kv_ratio": kv / text_kv,
    }


@torch.no_grad()
def embeds_vs_ids_difference(wire: Reader, passages: Sequence[Passage]) -> float:
    """Largest difference that it makes to the log-probability of any token of the gold answers, in
    nats, whether a text is given as ids or its input embeddings as soft tokens. It must be 0, or
    the reader is fed latents in another way than text, and no row compares."""
    lm, differences = wire.lm, []
    for passage in passages:
        targets, mask = answer_targets(lm, [passage])
        text, replay = (
            lm.score(
                passages_prompt(lm, wire.format, [passage], condition([passage.context])),
                targets,
                mask,
            )
            for condition in (full_text(lm), replayed(lm))
        )
        differences.append((text - replay).abs().max())
    return torch.stack(differences).max().item()  # unlike Python's, NaN if any is


def _first_token(wire: Reader, passage: Passage, context: Callable[[], KVPrefix]) -> float:
    """Seconds from a context to the logits of the answer's first token."""
    wait_for(wire.lm.device)
    began = time.perf_counter()
    question = passage.questions[0].question
    prompt = question_prompt(wire.lm, [question], context(), wire.format)
    wire.lm.head(wire.lm.last_hidden(prompt)[:, -1]).argmax(-1).item()
    return time.perf_counter() - began
