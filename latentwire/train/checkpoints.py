"""Checkpoints of one stage: the newest, those before it, and the best.

    STAGE.safetensors           newest
    STAGE.1.safetensors, ...    before it, up to `keep` in all
    STAGE.best.safetensors      lowest loss on the held-out examples
    STAGE.failed.safetensors    before a step whose loss or gradient was not finite

Each holds every trained tensor, the optimizer's moments, running averages, and as metadata the step
and a digest of the run's config. There is no state of a random generator and no position in the
data to keep: what a step sees and draws is a function of (seed, step), and nothing draws from a
global generator.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.optim import Optimizer

from latentwire.files import digest, first_of, read_rows, write_whole
from latentwire.reading import InputError

MOMENTS = ("exp_avg", "exp_avg_sq")


class CheckpointError(InputError):
    """A checkpoint cannot be written, or does not belong to these parameters."""


class Checkpoints:
    """Those of one stage in one run folder, of which the newest `keep` stay."""

    def __init__(self, folder: Path, stage: str, keep: int = 2):
        self.folder, self.stage, self.keep = folder, stage, keep
        config = folder / "config.json"
        self.run = digest(config.read_text()) if config.exists() else ""

    def path(self, which: str | int = 0) -> Path:
        """The file of the newest (0), of an earlier one (1, 2, ...), "best" or "failed"."""
        return self.folder / f"{self.stage}{f'.{which}' if which else ''}.safetensors"

    def save(
        self,
        parameters: Mapping[str, Tensor],
        optimizer: Optimizer,
        step: int,
        which: str | int = 0,
        **facts: float,
    ) -> None:
        """Write one; the earlier ones move on by a place only when the new one is whole. facts:
        kept with it as metadata. Raises CheckpointError where it cannot be written."""
        state = {}
        for name, tensor in parameters.items():
            state[f"value/{name}"] = tensor.detach().contiguous()
            for moment in _moments(tensor, step):
                state[f"{moment}/{name}"] = optimizer.state[tensor][moment].contiguous()
        facts = {"step": step, **facts}
        metadata = {"run": self.run, **{name: str(value) for name, value in facts.items()}}
        new = self.path("new")
        try:
            write_whole(new, save(state, metadata=metadata))
            if which == 0:
                for place in range(self.keep - 1, 0, -1):
                    if self.path(place - 1).exists():
                        self.path(place - 1).replace(self.path(place))
            new.replace(self.path(which))
        except OSError as error:
            raise CheckpointError(
                f"{self.path(which)} of step {step} cannot be written ({error.strerror}); the one "
                "before is intact: make room, and the same command goes on from it"
            ) from None

    @torch.no_grad()
    def load(self, parameters: Mapping[str, Tensor], optimizer: Optimizer) -> tuple[int, str]:
        """Fill parameters and optimizer from the newest one that is whole; its step, and a note of
        those that were damaged. Step 0 where there is none. Raises CheckpointError for one of
        another run or of other tensors, and where all are damaged."""
        note = ""
        # The file of place 0 is missing for a moment while a save moves files.
        kept = [p for place in range(self.keep + 1) if (p := self.path(place)).is_file()]
        for path in kept:
            try:
                step = self._fill(path, parameters, optimizer)
            except SafetensorError:
                note += f"{path} is truncated or damaged; going on from the one before. "
                continue
            return step, note
        if kept:
            raise CheckpointError(
                f"{kept[0]} is truncated or damaged and none before it is whole; remove "
                f"{self.stage}*.safetensors to begin the stage anew"
            )
        return 0, note

    def best(self) -> dict[str, float]:
        """The facts of the best one; none where there is none that is whole."""
        try:
            facts = _metadata(self.path("best"))
        except (OSError, SafetensorError):
            return {}
        try:
            return {name: float(value) for name, value in facts.items() if name != "run"}
        except ValueError:
            raise CheckpointError(f"{self.path('best')} has facts that are no numbers") from None

    @torch.no_grad()
    def take_best(self, parameters: Mapping[str, Tensor], optimizer: Optimizer) -> dict[str, float]:
        """Fill parameters from the best one; its facts. Raises CheckpointError where it is
        missing, damaged, of another run or of other tensors."""
        try:
            self._fill(self.path("best"), parameters, optimizer)
        except (OSError, SafetensorError):
            raise CheckpointError(
                f"{self.path('best')} is missing or damaged, and its step was to be kept; remove "
                f"{self.stage}*.safetensors to begin the stage anew"
            ) from None
        return self.best()

    def _fill(self, path: Path, parameters: Mapping[str, Tensor], optimizer: Optimizer) -> int:
        with safe_open(str(path), framework="pt") as saved:
            metadata = saved.metadata() or {}
            check_run(path, metadata, self.run)
            step = _step(path, metadata)
            expected = {
                f"{kind}/{name}"
                for name, tensor in parameters.items()
                for kind in ("value", *_moments(tensor, step))
            }
            found = set(saved.keys())
            if expected != found:
                raise CheckpointError(
                    f"{path}: missing {sorted(expected - found)}, "
                    f"left over {sorted(found - expected)}"
                )
            tensors = {name: saved.get_tensor(name) for name in found}
        for name, tensor in parameters.items():
            for kind in ("value", *_moments(tensor, step)):
                _check(path, f"{kind}/{name}", tensors[f"{kind}/{name}"], tensor)
        for name, tensor in parameters.items():
            tensor.copy_(tensors[f"value/{name}"])
            if kept := _moments(tensor, step):
                moments = {m: tensors[f"{m}/{name}"].to(tensor.device) for m in kept}
                optimizer.state[tensor] = {"step": torch.tensor(float(step)), **moments}
        return step


def _step(path: Path, metadata: Mapping[str, str]) -> int:
    """The step that a checkpoint says it is of. Raises CheckpointError where it names none."""
    step = metadata.get("step", "")
    if not (step.isascii() and step.isdigit() and len(step) < 12):
        raise CheckpointError(f"{path} is of step {step[:20]!r}; expected a number: remove it")
    return int(step)


def _check(path: Path, name: str, saved: Tensor, tensor: Tensor) -> None:
    """Raises CheckpointError for a saved tensor that cannot be what this parameter was."""
    if saved.shape != tensor.shape:
        raise CheckpointError(
            f"{path}: {name} has shape {list(saved.shape)}; expected {list(tensor.shape)}"
        )
    # Counters, such as a batch norm's, are whole numbers; all else may be of another precision.
    floating = saved.is_floating_point() and tensor.is_floating_point()
    if saved.dtype != tensor.dtype and not floating:
        raise CheckpointError(f"{path}: {name} is {saved.dtype}; expected {tensor.dtype}")
    if name.startswith("value/") and not torch.isfinite(saved.float()).all():
        raise CheckpointError(f"{path}: {name} has NaN or infinite values")


def _moments(tensor: Tensor, step: int) -> tuple[str, ...]:
    """The optimizer's moments of a tensor after so many steps."""
    return MOMENTS if step and tensor.requires_grad else ()


