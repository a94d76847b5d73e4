"""The same application on many machines: a Ray Serve deployment, each replica with a model of its
own, all of them over one store.

    with deployed("10.0.0.5:6379", 4, "0.0.0.0", 8000, build) as url: ...

Replicas share nothing but the store's folder, which all machines must see under the same path: what
one has compressed, each of them answers from, and a replica that dies takes no context with it. Ray
starts another in its place; requests that it was answering fail.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from latentwire.runs.workers import connected, one_each, resources
from latentwire.serve.guard import Limits

NAME = "latentwire"
"""Name of the application in Ray Serve."""


class Started:
    """An application that is made where it starts, in a replica."""

    def __init__(self, folder: str, build: Callable[[], Any]):
        self.folder, self.build, self.app = folder, build, None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if self.app is None:
            os.chdir(self.folder)  # paths that were given are those of the process that deployed
            self.app = self.build()
        await self.app(scope, receive, send)


@contextmanager
def deployed(
    address: str, replicas: int, host: str, port: int, limits: Limits, build: Callable[[], Any]
) -> Iterator[str]:
    """The URL of an application that so many replicas answer, until the context ends; port 0 takes
    one that is free here. build: makes the application in each replica. Raises OSError where the
    port is taken, and ValueError where no Ray answers at the address, or it has no room for so
    many."""
    with socket.create_server((host, port), family=family(host)) as listener:
        port = listener.getsockname()[1]
    with connected(address) as ray:
        try:
            from ray import serve
        except ImportError as error:
            missing = getattr(error, "name", None) or "Ray Serve"
            raise ValueError(f"--ray needs {missing}: pip install 'ray[serve]'") from None
        gpus, cores = resources(ray)
        if replicas > (most := gpus or cores):
            each = "GPU" if gpus else "core"
            raise ValueError(
                f"--replicas is {replicas}; that Ray has room for {most}, one a {each}"
            )
        # Requests wait in the application, which bounds them and says so.
        deployment = serve.deployment(
            num_replicas=replicas,
            max_ongoing_requests=8 * (limits.rows + limits.waiting),
            ray_actor_options=one_each(gpus),
            logging_config={"enable_access_log": False, "log_level": "WARNING"},
        )(serve.ingress(Started(os.getcwd(), build))())
        serve.start(http_options={"host": host, "port": port})
        try:
            serve.run(deployment.bind(), name=NAME, logging_config={"log_level": "WARNING"})
            yield url_of(host, port)
        finally:
            serve.delete(NAME)


def family(host: str) -> socket.AddressFamily:
    """The family of a host's address."""
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def url_of(host: str, port: int) -> str:
    """The address that a browser takes."""
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"
