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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.optim import Optimizer

from latentwire.terminal import terminal
from latentwire.train import parallel
from latentwire.train.alarms import CollapseError, alarms, collapsed
from latentwire.train.checkpoints import CheckpointError, Checkpoints, log_row, logged
from latentwire.train.settings import LoopConfig, Session
from latentwire.train.step import Loss, by_part, update
from latentwire.train.trackers import tracked

Probe = Callable[[], dict[str, float]]
"""What alarms.py asks of held-out examples; "held" (with "held_low" and "held_high") judges which
checkpoint is the best."""


def train(
    stage: str,
    parameters: Mapping[str, Tensor],
    loss: Loss,
    config: LoopConfig,
    folder: Path,
    rate: Callable[[str, int], float] = lambda part, step: 1.0,
    probe: Probe = dict,
    session: Session | None = None,
    measured: list[dict[str, float]] | None = None,
) -> None:
    """Minimise `loss` over `parameters`, in place; resumes from folder/STAGE.safetensors. Those
    without requires_grad (running averages, which the loss itself moves) are kept, not trained.

    rate: the learning rate of a part at a step, in multiples of the config's; parameters are of one
    part whose names begin with the same two words. probe: what the checks for alarms (alarms.py)
    measure on held-out examples. measured: a list that a loss may look at: the loop keeps in it
    what every check so far found, as it is logged, with its "step". Where processes train together
    (parallel.py), each has its own share of a step's rows, gradients are averaged, and the first
    one checks and writes.

    Ctrl-C and SIGTERM end the step, write a checkpoint and are passed on (as KeyboardInterrupt and
    SystemExit). Raises CheckpointError where a checkpoint cannot be written, the one found has
    other tensors than `parameters`, or processes find different ones; FloatingPointError where loss
    or gradient is not finite, with the state before that step in STAGE.failed.safetensors;
    CollapseError as the session says.
    """
    session = session or Session()
    trained = {name: tensor for name, tensor in parameters.items() if tensor.requires_grad}
    optimizer = _optimizer(trained, config)
    first, console = parallel.rank() == 0, terminal(stderr=True)
    checkpoints, log = Checkpoints(folder, stage, session.keep), folder / "metrics.jsonl"
    step, damaged = checkpoints.load(parameters, optimizer)
    if damaged and first:
        console.print(damaged, style="red", soft_wrap=True)
    # Told to all, so that none goes on and waits for those that stop here.
    if parallel.mean({"apart": float(step != parallel.of_first(step))})["apart"] > 0:
        raise CheckpointError(
            f"process {parallel.rank()} finds {folder} at step {step}, and others at another; all "
            "machines have to see one run folder"
        )
    parallel.as_first(list(parameters.values()))
    folder.mkdir(parents=True, exist_ok=True)
    rows = logged(log, stage, step) if first else []
    checks = [row["alarms"] for row in rows if "alarms" in row]
    measured = [] if measured is None else measured
    measured[:] = parallel.of_first([_numbers(row) for row in rows if "alarms" in row])
    saved = time.monotonic()
    progress = _progress(stage, config.steps, step, console, first)
    tracking = tracked(session.trackers if first else (), folder, stage, step)
    with tracking as track, progress as show, _stop_held() as stopping:
        while step < config.steps:
            checking = step == 0 or (step + 1) % session.check_every == 0
            checking = checking or step + 1 == config.steps
            began = time.perf_counter()
            for group in optimizer.param_groups:
                group["rate"] = rate(group["part"], step)
            averages = {n: t.clone() for n, t in parameters.items() if not t.requires_grad}
            try:
                figures = update(step, trained, loss, optimizer, config, session, checking)
            except FloatingPointError as error:
                for name, before in averages.items():  # the loss itself has moved them
                    parameters[name].copy_(before)
                if first:
                    checkpoints.save(parameters, optimizer, step, "failed")
                raise FloatingPointError(
                    f"{stage}: {error}; try a lower lr, or float32 in place of bf16. "
                    f"{checkpoints.path('failed')} has the state before it: renamed to "
                    f"{checkpoints.path().name}, the same command begins with that step, batch and "
                    "all"
                ) from None
            step += 1
            figures["seconds"] = time.perf_counter() - began
            if checking and (first or parallel.all_check()):
                figures |= probe()
            row: dict = {"stage": stage, "step": step}
            row |= {k: round(v, 5) for k, v in figures.items()}
            if checking and first:
                checks.append(alarms({**figures, "step": float(step)}))
                row["alarms"] = checks[-1]
                _tell(checks, stage, step, console)
                if "held" in figures and figures["held"] < checkpoints.best().get("held", math.inf):
                    kept = {n: v for n, v in figures.items() if n.startswith("held")}
                    checkpoints.save(parameters, optimizer, step, "best", **kept)
            if checking:
                measured.append(parallel.of_first(_numbers(row)))
            ending = collapsed(checks) if session.stop_on == "collapse" else None
            # All processes stop at the same step, or the others would wait for the one that did.
            asked = {
                "stop": bool(stopping),
                "term": signal.SIGTERM in stopping,
                "end": bool(ending),
            }
            asked = parallel.mean({name: float(value) for name, value in asked.items()})
            stop, end = asked["stop"] > 0, asked["end"] > 0
            due = step % config.save_every == 0 or step == config.steps
            due = due or time.monotonic() - saved > 60 * session.save_minutes
            if first:
                log_row(log, row)
                track(step, row)
                show(step, _note(figures, checks[-1] if checks else {}), checking)
                if due or stop or end:
                    checkpoints.save(parameters, optimizer, step)
                    saved = time.monotonic()
            if stop:
                _stopped(stage, step, console if first else None, asked["term"] > 0)
            if end:
                raise CollapseError(f"{stage} ended at step {step} by --stop-on: {ending}")


