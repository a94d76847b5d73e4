"""What a step of training a wire costs, beside what the machine's matmuls can do.

    latentwire bench train --json bench.json

The step is training's own: `slots_losses` of the recipe, `update` of the engine. It is run once
plainly for its time and peak memory, once with every matmul's operations counted, and once under
torch's profiler for the time inside matmuls; the ceiling is the best rate of one large matmul.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from latentwire.bench.measure import measured
from latentwire.lm import FrozenLM
from latentwire.recipes.wire import Batch, WireRecipe, batch_of, slots_losses
from latentwire.tasks.qa import Passage
from latentwire.train.settings import LoopConfig, Session
from latentwire.train.step import update
from latentwire.wire.wire import Wire, WireConfig

PARTS = ("data", "encoder", "reader forward", "loss", "backward")
"""Of a step; the backward pass has the optimizer's update with it."""
CEILING = (512, 1024, 2048)
"""Sizes of the square matmuls, of which the fastest counts."""
MATMULS = ("mm", "addmm", "bmm", "baddbmm")
"""Operations that are matmuls, and all of attention's."""
Within = Callable[[str], AbstractContextManager]


def bench_train(
    lm: FrozenLM, passages: Sequence[Passage], steps: int, rows: int, session: Session
) -> dict[str, Any]:
    """Costs of a step of `rows` passages, medians over `steps`. "share" is of the ceiling,
    "over_matmuls" the time of a step in multiples of the time inside its matmuls."""
    wire = Wire(lm, WireConfig(lm.name))
    recipe = WireRecipe("bench", wire.config, passages=rows)
    run = _steps(wire, passages, recipe, session)
    run(nullcontext)  # what is made on first use is made before the clock starts
    seconds: dict[str, list[float]] = {name: [] for name in PARTS}
    with measured(lm) as cost:
        batches = [run(lambda name: _timed(seconds[name], lm)) for _ in range(steps)]
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
        flops = _by_part(run, lambda: float(counter.get_total_flops()))
    ceiling = matmul_ceiling(lm, session)
    step = sum(statistics.median(seconds[name]) for name in PARTS)
    matmuls, others = _matmul_seconds(run, lm)
    tokens = statistics.mean(_tokens(lm, batch) for batch in batches)
    parts = {}
    for name in PARTS:
        part = statistics.median(seconds[name])
        parts[name] = {"seconds": part, "flops": flops[name]}
        parts[name]["share"] = flops[name] / part / ceiling
    return {
        "model": lm.name,
        "device": lm.device.type,
        "threads": torch.get_num_threads(),
        "mixed_precision": session.mixed_precision,
        "gradient_checkpointing": session.gradient_checkpointing,
        "passages": rows,
        "seconds": step,
        "tokens_per_second": tokens / step,
        "memory": cost.memory,
        "ceiling": ceiling,
        "flops": sum(flops.values()),
        "share": sum(flops.values()) / step / ceiling,
        "matmul_seconds": matmuls,
        "over_matmuls": step / matmuls,
        "parts": parts,
        "others": others,
    }


def matmul_ceiling(lm: FrozenLM, session: Session) -> float:
    """FLOP/s of the fastest of a few square matmuls, in the number type of the step's own."""
    dtype = torch.bfloat16 if session.mixed_precision == "bf16" else lm.dtype
    best = 0.0
    for n in CEILING:
        a, b = (torch.randn(n, n, device=lm.device, dtype=dtype) for _ in range(2))
        for _ in range(4):
            took: list[float] = []
            with _timed(took, lm):
                a @ b
            best = max(best, 2 * n**3 / took[0])
    return best


def _steps(
    wire: Wire, passages: Sequence[Passage], recipe: WireRecipe, session: Session
) -> Callable[[Within], Batch]:
    """A function that makes one more step of stage 3 and gives its batch."""
    wire.format.requires_grad_(False)
    parameters = dict(wire.slots.named_parameters())
    groups = [{"params": list(parameters.values()), "rate": 1.0}]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    config, done = LoopConfig(steps=1000, lr=1e-4), 0

    def run(within: Within) -> Batch:
        nonlocal done
        batches: list[Batch] = []
        with ExitStack() as after:

            def loss(step: int) -> tuple[Tensor, dict[str, float]]:
                with within("data"):
                    batches.append(batch_of(wire.lm, passages, recipe, step))
                total = torch.stack(list(slots_losses(wire, batches[0], within).values())).sum()
                after.enter_context(within("backward"))
                return total, batches[0].figures

            update(done, parameters, loss, optimizer, config, session, checking=False)
        done += 1
        return batches[0]

    return run


@contextmanager
def _timed(seconds: list[float], lm: FrozenLM) -> Iterator[None]:
    """Add the seconds of what runs inside, the GPU's work included."""
    began = _now(lm)
    yield
    seconds.append(_now(lm) - began)


def _now(lm: FrozenLM) -> float:
    if lm.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def _by_part(run: Callable[[Within], Batch], count: Callable[[], float]) -> dict[str, float]:
    """How much a count grows in each part of one step."""
    found: dict[str, float] = {}

    @contextmanager
    def within(name: str) -> Iterator[None]:
        before = count()
        yield
        found[name] = count() - before

    run(within)
    return found


def _matmul_seconds(run: Callable[[Within], Batch], lm: FrozenLM) -> tuple[float, dict[str, float]]:
    """Seconds inside matmuls in one step, and of the ten costliest operations that are none."""
    cuda = lm.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=activities) as profiled:
        run(nullcontext)
    spent: dict[str, float] = {}
    for event in profiled.key_averages():
        if event.key.startswith("aten::"):
            took = event.self_device_time_total if cuda else event.self_cpu_time_total
            spent[event.key.removeprefix("aten::")] = took / 1e6
    matmuls = {n: s for n, s in spent.items() if n in MATMULS or "attention" in n}
    others = sorted(((s, n) for n, s in spent.items() if n not in matmuls), reverse=True)
    return sum(matmuls.values()), {name: seconds for seconds, name in others[:10]}


def _tokens(lm: FrozenLM, batch: Batch) -> int:
    """Tokens of a batch, each counted once: contexts, questions, answers."""
    texts = [p.context for p in batch.passages]
    texts += [q.question for p in batch.passages for q in p.questions]
    return sum(len(lm.ids(text)) for text in texts) + int(batch.mask.sum())


def _attention_flops(query, key, value, *_, out_shape=None, **__) -> int:
    """Of scores and of the mixture; causality is in the mask, so nothing is left out."""
    b, h, t, e = query
    return 2 * b * h * t * key[2] * (e + value[3])


def _attention_backward_flops(_gradient, query, key, value, *_, out_shape=None, **__) -> int:
    """Scores again, and two matmuls for the gradient of each of the two."""
    return 5 * _attention_flops(query, key, value) // 2


CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
}
