"""Trackers, through Hugging Face Accelerate: the numbers of metrics.jsonl, sent elsewhere too.

A stage of a run is one run of a tracker: tensorboard's in RUN/tensorboard/STAGE, and wandb's and
trackio's named RUN-STAGE-ID, of the project latentwire. The id is kept in RUN/tracked, since other
runs may have folders of the same name.

What a killed process sent after its last checkpoint is sent again, the same but for times:
tensorboard drops the first of the two, wandb where it is online the second, and trackio keeps both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import ProjectConfiguration

from latentwire.files import write_whole
from latentwire.lm.devices import accelerator
from latentwire.texts import check_texts

Tracker = Literal["tensorboard", "wandb", "trackio"]
Track = Callable[[int, Mapping[str, Any]], None]
"""track(step, row): the numbers of a row."""
PROJECT = "latentwire"


def check_trackers(names: Sequence[str]) -> None:
    """Raises ValueError for one that is not installed, before any compute."""
    check_texts(names, "trackers")
    installed = {str(name) for name in get_available_trackers()}
    if missing := [name for name in names if name not in installed]:
        raise ValueError(f"trackers: {missing[0]} is not installed: pip install {missing[0]}")


@contextmanager
def tracked(names: Sequence[str], folder: Path, stage: str, step: int) -> Iterator[Track]:
    """A function that sends rows to each tracker, which goes on with a run after `step`. Raises
    ValueError for one that cannot begin."""
    check_texts(names, "trackers")
    if not names:
        yield lambda step, row: None
        return
    place = ProjectConfiguration(str(folder), str(folder / "tensorboard" / stage))
    cpu = accelerator() is None
    tracking = Accelerator(cpu=cpu, log_with=list(names), project_config=place)
    own = _id(folder)
    name = f"{folder.resolve().name}-{stage}-{own}"
    options = {
        "tensorboard": {"purge_step": step + 1},
        "wandb": {"name": name, "id": f"{stage}-{own}", "resume": "allow", "dir": str(folder)},
        "trackio": {"name": name, "resume": "allow"},
    }
    try:
        tracking.init_trackers(PROJECT, init_kwargs=options)
    except Exception as error:  # each has kinds of its own; a user needs the reason
        raise ValueError(f"trackers: {' '.join(str(error).split())}") from None

    def track(step: int, row: Mapping[str, Any]) -> None:
        numbers = {n: v for n, v in row.items() if isinstance(v, float)}
        tracking.log(numbers, step=step)

    try:
        yield track
    finally:
        for tracker in tracking.trackers:  # end_training would part the processes as well
            tracker.finish()


def _id(folder: Path) -> str:
    """The id that tells a run from all others."""
    path = folder / "tracked"
    if not path.exists():
        write_whole(path, uuid4().hex[:8])
    return path.read_text()
