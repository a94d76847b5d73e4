"""Checks who may ask and how much, and counts what was asked."""

from __future__ import annotations

import hmac
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import urlsplit

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.datastructures import Headers
from starlette.responses import JSONResponse

from latentwire.serve.api import ApiError, as_api_error
from latentwire.serve.decoding import Worker

FILES = ("page.html", "page.css", "page.js", "common.js", "search.js")
"""Files of the page."""
OPEN = ("/", "/healthz", *(f"/{name}" for name in FILES))
"""Paths that need no key: they tell nothing."""
POLICY = b"default-src 'self'; img-src data:; frame-ancestors 'none'"
LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Limits:
    """Bounds on what one server takes."""

    rows: int = 16
    """Requests of a model that are decoded together."""
    waiting: int = 256
    """Requests of a model, and uploads, that wait; who comes beyond is answered 429."""
    seconds: float = 120.0
    """Time that an answer may take, from the request's arrival on."""
    body: int = 1 << 24
    """Bytes of a request's body."""
    context_tokens: int | None = None
    """Tokens of a context, or of a text; as many as the model holds if None."""

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value is not None and not value > 0:  # NaN too, which no time would pass
                raise ValueError(f"{name} is {value}; expected more than 0")


class Metrics:
    """Figures for Prometheus."""

    def __init__(self, workers: Mapping[str, Worker]):
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "latentwire_requests",
            "Requests by path and status.",
            ["path", "status"],
            registry=registry,
        )
        self.seconds = Histogram(
            "latentwire_request_seconds", "Time until a request's end.", ["path"], registry=registry
        )
        self.tokens = Counter(
            "latentwire_tokens", "Tokens and latents of answers.", ["kind"], registry=registry
        )
        rows = Gauge("latentwire_rows", "Rows that are decoded.", ["model"], registry=registry)
        waiting = Gauge("latentwire_waiting", "Requests that wait.", ["model"], registry=registry)
        for name, worker in workers.items():
            rows.labels(name).set_function(lambda worker=worker: len(worker.batch.rows))
            waiting.labels(name).set_function(lambda worker=worker: worker.waiting)

    def count(self, usage: Mapping[str, int], completion: int) -> None:
        """One answer."""
        counts = {"prompt": usage["prompt_tokens"], "latents": usage["latents"]}
        for kind, number in {**counts, "completion": completion}.items():
            self.tokens.labels(kind).inc(number)


class Guard:
    """Lets requests through that have the key, where there is one, and that no other site's page
    has sent; counts them.

    A page of another site can have a browser ask a server on loopback. Its requests say where they
    come from in Origin, or, where it had its own name resolve to loopback, another name in Host.
    """

    def __init__(
        self,
        app: Any,
        metrics: Metrics,
        api_key: str | None = None,
        hosts: Sequence[str] | None = LOOPBACK,
    ):
        """hosts: names that the server is called by; None for any."""
        self.app, self.metrics, self.hosts = app, metrics, hosts
        self.key = None if api_key is None else api_key.encode()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status = time.perf_counter(), None

        async def watched(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] += [
                    (b"content-security-policy", POLICY),
                    (b"x-content-type-options", b"nosniff"),
                ]
            await send(message)

        try:
            refused = self._refused(Headers(scope=scope), scope["path"])
            app = self.app if refused is None else JSONResponse(refused.body(), refused.status)
            await app(scope, receive, watched)
        except Exception as error:  # raised further, it would cost the client its connection
            told = as_api_error(error)
            if status is not None:
                raise
            await JSONResponse(told.body(), told.status)(scope, receive, watched)
        finally:
            path = getattr(scope.get("route"), "path", "other")
            self.metrics.requests.labels(path, str(status)).inc()
            self.metrics.seconds.labels(path).observe(time.perf_counter() - start)

    def _refused(self, headers: Headers, path: str) -> ApiError | None:
        host, origin = headers.get("host", ""), headers.get("origin")
        if self.hosts is not None and urlsplit(f"//{host}").hostname not in self.hosts:
            return ApiError(403, "wrong_host", f"host {host[:80]!r} is not this server's name")
        if origin is not None and urlsplit(origin).netloc != host:
            return ApiError(403, "wrong_origin", "pages of other sites may not ask this server")
        given = headers.get("authorization", "").removeprefix("Bearer ").encode()
        if self.key is not None and path not in OPEN and not hmac.compare_digest(given, self.key):
            return ApiError(401, "invalid_api_key", "expected Authorization: Bearer and the key")
        return None
