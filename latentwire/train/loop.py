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
"""Measures on held-out examples the figures that alarms.py reads; "held" (with "held_low" and
"held_high") judges which checkpoint is the best."""


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
    without requires_grad (running averages, which the loss itself moves) are kept, not trained. At
    the end they are as after the check with the lowest held-out loss, where that is below the
    last's; the last row of the log names its step as "kept".

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
    training = _Stage(stage, parameters, config, folder, session or Session(), measured)
    first, session = training.first, training.session
    progress = _progress(stage, config.steps, training.step, training.console, first)
    tracking = tracked(session.trackers if first else (), folder, stage, training.step)
    with tracking as track, progress as show, _stop_held() as stopping:
        while training.step < config.steps:
            checking = training.is_check()
            figures = training.update(loss, rate, checking)
            row = training.check(figures, probe, checking)
            ending = collapsed(training.checks) if session.stop_on == "collapse" else None
            stop, terminated, end = _agreed(stopping, ending)
            if first:
                log_row(training.log, row)
                track(training.step, row)
                show(training.step, _note(figures, training.standing), checking)
            training.save_where_due(stop or end)
            if stop:
                _stopped(stage, training.step, training.console if first else None, terminated)
            if end:
                raise CollapseError(f"{stage} ended at step {training.step} by --stop-on: {ending}")
    training.take_best()


class _Stage:
    """One stage while it trains: its step, its parameters and optimizer, its files and checks."""

    def __init__(
        self,
        name: str,
        parameters: Mapping[str, Tensor],
        config: LoopConfig,
        folder: Path,
        session: Session,
        measured: list[dict[str, float]] | None,
    ):
        self.name, self.parameters, self.config, self.session = name, parameters, config, session
        self.trained = {name: tensor for name, tensor in parameters.items() if tensor.requires_grad}
        self.optimizer = _optimizer(self.trained, config)
        self.first, self.console = parallel.rank() == 0, terminal(stderr=True)
        self.checkpoints, self.log = (
            Checkpoints(folder, name, session.keep),
            folder / "metrics.jsonl",
        )
        self.step, damaged = self.checkpoints.load(parameters, self.optimizer)
        if damaged and self.first:
            self.console.print(damaged, style="red", soft_wrap=True)
        # Broadcast, so that no process goes on and waits for those that stop here.
        differs = float(self.step != parallel.of_first(self.step))
        if parallel.mean({"apart": differs})["apart"] > 0:
            raise CheckpointError(
                f"process {parallel.rank()} finds {folder} at step {self.step}, and others at "
                "another; all machines have to see one run folder"
            )
        parallel.as_first(list(parameters.values()))
        folder.mkdir(parents=True, exist_ok=True)
        rows = logged(self.log, name, self.step) if self.first else []
        self.checks: list[dict[str, str]] = [row["alarms"] for row in rows if "alarms" in row]
        self.measured = [] if measured is None else measured
        self.measured[:] = parallel.of_first([_numbers(row) for row in rows if "alarms" in row])
        self.saved = time.monotonic()

    @property
    def standing(self) -> Mapping[str, str]:
        """The alarms of the last check."""
        return self.checks[-1] if self.checks else {}

    def is_check(self) -> bool:
        """True where the step that comes next is checked: the first, the last, and some between."""
        due = (self.step + 1) % self.session.check_every == 0
        return self.step == 0 or due or self.step + 1 == self.config.steps

    def update(
        self, loss: Loss, rate: Callable[[str, int], float], checking: bool
    ) -> dict[str, float]:
        """Take one step; its figures. Raises FloatingPointError as `train` does."""
        began, step, config = time.perf_counter(), self.step, self.config
        for group in self.optimizer.param_groups:
            group["rate"] = rate(group["part"], step)
        averages = {n: t.clone() for n, t in self.parameters.items() if not t.requires_grad}
        try:
            figures = update(
                step, self.trained, loss, self.optimizer, config, self.session, checking
            )
        except FloatingPointError as error:
            for name, value in averages.items():  # the loss itself has moved them
                self.parameters[name].copy_(value)
            if self.first:
                self.checkpoints.save(self.parameters, self.optimizer, step, "failed")
            raise FloatingPointError(
                f"{self.name}: {error}; try a lower lr, or float32 in place of bf16. "
                f"{self.checkpoints.path('failed')} has the state before it: renamed to "
                f"{self.checkpoints.path().name}, the same command begins with that step, batch "
                "and all"
            ) from None
        self.step += 1
        return {**figures, "seconds": time.perf_counter() - began}

    def check(self, figures: dict[str, float], probe: Probe, checking: bool) -> dict:
        """The row of the log of a step, and in it what a check finds where there is one."""
        if checking and (self.first or parallel.all_check()):
            figures |= probe()
        row: dict = {"stage": self.name, "step": self.step}
        row |= {k: round(v, 5) for k, v in figures.items()}
        if checking and self.first:
            self.checks.append(alarms({**figures, "step": float(self.step)}))
            row["alarms"] = self.checks[-1]
            _tell(self.checks, self.name, self.step, self.console)
            best = self.checkpoints.best().get("held", math.inf)
            if "held" in figures and figures["held"] < best:
                kept = {n: v for n, v in figures.items() if n.startswith("held")}
                self.checkpoints.save(self.parameters, self.optimizer, self.step, "best", **kept)
            if "held" in figures and self.step == self.config.steps:
                least = self.checkpoints.best()
                better = least.get("held", math.inf) < figures["held"]
                row["kept"] = int(least["step"]) if better else self.step
        if checking:
            self.measured.append(parallel.of_first(_numbers(row)))
        return row

    def take_best(self) -> None:
        """Fill the parameters from the best checkpoint where the log names one before the last."""
        kept = self.measured[-1].get("kept", self.step) if self.measured else self.step
        if kept == self.step:
            return
        if self.first:
            held = self.checkpoints.take_best(self.parameters, self.optimizer)["held"]
            self.console.print(
                f"{self.name}: step {kept:.0f} is kept, with the lowest held-out loss, {held:.4f}; "
                f"the last step has {self.measured[-1]['held']:.4f}",
                soft_wrap=True,
            )
        parallel.as_first(list(self.parameters.values()))

    def save_where_due(self, ending: bool) -> None:
        """Write a checkpoint where the recipe, the clock or an end asks for one."""
        due = self.step % self.config.save_every == 0 or self.step == self.config.steps
        due = due or time.monotonic() - self.saved > 60 * self.session.save_minutes
        if self.first and (due or ending):
            self.checkpoints.save(self.parameters, self.optimizer, self.step)
            self.saved = time.monotonic()


def _agreed(stopping: Sequence[int], ending: str | None) -> tuple[bool, bool, bool]:
    """True where any process was told to stop, by SIGTERM, or found a collapse: all processes stop
    at the same step, or the others would wait for the one that did."""
    asked = {
        "stop": float(bool(stopping)),
        "term": float(signal.SIGTERM in stopping),
        "end": float(bool(ending)),
    }
    stop, terminated, end = (share > 0 for share in parallel.mean(asked).values())
    return stop, terminated, end


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
    """The note beside the bar: loss, throughput, the alarms of the last check."""
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
