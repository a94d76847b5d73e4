"""The costs of a wire beside Hugging Face's own model on the full text, in one run.

    latentwire bench wire --wire default --json bench.json

Figures are ratios of CPU time, since other work on the cores spoils wall time, which stands beside
it. Both sides are measured in turn, several times, and the least of each counts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from latentwire.bench.measure import Cost, measured
from latentwire.lm import FrozenLM, Greedy, KVPrefix, Prompt
from latentwire.tasks.qa import load_questions, question_prompt
from latentwire.wire.evaluation import ALMANAC
from latentwire.wire.wire import Wire

READ = 1000
"""Most tokens that the texts of one case have together, if not one has more; rows beyond them
repeat these."""
STEPS, TIMES = 4, 2
"""Tokens that are decoded for one figure, and how often it is measured."""
QUESTION = "What happened first?"
RATIOS = {
    "compress": ("compress", "hf_prefill"),
    "prefill": ("prefill", "hf_prefill"),
    "first_token": ("first_token", "hf_first_token"),
    "token_to_slots": ("token", "hf_token_slots"),
    "token_to_text": ("token", "hf_token_text"),
    "shared_to_text": ("token_shared", "hf_token_text"),
}
"""The ratios. prefill: our path of the full text. first_token: from slots that are at
hand to the logits of an answer, beside Hugging Face from the text. token: decoded behind the slots
of other texts in each row, or (shared) of one text; hf_token_slots: behind a cache that has as many
in every head."""


@torch.no_grad()
def bench_wire(wire: Wire, lengths: Sequence[int], rows: Sequence[int]) -> dict[str, Any]:
    """{"cases": {"200x16": {"cpu": ratios, "wall": ratios, "memory": ratio, "seconds": {name:
    {"cpu", "wall"}}}}}: so many tokens by so many rows. memory is the peak of compressing beside
    that of Hugging Face's prefill, None where it cannot be measured."""
    words = " ".join(dict.fromkeys(q.context for q in load_questions(ALMANAC)))
    ids = wire.lm.tokenize(words)
    cases = {}
    for n in lengths:
        for b in rows:
            distinct = min(b, max(1, READ // n))
            texts = [ids.roll(-97 * i).repeat(1 + n // len(ids))[:n] for i in range(distinct)]
            cases[f"{n}x{b}"] = _case(wire, texts, b)
    return {"reader": wire.reader, "ratio": wire.ratio, "dtype": str(wire.lm.dtype), "cases": cases}


def _case(wire: Wire, texts: Sequence[Tensor], rows: int) -> dict[str, Any]:
    lm, n = wire.lm, len(texts[0])
    whole = [torch.cat([lm.frame.prefix, text]) for text in texts]
    contexts = [lm.detokenize(text) for text in texts]
    latents = wire.encode(contexts)
    many = (latents * rows)[:rows]
    asked = question_prompt(lm, [QUESTION], wire.prefix(latents[:1]), wire.format).embeds
    caches = {
        "hf_token_text": _repeated(lm, torch.stack(whole), rows),
        "hf_token_slots": _repeated(lm, torch.stack(whole)[:, : -(-n // wire.ratio)], rows),
    }
    alike = wire.prefix(latents[:1]).repeat(rows)

    def first_token() -> None:
        prompt = question_prompt(lm, [QUESTION], wire.prefix(latents[:1]), wire.format)
        lm.head(lm.last_hidden(prompt)[:, -1]).argmax(-1).item()

    def hf_first_token() -> None:
        embeds = torch.cat([lm.embed(whole[0])[None], asked], 1)
        lm.model(inputs_embeds=embeds, logits_to_keep=1).logits.argmax(-1)

    works: dict[str, Callable[[], Any]] = {
        "hf_prefill": lambda: lm.body(input_ids=torch.stack(whole), use_cache=True),
        "prefill": lambda: lm.prefill(Prompt.from_ids(lm, whole)),
        "compress": lambda: wire.encode(contexts),
        "hf_first_token": hf_first_token,
        "first_token": first_token,
        **{name: partial(_hf_decoded, lm, cache, rows) for name, cache in caches.items()},
        "token": _decoding(lm, wire.prefix(many)),
        "token_shared": _decoding(lm, alike),
    }
    costs = {name: [] for name in works}
    for _ in range(TIMES):
        for name, work in works.items():
            with measured(lm) as cost:
                work()
            costs[name].append(cost)
    return _summary(costs)


def _repeated(lm: FrozenLM, ids: Tensor, rows: int) -> Any:
    """Hugging Face's cache of some texts, repeated to so many rows."""
    cache = lm.body(input_ids=ids, use_cache=True).past_key_values
    cache.batch_repeat_interleave(-(-rows // len(ids)))
    cache.batch_select_indices(torch.arange(rows, device=lm.device))
    return cache


def _hf_decoded(lm: FrozenLM, cache: Any, rows: int) -> None:
    ids = torch.full((rows, 1), lm.stop_ids[0], device=lm.device)
    for _ in range(STEPS):
        ids = lm.model(ids, past_key_values=cache).logits[:, -1].argmax(-1, keepdim=True)


def _decoding(lm: FrozenLM, prefix: KVPrefix) -> Callable[[], None]:
    """Work that decodes behind a prefix, as a generation goes on: nothing is made anew for it."""
    ids = torch.tensor(lm.stop_ids[:1], device=lm.device)
    prompt = Prompt.from_ids(lm, [ids] * len(prefix.mask), prefix)
    lm.generate(prompt, Greedy(), 1, ())

    def work() -> None:
        lm.generate(prompt, Greedy(), STEPS, (), ("\n\n\n",))

    return work


def _summary(costs: dict[str, list[Cost]]) -> dict[str, Any]:
    least = {
        name: {"cpu": min(c.cpu for c in of), "wall": min(c.seconds for c in of)}
        for name, of in costs.items()
    }
    peaks = {n: min(c.memory or 0 for c in costs[n]) for n in ("compress", "hf_prefill")}
    ratios = {
        clock: {name: least[a][clock] / least[b][clock] for name, (a, b) in RATIOS.items()}
        for clock in ("cpu", "wall")
    }
    memory = peaks["compress"] / peaks["hf_prefill"] if all(peaks.values()) else None
    return {**ratios, "memory": memory, "peaks": peaks, "seconds": least}
