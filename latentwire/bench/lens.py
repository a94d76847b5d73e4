"""Measures a lens: time and peak memory of differentiable generation in its three modes, and of
scoring with logits for the answer alone.

    latentwire bench lens --json bench.json

Every case runs in a process of its own, so that its peak is its own; a case that needs more memory
than the machine has free is reported as null and stops there.
"""

from __future__ import annotations

import gc
import resource
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path

import torch

from latentwire.bench.measure import measured
from latentwire.lens.decoder import Decoder, DecoderConfig
from latentwire.lm import FrozenLM, Prompt, StraightThroughGumbel, seeded_noise, token_log_probs
from latentwire.runs.workers import end_with_parent
from latentwire.terminal import terminal

MODES = {"uncached": "none", "checkpointed": "checkpoint", "cached": "kv"}
PROMPT, ANSWER = 448, 64
"""Tokens of the scoring case: what stands before, and what is scored."""

Cost = tuple[float, float] | None
"""Seconds and bytes above what was in use before, or None where memory was short."""


def bench_lens(
    model: str = "smollm2-135m", tokens: tuple[int, ...] = (16, 64, 128), batch: int = 4
) -> dict:
    """Ratios to uncached generation, forward and backward, and to full logits; smaller is better.
    The seconds and bytes that they are made of stand beside them."""
    generation = {}
    for count in tokens:
        costs = {name: _apart(model, name, count, batch) for name in MODES}
        compared = {n: _compared(costs[n], costs["uncached"]) for n in MODES if n != "uncached"}
        generation[str(count)] = {"uncached": _compared(costs["uncached"], None), **compared}
    answer, full = (_apart(model, name, ANSWER, batch) for name in ("answer", "full"))
    return {"generation": generation, "scoring": _compared(answer, full), "batch": batch}


def _apart(model: str, case: str, tokens: int, batch: int) -> Cost:
    terminal(stderr=True).print(f"{case}, {tokens} tokens")
    spawn = get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, initializer=end_with_parent) as pool:
        try:
            return pool.submit(_limited, model, case, tokens, batch).result()
        except (RuntimeError, MemoryError, BrokenProcessPool) as error:
            if not isinstance(error, BrokenProcessPool) and "memory" not in str(error):
                raise
            return None


def _limited(model: str, case: str, tokens: int, batch: int) -> Cost:
    """`cost`, leaving a fifth of the free memory to others: beyond that an allocation fails, and
    nothing else on the machine is killed for it."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) * 1024
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    most = used + free * 4 // 5
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    return cost(model, case, tokens, batch)


def cost(model: str, case: str, tokens: int, batch: int) -> Cost:
    """One case in this process: seconds, and bytes at its peak above what was in use before."""
    lm = FrozenLM.from_pretrained(model)
    run = _generating(lm, case, batch) if case in MODES else _scoring(lm, case, batch)
    run(2)
    gc.collect()
    with measured(lm) as work:
        run(tokens)
    return None if work.memory is None else (work.seconds, float(work.memory))


def _generating(lm: FrozenLM, case: str, batch: int) -> Callable[[int], None]:
    decoder = Decoder(lm, DecoderConfig(layers=1))
    vectors = torch.randn(batch, lm.width, generator=torch.Generator().manual_seed(0))

    def run(tokens: int) -> None:
        sampler = StraightThroughGumbel(seeded_noise(range(batch)))
        prompt = decoder.prompt(vectors.to(lm.device))
        out = lm.generate(prompt, sampler, tokens, stop_ids=(), caching=MODES[case])  # pyright: ignore
        (out.embeds.square().sum() + out.log_probs.sum()).backward()

    return run


def _scoring(lm: FrozenLM, case: str, batch: int) -> Callable[[int], None]:
    draws = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 200, (batch, PROMPT + ANSWER), generator=draws).to(lm.device)

    @torch.no_grad()
    def run(tokens: int) -> None:
        prompt, answer = ids[:, :PROMPT], ids[:, PROMPT : PROMPT + tokens]
        if case == "answer":
            lm.score(Prompt.from_ids(lm, list(prompt)), answer)
            return
        whole = Prompt.from_ids(lm, list(ids[:, : PROMPT + tokens]))
        logits = lm.head(lm.last_hidden(whole))[:, :-1]
        token_log_probs(logits, ids[:, 1 : PROMPT + tokens])[:, -tokens:]

    return run


def _compared(cost: Cost, base: Cost) -> dict[str, float | None]:
    if cost is None:
        return dict.fromkeys(("seconds", "bytes", "time_ratio", "memory_ratio"))
    ratios = (None, None) if base is None else (cost[0] / base[0], cost[1] / max(base[1], 1.0))
    return dict(zip(("seconds", "bytes", "time_ratio", "memory_ratio"), (*cost, *ratios)))  # noqa: B905
