"""The training loop: one for every recipe.

It is given named parameters, a loss as a function of the step, and a folder. One list of parameters
drives the optimizer, the checkpoint and the load, so a checkpoint is complete by construction. The
data that a step sees depends on (seed, step) alone, so that an interrupted run goes on exactly as
it would have.
"""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from latentwire.files import write_whole
from latentwire.train import parallel

Loss = Callable[[int], tuple[Tensor, dict[str, float]]]
"""loss(step) -> (scalar to minimise, figures to log)."""


class CheckpointError(ValueError):
    """A checkpoint does not belong to these parameters."""


@dataclass(frozen=True)
class LoopConfig:
    """How long and how fast one stage of a recipe trains."""

    steps: int
    """Optimizer steps."""
    lr: float
    """Peak learning rate of AdamW, without weight decay."""
    warmup: int = 20
    """Steps of linear warm-up; cosine decay to a tenth follows."""
    clip: float = 1.0
    """Largest norm of all gradients together."""
    save_every: int = 50
    """Steps between checkpoints."""

    def __post_init__(self) -> None:
        for name in ("steps", "save_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1")


def train(
    stage: str,
    parameters: Mapping[str, Tensor],
    loss: Loss,
    config: LoopConfig,
    folder: Path,
    rate: Callable[[str], float] = lambda name: 1.0,
) -> None:
    """Minimise `loss` over `parameters`, in place; resumes from folder/STAGE.safetensors.

    rate: of a parameter's name, its learning rate in multiples of the config's. Where processes
    train together (parallel.py), each has its own share of a step's rows, gradients are averaged,
    and the first one writes.

    Ctrl-C ends the step, writes a checkpoint and is passed on. Raises CheckpointError where the
    checkpoint has other tensors than `parameters`, FloatingPointError where loss or gradient is
    not finite.
    """
    names, tensors = list(parameters), list(parameters.values())
    by_rate: dict[float, list[Tensor]] = {}
    for name, tensor in parameters.items():
        by_rate.setdefault(rate(name), []).append(tensor)
    groups = [{"params": members, "rate": r} for r, members in by_rate.items()]
    optimizer = torch.optim.AdamW(groups, lr=config.lr, weight_decay=0.0)
    path = folder / f"{stage}.safetensors"
    step = _load(path, names, tensors, optimizer) if path.exists() else 0
    folder.mkdir(parents=True, exist_ok=True)
    columns = ("[progress.description]{task.description}", BarColumn(), MofNCompleteColumn())
    note, console = TextColumn("{task.fields[note]}"), Console(stderr=True)
    silent = parallel.rank() > 0
    shown = (*map(_column, columns), TimeRemainingColumn(), note)
    bar = Progress(*shown, console=console, disable=silent)
    with bar, (folder / "metrics.jsonl").open("a") as log, _interrupt_held() as interrupted:
        task = bar.add_task(stage, total=config.steps, completed=step, note="")
        while step < config.steps:
            began = time.perf_counter()
            figures = _update(step, tensors, loss, optimizer, config)
            step += 1
            figures["seconds"] = time.perf_counter() - began
            rounded = {k: round(v, 5) for k, v in figures.items()}
            if silent:
                if interrupted:
                    raise KeyboardInterrupt
                continue
            log.write(json.dumps({"stage": stage, "step": step, **rounded}) + "\n")
            log.flush()
            bar.update(task, completed=step, note=f"loss {figures['loss']:.3f}")
            if step % config.save_every == 0 or step == config.steps or interrupted:
                _save(path, names, tensors, optimizer, step)
            if interrupted:
                console.print(f"{stage} stopped at step {step}; the same command goes on from here")
                raise KeyboardInterrupt


def shuffled(count: int, seed: int, step: int, size: int) -> list[int]:
    """The items of one step: `size` indices below `count`, each epoch in its own seeded order."""
    indices = []
    for position in range(step * size, (step + 1) * size):
        epoch, place = divmod(position, count)
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed * 1000 + epoch))
        indices.append(int(order[place]))
    return indices


@contextmanager
def _interrupt_held() -> Iterator[list[int]]:
    """Ctrl-C waits for the end of the step, so that no checkpoint holds half an update; the list
    fills when it comes. A second Ctrl-C acts at once, and then the last checkpoint counts."""
    received: list[int] = []

    def hold(signal_number, _frame):
        if received:
            raise KeyboardInterrupt
        received.append(signal_number)

    before = signal.signal(signal.SIGINT, hold)
    try:
        yield received
    finally:
        signal.signal(signal.SIGINT, before)


def _update(step, tensors, loss: Loss, optimizer, config: LoopConfig) -> dict[str, float]:
    for group in optimizer.param_groups:
        group["lr"] = config.lr * group["rate"] * _schedule(step, config)
    value, figures = loss(step)
    if not torch.isfinite(value):
        raise FloatingPointError(
            f"loss is {value.item()} at step {step}; the last checkpoint is good"
        )
    optimizer.zero_grad()
    value.backward()
    parallel.average_gradients(tensors)
    norm = torch.nn.utils.clip_grad_norm_(tensors, config.clip)
    if not torch.isfinite(norm):
        raise FloatingPointError(f"gradient is {norm} at step {step}; the last checkpoint is good")
    optimizer.step()
    return {"loss": value.item(), "grad_norm": norm.item(), **figures}


def _schedule(step: int, config: LoopConfig) -> float:
    if step < config.warmup:
        return (step + 1) / config.warmup
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    return 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * done))


def _column(column):
    return TextColumn(column) if isinstance(column, str) else column


def _save(path: Path, names, tensors, optimizer, step: int) -> None:
    state = {}
    for name, tensor in zip(names, tensors, strict=True):
        state[f"value/{name}"] = tensor.detach().contiguous()
        for moment in ("exp_avg", "exp_avg_sq"):
            if tensor in optimizer.state:
                state[f"{moment}/{name}"] = optimizer.state[tensor][moment].contiguous()
    write_whole(path, save(state, metadata={"step": str(step)}))


@torch.no_grad()
def _load(path: Path, names, tensors, optimizer) -> int:
    with safe_open(str(path), framework="pt") as saved:
        step = int(saved.metadata()["step"])
        kinds = ("value", "exp_avg", "exp_avg_sq") if step else ("value",)
        expected = {f"{kind}/{name}" for kind in kinds for name in names}
        found = set(saved.keys())
        if expected != found:
            raise CheckpointError(
                f"{path}: missing {sorted(expected - found)}, left over {sorted(found - expected)}"
            )
        for name, tensor in zip(names, tensors, strict=True):
            value = saved.get_tensor(f"value/{name}")
            if value.shape != tensor.shape:
                raise CheckpointError(
                    f"{path}: {name} has shape {list(value.shape)}; expected {list(tensor.shape)}"
                )
            tensor.copy_(value)
            if step:
                optimizer.state[tensor] = {
                    "step": torch.tensor(float(step)),
                    "exp_avg": saved.get_tensor(f"exp_avg/{name}").to(tensor.device),
                    "exp_avg_sq": saved.get_tensor(f"exp_avg_sq/{name}").to(tensor.device),
                }
    return step
