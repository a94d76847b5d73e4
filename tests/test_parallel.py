"""Two processes of Accelerate, over gloo, train as one with the joint batch does."""

import json
import multiprocessing
import os
import socket
from dataclasses import replace

from test_guards import quick  # noqa: F401 (a fixture)
from test_recipes import lm  # noqa: F401 (a fixture)

from latentwire.recipes.wire import train_wire


def one_of_two(recipe, rank: int, port: int) -> None:
    """With the environment that `accelerate launch` gives a process."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "ACCELERATE_USE_CPU": "true"}
    train_wire(recipe)


def test_two_processes_give_the_losses_of_one(lm, quick, tmp_path):  # noqa: F811
    alone = train_wire(quick)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    joint = replace(quick, out=tmp_path / "joint")
    fork = multiprocessing.get_context("fork")
    pair = [fork.Process(target=one_of_two, args=(joint, rank, port)) for rank in (0, 1)]
    for process in pair:
        process.start()
    for process in pair:
        process.join()
    assert [p.exitcode for p in pair] == [0, 0]
    expected, found = (
        [json.loads(line) for line in (folder / "metrics.jsonl").open()]
        for folder in (alone, joint.out)
    )
    assert len(found) == len(expected) == 9
    for one, two in zip(expected, found, strict=True):
        assert (one["stage"], one["step"]) == (two["stage"], two["step"])
        for name in ("loss", "grad_norm", *(("ce", "kl") if one["stage"] == "slots" else ())):
            assert abs(one[name] - two[name]) <= 1e-5 * (1 + abs(one[name])), (one, two)
