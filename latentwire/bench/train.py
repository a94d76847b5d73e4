"""Measures a step of training a wire, beside what the machine's matmuls can do.

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
from latentwire.lm.devices import wait_for
from latentwire.tasks.qa import Passage
from latentwire.train.settings import LoopConfig, Session
from latentwire.train.step import update
from latentwire.wire.training import Batch, WireRecipe, batch_of, slots_losses
from latentwire.wire.wire import Wire, WireConfig

PARTS = ("data", "encoder", "reader forward", "loss", "backward")
"""Parts of a step; the backward pass has the optimizer's update with it."""
CEILING = (512, 1024, 2048)
"""Sizes of the square matmuls, of which the fastest counts."""
MATMULS = ("mm", "addmm", "bmm", "baddbmm")
"""Operations that are matmuls, and all of attention's."""
Within = Callable[[str], AbstractContextManager]


def bench_train(
    lm: FrozenLM, passages: Sequence[Passage], steps: int, rows: int, session: Session
) -> dict[str, Any]:
    """Costs of a step of `rows` passages, medians over `steps`. "share" is of the ceiling,
    "over_matmuls" the time of a step in multiples of the time inside its matmuls, "busy" the part
    of the time in which our threads had a core: beside other jobs "share" cannot be above it."""
    wire = Wire(lm, WireConfig(lm.name))
    seeded = torch.Generator(lm.device).manual_seed(0)  # or all slots would be the first layer's
    torch.nn.init.normal_(wire.scorer.weight, generator=seeded)
    recipe = WireRecipe("bench", wire.config, batch_size=rows)
    run = _steps(wire, passages, recipe, session)
    batch = run(nullcontext)  # what is made on first use is made before the clock starts
    seconds: dict[str, list[float]] = {name: [] for name in PARTS}
    with measured(lm) as cost, _busy() as busy:
        for _ in range(steps):
            run(lambda name: _timed(seconds[name], lm))
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
        flops = _by_part(run, lambda: float(counter.get_total_flops()))
    ceiling = matmul_ceiling(lm, session)
    step = sum(statistics.median(seconds[name]) for name in PARTS)
    profiled = _profiled(run, lm)
    parts = {}
    for name in PARTS:
        part = statistics.median(seconds[name])
        parts[name] = {"seconds": part, "flops": flops[name]}
        parts[name]["share"] = flops[name] / part / ceiling
    return {
        "model": lm.name,
        "device": lm.device.type,
        "dtype": str(lm.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "mixed_precision": session.mixed_precision,
        "gradient_checkpointing": session.gradient_checkpointing,
        "passages": rows,
        "seconds": step,
        "busy": busy[0],
        "tokens_per_second": _tokens(lm, batch) / step,
        "memory": cost.memory,
        "ceiling": ceiling,
        "flops": sum(flops.values()),
        "share": sum(flops.values()) / step / ceiling,
        **profiled,
        "parts": parts,
    }


def matmul_ceiling(lm: FrozenLM, session: Session) -> float:
    """FLOP/s of the fastest of a few square matmuls, in the number type of the step's own."""
    dtype = torch.bfloat16 if session.mixed_precision == "bf16" else lm.dtype
    best = 0.0
    for n in CEILING:
        a, b = (torch.randn(n, n, device=lm.device, dtype=dtype) for _ in range(2))
        for _ in range(4):
            began = _worked(lm)
            torch.mm(a, b)
            best = max(best, 2 * n**3 / (_worked(lm) - began))
    return best


def _steps(
    wire: Wire, passages: Sequence[Passage], recipe: WireRecipe, session: Session
) -> Callable[[Within], Batch]:
    """A function that makes a step of stage 3, always on the same batch, and gives that."""
    wire.format.requires_grad_(False)
    parameters = dict(wire.slots.named_parameters())
    groups = [{"params": list(parameters.values()), "rate": 1.0}]
    optimizer, config = torch.optim.AdamW(groups, weight_decay=0.0), LoopConfig(steps=1, lr=1e-4)

    def run(within: Within) -> Batch:
        batches: list[Batch] = []
        with ExitStack() as after:

            def loss(step: int) -> tuple[Tensor, dict[str, float]]:
                with within("data"):
                    batches.append(batch_of(wire.lm, passages, recipe, step))
                total = torch.stack(list(slots_losses(wire, batches[0], within).values())).sum()
                after.enter_context(within("backward"))
                return total, batches[0].figures

            update(0, parameters, loss, optimizer, config, session, checking=False)
        return batches[0]

    return run


@contextmanager
def _timed(seconds: list[float], lm: FrozenLM) -> Iterator[None]:
    """Add the seconds of what runs inside, the GPU's work included."""
    began = _now(lm)
    yield
    seconds.append(_now(lm) - began)


@contextmanager
def _busy() -> Iterator[list[float]]:
    """The CPU time of what runs inside, of what all threads could have had."""
    found: list[float] = []
    began, used = time.perf_counter(), time.process_time()
    yield found
    could = (time.perf_counter() - began) * torch.get_num_threads()
    found.append((time.process_time() - used) / could)


def _worked(lm: FrozenLM) -> float:
    """Seconds of a clock that stands still while other jobs have the CPU."""
    return time.process_time() / torch.get_num_threads() if lm.device.type == "cpu" else _now(lm)


def _now(lm: FrozenLM) -> float:
    wait_for(lm.device)
    return time.perf_counter()


def _by_part(run: Callable[[Within], Batch], count: Callable[[], float]) -> dict[str, float]:
    """The growth of a count in each part of one step."""
    found: dict[str, float] = {}

    @contextmanager
    def within(name: str) -> Iterator[None]:
        before = count()
        yield
        found[name] = count() - before

    run(within)
    return found


def _profiled(run: Callable[[Within], Batch], lm: FrozenLM) -> dict[str, Any]:
    """One step under torch's profiler: its time in multiples of that inside matmuls, and the
    seconds of the ten costliest operations that are none."""
    cuda, whole = lm.device.type == "cuda", []
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=activities) as profiled, _timed(whole, lm):
        run(nullcontext)
    spent: dict[str, float] = {}
    for event in profiled.key_averages():
        if event.key.startswith("aten::"):
            took = event.self_device_time_total if cuda else event.self_cpu_time_total
            spent[event.key.removeprefix("aten::")] = took / 1e6
    matmuls = sum(s for name, s in spent.items() if _is_matmul(name))
    others = sorted(((s, name) for name, s in spent.items() if not _is_matmul(name)), reverse=True)
    return {
        "matmul_seconds": matmuls,
        "over_matmuls": whole[0] / matmuls,
        "others": {name: seconds for seconds, name in others[:10]},
    }


def _is_matmul(name: str) -> bool:
    return name in MATMULS or "attention" in name


def _tokens(lm: FrozenLM, batch: Batch) -> int:
    """Tokens of a batch, each counted once: contexts, questions, answers."""
    texts = [p.context for p in batch.passages]
    texts += [q.question for p in batch.passages for q in p.questions]
    return sum(len(lm.tokenize(text)) for text in texts) + int(batch.mask.sum())


def _attention_flops(query, key, value, *_, out_shape=None, **__) -> int:
    """Operations of scores and of the mixture; causality is in the mask, so nothing is left out."""
    b, h, t, e = query
    return 2 * b * h * t * key[2] * (e + value[3])


def _attention_backward_flops(_gradient, query, key, value, *_, out_shape=None, **__) -> int:
    """Scores again, and two matmuls for the gradient of each of the two."""
    return 5 * _attention_flops(query, key, value) // 2


CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
}