def _optimizer(parameters: Mapping[str, Tensor], config: LoopConfig) -> Optimizer:
    groups = [{"params": list(p.values()), "part": n} for n, p in by_part(parameters).items()]
    return torch.optim.AdamW(groups, lr=config.lr, weight_decay=0.0)


def _numbers(row: Mapping[str, object]) -> dict[str, float]:
    return {name: float(value) for name, value in row.items() if isinstance(value, int | float)}


def _tell(checks: Sequence[Mapping[str, str]], stage: str, step: int, console: Console) -> None:
    """Print the alarms of the last check that did not stand in the one before."""
    for name in checks[-1].keys() - (checks[-2] if len(checks) > 1 else {}).keys():
        alarm = f"alarm, {stage} step {step}: {name}: {checks[-1][name]}"
        console.print(alarm, style="red", soft_wrap=True)


def _stopped(stage: str, step: int, console: Console | None, terminated: bool) -> NoReturn:
    if console is not None:
        console.print(f"{stage} stopped at step {step}; the same command goes on from here")
    if not terminated:
        raise KeyboardInterrupt
    raise SystemExit(128 + signal.SIGTERM)


@contextmanager
def _progress(
    stage: str, steps: int, done: int, console: Console, shown: bool
) -> Iterator[Callable[[int, str, bool], None]]:
    """A bar, and a function that moves it to a step with a note beside it; where nobody sees a bar
    move (a job's log), a line for each step that is checked."""

    def show(step: int, text: str, checking: bool) -> None:
        bar.update(task, completed=step, note=text)
        if checking and not console.is_terminal:
            console.print(f"{stage} {step}/{steps}: {text}", soft_wrap=True)

    named = TextColumn("{task.description}", style="progress.description", markup=False)
    columns = (named, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    note = TextColumn("{task.fields[note]}", markup=False)
    shown = shown and console.is_terminal
    with Progress(*columns, note, console=console, disable=not shown) as bar:
        task = bar.add_task(stage, total=steps, completed=done, note="")
        yield show


def _note(figures: Mapping[str, float], standing: Mapping[str, str]) -> str:
    """What stands beside the bar: loss, throughput, the alarms of the last check."""
    said = f"loss {figures['loss']:.3f}"
    if "tokens" in figures:
        said += f", {figures['tokens'] / figures['seconds']:.0f} tok/s"
    return said + (f", alarm: {' '.join(standing)}" if standing else "")


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
