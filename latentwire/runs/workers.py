"""Work for other processes, of this machine or, handed out by Ray, of many.

    evaluate_wire(wire, executor=on_ray("local", load))    # a Ray of this machine's cores
    evaluate_wire(wire, executor=on_ray("10.0.0.5:6379", load))  # one that `ray start --head` began

Ray decides what runs where, and starts a worker anew that died. All machines must have latentwire
installed and see the same folders under the same paths. What does not ask for Ray (extra "ray")
runs without it.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import Thread
from typing import Any, TypeVar

Item = TypeVar("Item")
Made = TypeVar("Made")
Build = Callable[[Any], Callable[[Item], Made]]
"""A loaded model -> a function that does one item of work with it."""
Executor = Callable[[Build, Sequence[Item]], Iterator[Made]]
"""Does all items of work, and gives what they made in their order."""


def run_local(model: Any) -> Executor:
    """Work is done in this process, item by item, by a model that is loaded already."""
    return lambda build, items: map(build(model), items)


def on_ray(address: str, load: Callable[[], Any]) -> Executor:
    """Work is done by the workers of a Ray, one to a GPU, or to a core where there is no GPU; each
    loads the model once. What a worker had begun when it died is begun again by another.

    Items made by one process and by many are the same to the bit where it runs on as many threads
    as a worker, which is one on a machine without GPUs.
    """

    def executor(build: Build[Item, Made], items: Sequence[Item]) -> Iterator[Made]:
        with connected(address) as ray:
            gpus, cores = resources(ray)
            made = ray.remote(_Worker).options(**one_each(gpus), max_restarts=3, max_task_retries=3)
            count = min(gpus or cores, len(items))
            folder, workers = os.getcwd(), ray.util.ActorPool
            pool = workers([made.remote(folder, load) for _ in range(count)])
            # Not given to a worker when it starts: what is large there, Ray may have dropped when
            # the worker has to start again.
            built = ray.put(build)
            try:
                yield from pool.map(lambda worker, item: worker.do.remote(built, item), items)
            except ray.exceptions.RayTaskError as error:
                raise error.cause from None
            except ray.exceptions.RayError as error:
                raise OSError(f"--ray {address}: {error}") from None

    return executor


def run_isolated(
    job: Callable[..., None], arguments: Mapping[str, tuple], address: str | None
) -> Iterator[tuple[str, str | None]]:
    """Run job(*arguments) for each name in a process of its own: one after another here, or as many
    at once as the Ray at an address has room for. As each ends, its name, and how its process died
    if it did; one that dies takes no other with it, none is begun a second time, and none outlives
    the process that began it."""
    if address is None:
        return ((name, _alone(job, given)) for name, given in arguments.items())
    return _together(job, arguments, address)


def _alone(job: Callable[..., None], arguments: tuple) -> str | None:
    """In one process. SIGTERM and Ctrl-C are passed on to it, once each, and waited for."""
    process = multiprocessing.get_context("spawn").Process(
        target=_in_own_group, args=(job, arguments)
    )
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        process.start()
        process.join()
    except (KeyboardInterrupt, SystemExit):
        process.terminate()
        process.join()
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
    code = process.exitcode or 0
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"exit status {code}" if code else None


def _in_own_group(job: Callable[..., None], arguments: tuple) -> None:
    # A terminal sends Ctrl-C to a whole group; a second signal would end a training at once.
    os.setpgid(0, 0)
    end_with_parent()
    job(*arguments)


def end_with_parent() -> None:
    """Have this process end, at once, when the one that started it is gone, killed or not: what it
    wrote can be gone on with, and a sweep that is begun again must not train beside it."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    Thread(target=wait, daemon=True).start()


def _together(
    job: Callable[..., None], arguments: Mapping[str, tuple], address: str
) -> Iterator[tuple[str, str | None]]:
    with connected(address) as ray:
        gpus, cores = resources(ray)
        largest = max(int(node["Resources"].get("CPU", 0)) for node in ray.nodes())
        # Few jobs get several cores each, and Ray gives them as many threads.
        each = max(1, min(largest, cores // max(1, len(arguments))))
        options = {"num_cpus": 1 if gpus else each, "num_gpus": min(gpus, 1)}
        # A worker that does one job and is not used again.
        task = ray.remote(max_calls=1, max_retries=0, **options)(_in_folder)
        names = {task.remote(os.getcwd(), job, given): name for name, given in arguments.items()}
        while names:
            (done, *_), _ = ray.wait(list(names))
            died = None
            try:
                ray.get(done)
            except ray.exceptions.RayError as error:
                died = " ".join(str(getattr(error, "cause", error)).split())
            yield names.pop(done), died


def _in_folder(folder: str, job: Callable[..., None], arguments: tuple) -> None:
    os.chdir(folder)
    job(*arguments)


class _Worker:
    """A process of a Ray, with its own model."""

    def __init__(self, folder: str, load: Callable[[], Any]):
        os.chdir(folder)
        self.model, self.work = load(), None

    def do(self, build: Build, item: Any) -> Any:
        """build: the same each time."""
        self.work = self.work or build(self.model)
        return self.work(item)


@contextmanager
def connected(address: str) -> Iterator[Any]:
    """Ray, connected to an address ("local" starts one), or as it is where this process has
    connected already. Raises ValueError where it is not installed or nothing answers there."""
    try:
        import ray
        import ray.exceptions
        import ray.util
    except ImportError:
        raise ValueError("--ray needs Ray: pip install ray") from None
    if ray.is_initialized():
        yield ray
        return
    options: dict[str, Any] = {"logging_level": "ERROR"}
    if address == "local":
        options["include_dashboard"] = False
    # Ray would report its use to its makers.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        _check_answers(address)
        ray.init(address, **options)
    except Exception as error:  # Ray's is a plain one where a node does not start in time
        raise ValueError(
            f"--ray {address}: no Ray answers there ({error}); start one with `ray start --head`, "
            "or give --ray local"
        ) from None
    try:
        yield ray
    finally:
        ray.shutdown()


def resources(ray: Any) -> tuple[int, int]:
    """GPUs and cores of all machines together."""
    found = ray.cluster_resources()
    return int(found.get("GPU", 0)), int(found.get("CPU", 0))


def one_each(gpus: int) -> dict[str, int]:
    """Ray's options for a worker with a GPU of its own, or with a core where there is no GPU."""
    return {"num_cpus": 0 if gpus else 1, "num_gpus": min(gpus, 1)}


def _check_answers(address: str) -> None:
    """Raises OSError where nothing listens at HOST:PORT; Ray would try for minutes. Raises
    ValueError for an empty address, which Ray takes for none."""
    if not address.strip():
        raise ValueError("the address is empty")
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host, int(port)), timeout=10).close()
