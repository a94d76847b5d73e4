"""The training loop: one for every recipe.

It is given named parameters, a loss as a function of the step, and a folder. One list of parameters
drives the optimizer, the checkpoint and the load, so a checkpoint is complete by construction. The
data that a step sees and the noise that it draws depend on (seed, step) alone, so that an
interrupted run goes on exactly as it would have.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.optim import Optimizer

from latentwire.train import parallel
from latentwire.train.checkpoints import Checkpoints, log_row, logged
from latentwire.train.guards import CollapseError, alarms, collapsed

Loss = Callable[[int], tuple[Tensor, Mapping[str, Tensor | float]]]
"""loss(step) -> (scalar to minimise, figures to log). A figure with a gradient is an objective;
"tokens" is how many the loss is a mean over, "waited" the seconds that making the batch took."""
Probe = Callable[[], dict[str, float]]
"""What guards.py asks of held-out examples; "held" (with "held_low" and "held_high") judges which
checkpoint is the best."""


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
        for name in ("lr", "clip"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected more than 0")


@dataclass(frozen=True)
class Session:
    """How a run is watched and kept. Nothing here changes what is trained, so a run may go on under
    another one."""

    stop_on: Literal["nothing", "collapse"] = "nothing"
    """collapse: end the run when an alarm says that more steps will not mend it."""
    check_every: int = 50
    """Steps between checks for alarms; the first and the last step are checked too."""
    checked: int = 12
    """Held-out passages or documents that a check looks at; they also judge the best checkpoint."""
    save_minutes: float = 10.0
    """A checkpoint is written after so many minutes even where save_every asks for none yet."""
    keep: int = 2
    """Newest checkpoints that are kept."""

    def __post_init__(self) -> None:
        for name, least in {"check_every": 1, "checked": 2, "keep": 1}.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least {least}")


def train(
    stage: str,
    parameters: Mapping[str, Tensor],
    loss: Loss,
    config: LoopConfig,
    folder: Path,
    rate: Callable[[str, int], float] = lambda part, step: 1.0,
    probe: Probe = dict,
    session: Session = Session(),
) -> None:
    """Minimise `loss` over `parameters`, in place; resumes from folder/STAGE.safetensors.

    rate: of a part, which the first two words of a parameter's name are, and a step: the part's
    learning rate in multiples of the config's. probe: what the checks for alarms (guards.py)
    measure on held-out examples. Where processes train together
    (parallel.py), each has its own share of a step's rows, gradients are averaged, and the first
    one checks and writes.

    Ctrl-C and SIGTERM end the step, write a checkpoint and are passed on (as KeyboardInterrupt and
    SystemExit). Raises CheckpointError where a checkpoint cannot be written, or the one found has
    other tensors than `parameters`; FloatingPointError where loss or gradient is not finite, with
    the state before that step in STAGE.failed.safetensors; CollapseError as the session says.
    """
    groups = [{"params": list(p.values()), "part": n} for n, p in _parts(parameters).items()]
    optimizer = torch.optim.AdamW(groups, lr=config.lr, weight_decay=0.0)
    first, console = parallel.rank() == 0, Console(stderr=True)
    checkpoints, log = Checkpoints(folder, stage, session.keep), folder / "metrics.jsonl"
    step, damaged = checkpoints.load(parameters, optimizer)
    if damaged and first:
        console.print(damaged, style="red", highlight=False, soft_wrap=True)
    folder.mkdir(parents=True, exist_ok=True)
    rows = logged(log, stage, step) if first else []
    checks = [row["alarms"] for row in rows if "alarms" in row]
    saved = time.monotonic()
    with _progress(stage, config.steps, step, console, first) as show, _stop_held() as stopping:
        while step < config.steps:
            checking = step == 0 or (step + 1) % session.check_every == 0
            checking = checking or step + 1 == config.steps
            began = time.perf_counter()
            for group in optimizer.param_groups:
                group["lr"] = config.lr * rate(group["part"], step) * _schedule(step, config)
            try:
                figures = _update(step, parameters, loss, optimizer, config, checking)
            except FloatingPointError:
                if first:
                    checkpoints.save(parameters, optimizer, step, "failed")
                raise
            step += 1
            figures["seconds"] = time.perf_counter() - began
            row: dict = {"stage": stage, "step": step}
            if checking and first:
                figures |= probe()
                found = alarms({**figures, "step": float(step)})
                for name in found.keys() - (checks[-1] if checks else {}).keys():
                    alarm = f"alarm, {stage} step {step}: {name}: {found[name]}"
                    console.print(alarm, style="red", highlight=False, markup=False, soft_wrap=True)
                checks.append(found)
                if "held" in figures and figures["held"] < checkpoints.best().get("held", math.inf):
                    kept = {n: v for n, v in figures.items() if n.startswith("held")}
                    checkpoints.save(parameters, optimizer, step, "best", **kept)
            row |= {k: round(v, 5) for k, v in figures.items()}
            if checking and first:
                row["alarms"] = checks[-1]
            ending = collapsed(checks) if session.stop_on == "collapse" else None
            # All processes stop at the same step, or the others would wait for the one that did.
            asked = {"stop": float(sum(stopping)), "end": float(ending is not None)}
            asked = parallel.mean(asked)
            stop, end = asked["stop"] > 0, asked["end"] > 0
            due = step % config.save_every == 0 or step == config.steps
            due = due or time.monotonic() - saved > 60 * session.save_minutes
            if first:
                log_row(log, row)
                show(step, _note(figures, checks[-1] if checks else {}))
                if due or stop or end:
                    checkpoints.save(parameters, optimizer, step)
                    saved = time.monotonic()
            if stop:
                if first:
                    console.print(
                        f"{stage} stopped at step {step}; the same command goes on from here"
                    )
                if signal.SIGTERM not in stopping:
                    raise KeyboardInterrupt
                raise SystemExit(128 + signal.SIGTERM)
            if end:
                raise CollapseError(f"{stage} ended at step {step} by --stop-on: {ending}")


def shuffled(count: int, seed: int, step: int, size: int) -> list[int]:
    """The items of one step: `size` indices below `count`, each epoch in its own seeded order."""
    indices = []
    for position in range(step * size, (step + 1) * size):
        epoch, place = divmod(position, count)
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed * 1000 + epoch))
        indices.append(int(order[place]))
    return indices


@contextmanager
def _progress(
    stage: str, steps: int, done: int, console: Console, shown: bool
) -> Iterator[Callable[[int, str], None]]:
    """A bar, and a function that moves it to a step with a note beside it."""
    named = TextColumn("[progress.description]{task.description}")
    columns = (named, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    note = TextColumn("{task.fields[note]}")
    with Progress(*columns, note, console=console, disable=not shown) as bar:
        task = bar.add_task(stage, total=steps, completed=done, note="")
        yield lambda step, text: bar.update(task, completed=step, note=text)


def _note(figures: Mapping[str, float], standing: Mapping[str, str]) -> str:
    """What stands beside the bar: loss, throughput, the alarms of the last check."""
    said = f"loss {figures['loss']:.3f}"
    if "tokens" in figures:
        said += f", {figures['tokens'] / figures['seconds']:.0f} tok/s"
    return said + (f", [red]alarm: {' '.join(standing)}[/red]" if standing else "")


@contextmanager
def _stop_held() -> Iterator[list[int]]:
    """Ctrl-C and SIGTERM wait for the end of the step, so that no checkpoint holds half an update;
    the list fills when one comes. A second acts at once, and then the last checkpoint counts."""
    received: list[int] = []

    def hold(signal_number, _frame):
        if received:
            raise KeyboardInterrupt
        received.append(signal_number)

    before = {number: signal.signal(number, hold) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _update(
    step: int,
    parameters: Mapping[str, Tensor],
    loss: Loss,
    optimizer: Optimizer,
    config: LoopConfig,
    checking: bool,
) -> dict[str, float]:
    """One step; its figures, with gradient norms by part and by objective where it is checked."""
    tensors = list(parameters.values())
    value, figures = loss(step)
    counts = parallel.weight(float(figures.get("tokens", 1.0)))
    joint = parallel.mean({"loss": value.item()}, counts)["loss"]
    if not math.isfinite(joint):
        raise FloatingPointError(f"loss is {joint} at step {step}; the last checkpoint is good")
    if not value.requires_grad:
        raise ValueError("the loss reaches none of the trained parameters; check what is detached")
    optimizer.zero_grad()
    norms = _objective_norms(figures, tensors) if checking else {}
    (value * counts).backward()
    for tensor in tensors:
        # A tensor that the loss does not reach has a state all the same, so that it can be saved.
        tensor.grad = torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
    parallel.average_gradients(tensors)
    norms |= _part_norms(parameters) if checking else {}
    norm = torch.nn.utils.clip_grad_norm_(tensors, config.clip)
    if not torch.isfinite(norm):
        raise FloatingPointError(f"gradient is {norm} at step {step}; the last checkpoint is good")
    optimizer.step()
    plain = {n: v.item() if isinstance(v, Tensor) else float(v) for n, v in figures.items()}
    plain = parallel.mean(plain, counts)
    if "tokens" in plain:
        plain["tokens"] = float(figures["tokens"]) / counts * parallel.world()
    return {"loss": joint, "grad_norm": norm.item(), **plain, **norms}


def _objective_norms(
    figures: Mapping[str, Tensor | float], tensors: list[Tensor]
) -> dict[str, float]:
    """Gradient norm of each objective alone, before its weight; leaves no gradient behind."""
    found = {}
    for name, value in figures.items():
        if isinstance(value, Tensor) and value.requires_grad:
            of = torch.autograd.grad(value, tensors, retain_graph=True, allow_unused=True)
            found[f"grad_of.{name}"] = _norm([g for g in of if g is not None])
    return found


def _part_norms(parameters: Mapping[str, Tensor]) -> dict[str, float]:
    """Gradient norm of each part."""
    gradients = {n: t.grad for n, t in parameters.items() if t.grad is not None}
    return {f"grad.{part}": _norm(list(own.values())) for part, own in _parts(gradients).items()}


def _parts(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Tensors by part: those whose names begin with the same two words."""
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        parts.setdefault(".".join(name.split(".")[:2]), {})[name] = tensor
    return parts


def _norm(gradients: list[Tensor]) -> float:
    return torch.nn.utils.get_total_norm(gradients).item() if gradients else 0.0


def _schedule(step: int, config: LoopConfig) -> float:
    if step < config.warmup:
        return (step + 1) / config.warmup
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    return 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * done))
