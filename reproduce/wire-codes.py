"""Trains, checks and evaluates a shared wire within a budget of minutes.

    python reproduce/wire-codes.py OUT --data squad_train.jsonl --eval squad_dev.jsonl

On a GPU: bfloat16 readers, large batches, all of the minutes. On a CPU, to see it run:

    python reproduce/wire-codes.py OUT --data squad_train.jsonl --eval squad_dev.jsonl \\
        --minutes 3 --batch-size 2 --limit 6

OUT gets metrics.jsonl (loss of every step, held-out scores every minute), wire/ (bf16 weights in
files of at most 16 MiB, 33 MB in all) and results.json, which are worth keeping, and checkpoints of
some 250 MB each, which are not. It needs both zoo models on the machine (latentwire
fetch), and packages as in pyproject.toml, though neither tyro nor peft.
"""

import argparse
import json
import math
import time
from dataclasses import replace
from pathlib import Path

import torch

from latentwire.train.loop import LoopConfig, Session
from latentwire.train.schedules import Schedule
from latentwire.wire.joint import evaluate_readers
from latentwire.wire.learned.config import SharedRecipe, shared_4x
from latentwire.wire.learned.data import load_data
from latentwire.wire.learned.objectives import Objectives
from latentwire.wire.learned.shared_wire import SharedWire
from latentwire.wire.learned.training import load_models, train_shared, wire_loss


def options() -> argparse.Namespace:
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", nargs="+", required=True, help="JSONL to train on")
    parser.add_argument("--eval", required=True, help="JSONL to report on")
    parser.add_argument("--minutes", type=float, default=8.5, help="of everything")
    parser.add_argument("--batch-size", type=int, default=64 if cuda else 4)
    parser.add_argument("--limit", type=int, default=500, help="questions to report on")
    parser.add_argument(
        "--check-size", type=int, default=24 if cuda else 2, help="held-out passages"
    )
    parser.add_argument("--fitted", type=int, default=64 if cuda else 8, help="passages to measure")
    parser.add_argument("--format-steps", type=int, default=120 if cuda else 4)
    parser.add_argument("--steps", type=int, help="of the wire, in place of what the minutes allow")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--encoder", default="lm_states")
    parser.add_argument("--injector", default="deep_prefix")
    parser.add_argument("--ratio", type=int, default=4)
    parser.add_argument("--channels", type=int, default=8)
    parser.add_argument("--bits", type=int, default=4)
    return parser.parse_args()


def recipe_of(given: argparse.Namespace) -> SharedRecipe:
    base = shared_4x()
    sizes = replace(base.wire.sizes, ratio=given.ratio, channels=given.channels)
    wire = replace(
        base.wire,
        encoder=given.encoder,
        injector=given.injector,
        sizes=sizes,
        bits=given.bits,
        dtype="bfloat16" if torch.cuda.is_available() else "float32",
    )
    return replace(
        base,
        wire=wire,
        data=tuple(given.data),
        out=given.out,
        batch_size=given.batch_size,
        fitted=given.fitted,
        format=LoopConfig(given.format_steps, 0.025, warmup=10),
    )


def seconds_of_a_step(wire: SharedWire, recipe: SharedRecipe, steps: int = 3) -> float:
    """Of the wire's stage, the first one left out."""
    training_data, began = load_data(recipe, wire.encoder.lm), 0.0
    for step in range(1 + steps):
        if step == 1:
            began = time.perf_counter()
        wire_loss(wire, wire.readers, training_data, recipe, step)[0].backward()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    return (time.perf_counter() - began) / steps


def main() -> None:
    began, given = time.perf_counter(), options()
    torch.set_float32_matmul_precision("high")
    recipe = recipe_of(given)
    lms = load_models({*recipe.wire.readers, recipe.wire.source}, recipe.wire.dtype)
    steps, every = given.steps, 50
    if steps is None:
        measured = SharedWire(recipe.wire, lms)
        second = seconds_of_a_step(measured, recipe)
        # A format step costs less than one of the wire; the evaluation's share is a guess.
        left = 60 * given.minutes - (time.perf_counter() - began)
        steps, every = max(2, int(0.7 * left / second) - given.format_steps), math.ceil(60 / second)
        print(f"{second:.2f} s a step, {steps} steps", flush=True)
    recipe = replace(
        recipe,
        train=LoopConfig(steps, given.lr, warmup=max(1, min(100, steps // 10)), save_every=10**6),
        objectives=Objectives(reconstruction=Schedule(1.0, 0.3, over=steps / 2)),
    )
    session = Session(check_every=every, check_size=given.check_size, keep=1)
    folder = train_shared(recipe, session, lms)
    print(f"trained after {time.perf_counter() - began:.0f} s", flush=True)
    wire = SharedWire.from_pretrained(folder / "wire", lms)
    result = evaluate_readers(wire, given.eval, given.limit)
    (folder / "results.json").write_text(json.dumps(result, indent=1))
    for name, one in result["readers"].items():
        print(f"{name}: {one['message_bytes']:.0f} bytes for {one['text_bytes']:.0f} of text")
        for row, scores in one["rows"].items():
            print(f"  {row:18} F1 {100 * scores['f1']:.1f} NLL {scores['nll']:.2f}")
    print(f"done after {time.perf_counter() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
