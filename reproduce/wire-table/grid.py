"""The members of the table "encoders x injectors": each encoder with each injector, and each
calibration of embeddings; one reader, the same budget, the same soft prompt. table.sh and
heart.sh train and score them.

heart.json also has rows of parts that were removed after it: refiner, coprocessor, lora_states and
minilm.
"""

import os
from dataclasses import replace
from typing import get_args

import torch

from latentwire.train.loop import LoopConfig
from latentwire.train.schedules import Schedule
from latentwire.wire.learned.config import SharedRecipe
from latentwire.wire.learned.encoders import ENCODERS
from latentwire.wire.learned.encoders.base import EncoderConfig
from latentwire.wire.learned.injectors import INJECTORS, Calibration
from latentwire.wire.learned.objectives import OFF, Objectives
from latentwire.wire.learned.shared_wire import SharedConfig

READER = "smollm2-135m"
STEPS = int(os.environ["STEPS"])
HEART = "HEART" in os.environ
"""Eight passages, the same at each step, for their answers alone; else as many as the steps need,
and all that a shared wire is trained for."""
SIZES = EncoderConfig(ratio=4, window=64, channels=32)


def config(encoder: str, injector: str) -> SharedConfig:
    """The wire of one cell of the table."""
    dtype = "bfloat16" if torch.cuda.is_available() else "float32"
    return SharedConfig((READER,), READER, encoder, injector, SIZES, bits=4, dtype=dtype)


def member(wire: SharedConfig) -> SharedRecipe:
    """The training of one cell."""
    falling = Schedule(1.0, 0.3, over=STEPS / 2)
    return SharedRecipe(
        "table",
        wire,
        data=(os.environ["TRAIN"],),
        init_from="default",
        train=LoopConfig(STEPS, lr=2e-3, warmup=max(1, STEPS // 10), save_every=STEPS),
        batch_size=8,
        questions=1,
        longest=64,
        objectives=Objectives(reconstruction=OFF, kl=OFF)
        if HEART
        else Objectives(reconstruction=falling, piece=20),
        held_out=1,  # nothing is checked while it trains: a check costs as much as some steps
        fitted=16,
    )


def grid() -> dict[str, SharedRecipe]:
    wires = [config(encoder, injector) for encoder in ENCODERS for injector in INJECTORS]
    members = {f"{wire.encoder}--{wire.injector}": member(wire) for wire in wires}
    plain = config("lm_states", "embeddings")
    for calibration in get_args(Calibration)[1:]:  # the first is plain's own
        members[f"calibration--{calibration}"] = member(replace(plain, calibration=calibration))
    return members