def check_run(path: Path, metadata: Mapping[str, str], run: str) -> None:
    """Raises CheckpointError for a checkpoint that another run wrote."""
    if metadata.get("run", run) != run:
        raise CheckpointError(
            f"{path} is a checkpoint of another recipe; remove it, or give another run folder"
        )


def check_folder(folder: Path, run: str) -> None:
    """Raises CheckpointError where a folder holds a checkpoint of another run; needs no model.
    Damaged ones are left to `load`, which knows those before them."""
    for path in sorted(folder.glob("*.safetensors")):
        try:
            check_run(path, _metadata(path), run)
        except SafetensorError:
            continue


def log_row(path: Path, row: Mapping[str, object]) -> None:
    """One more line of metrics.jsonl. Raises CheckpointError where it cannot be written."""
    try:
        with path.open("a") as file:
            file.write(json.dumps(row) + "\n")
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be written ({error.strerror}); the last checkpoint is "
            "intact: make room, and the same command goes on from it"
        ) from None


def logged(path: Path, stage: str, step: int) -> list[dict]:
    """The rows of a stage up to a step. Those after it, which a killed process logged before its
    next checkpoint, are taken out of the file, and so are a line that was cut off and a step that
    two processes once logged."""
    rows = first_of(read_rows(path), lambda r: (r["stage"], r["step"])).values()
    kept = [r for r in rows if r["stage"] != stage or r["step"] <= step]
    text = "".join(json.dumps(r) + "\n" for r in kept)
    if path.exists() and text.encode() != path.read_bytes():
        write_whole(path, text)
    return [r for r in kept if r["stage"] == stage]


def _metadata(path: Path) -> dict[str, str]:
    with safe_open(str(path), framework="pt") as saved:
        return saved.metadata() or {}
