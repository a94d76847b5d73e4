"""A training that is killed at random moments ends as one that never was."""

import json
import multiprocessing
import random
import time
from dataclasses import replace

import torch
from safetensors.torch import load_file
from test_alarms import quick  # noqa: F401 (a fixture)
from test_recipes import lm  # noqa: F401 (a fixture)

from latentwire.train.loop import LoopConfig, Session
from latentwire.wire.training import train_wire

KILLS = 12
SESSION = Session(check_every=4, check_size=2, keep=2)


def rows(folder) -> list[dict]:
    """All that was logged but times, and the alarm that is about them."""
    found = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
    for row in found:
        row.pop("seconds"), row.pop("waited"), row.get("alarms", {}).pop("waiting", None)
    return found


def test_killed_at_random_moments_and_resumed_equals_uninterrupted(lm, quick, tmp_path):  # noqa: F811
    recipe = replace(
        quick,
        out=tmp_path / "a",
        format=LoopConfig(steps=4, lr=0.01, warmup=1, save_every=2),
        slots=LoopConfig(steps=8, lr=0.02, warmup=2, save_every=3),
    )
    # Forked, so that each begins with what this process has loaded, and nothing that it learns.
    fork = multiprocessing.get_context("fork")

    def started(folder):
        changed = replace(recipe, out=folder)
        process = fork.Process(target=train_wire, args=(changed, SESSION))
        process.start()
        return process

    state, began = torch.get_rng_state(), time.monotonic()
    straight = train_wire(recipe, SESSION)
    whole = time.monotonic() - began
    # There is no state of a random generator to keep: nothing draws from the global one.
    assert torch.equal(torch.get_rng_state(), state)
    moments, killed, out = random.Random(0), 0, tmp_path / "b"
    while killed < KILLS:
        process = started(out)
        process.join(moments.uniform(0, whole / 3))
        if process.is_alive():
            process.kill()
            killed += 1
        process.join()
        if process.exitcode == 0:  # done before it was to be killed: once more from the beginning
            assert rows(straight) == rows(out)
            out = tmp_path / f"b{killed}"
    last = started(out)
    last.join()
    assert last.exitcode == 0
    assert rows(straight) == rows(out)
    # To the bit: what is trained and its moments in float32, and the weights that were saved. Of a
    # checkpoint the tensors, since safetensors writes its metadata in an order of no meaning.
    for file in ("format.safetensors", "slots.safetensors"):
        one, two = load_file(straight / file), load_file(out / file)
        assert one.keys() == two.keys()
        assert all(torch.equal(one[name], two[name]) for name in one), file
    weights = "wire/wire.safetensors"
    assert (straight / weights).read_bytes() == (out / weights).read_bytes()
