"""The server: stored contexts behind OpenAI's API, and a page at /.

    app = create_app(Contexts(load_wire("default"), Store("papers")), Limits(), api_key=None)
    uvicorn.run(app)

Requests of one model are decoded together by a thread of its own (decoding.py). All that a client
names is looked up in the store by a digest; no path of a client's is ever opened.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from importlib.resources import files
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from latentwire.files import digest
from latentwire.serve.api import (
    ApiError,
    ChatAsked,
    CompletionAsked,
    LensAsked,
    SearchAsked,
    Upload,
    Writer,
    as_api_error,
    line,
    model,
    parsed,
    shown,
    unknown_model,
)
from latentwire.serve.context import Contexts
from latentwire.serve.decoding import BusyError, Row, Worker
from latentwire.serve.decoding import Request as Decoding
from latentwire.serve.documents import EXTRACTORS, extract
from latentwire.serve.guard import FILES, Guard, Limits, Metrics
from latentwire.serve.kept import kept_tokens
from latentwire.serve.looking import Looking
from latentwire.serve.searching import Searching

PAGE = files("latentwire.serve") / "page"
LONGEST_TOKEN = 64
"""Characters; of a text that has more for each token that fits, the tokens need not be counted."""
TYPES = {"html": "text/html", "js": "text/javascript", "css": "text/css"}


class Stream(StreamingResponse):
    """Server-sent events of one row, which leaves its batch when the client has gone."""

    def __init__(self, row: Row, lines: AsyncIterator[str], headers: dict[str, str]):
        super().__init__(lines, media_type="text/event-stream", headers=headers)
        self._row = row

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._row.cancelled = True


class Server:
    """Handlers of the API, and what they share."""

    def __init__(self, contexts: Contexts, limits: Limits, lens: str):
        self.contexts, self.limits, self.looking = contexts, limits, Looking(lens)
        self.workers = {
            name: Worker(lm, limits.rows, limits.waiting) for name, lm in contexts.lms.items()
        }
        self.metrics = Metrics(self.workers)
        self.searching = Searching(limits)
        self._uploads, self._compressing = 0, asyncio.Semaphore(1)

    # -- contexts -----------------------------------------------------------------------------

    async def create(self, request: Request) -> JSONResponse:
        """POST /v1/contexts: JSON with a text, or a document as the body, its type in the header
        and the other fields in the query."""
        upload = await self._upload(request)
        if self._uploads >= self.limits.waiting:
            raise BusyError(f"{self._uploads} uploads wait already; try again later")
        self._uploads += 1
        try:
            async with self._compressing:
                return JSONResponse(await run_in_threadpool(self._compress, upload), 201)
        finally:
            self._uploads -= 1

    async def _upload(self, request: Request) -> Upload:
        media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        data = await self._body(request)
        if media in EXTRACTORS:
            text = await run_in_threadpool(extract, data, media, "the document")
            return parsed(Upload, {**request.query_params, "text": text})
        return parsed(Upload, data)

    def _compress(self, upload: Upload) -> dict[str, Any]:
        start, wire = time.perf_counter(), self.contexts.wire
        if not upload.text.strip():
            raise ApiError(400, "invalid_value", "text is empty; expected words", "text")
        if upload.ratio is not None:
            wire = wire.at(upload.ratio)
        self._check_size(self.contexts.models[0], upload.text, wire.readers[0].ratio)
        settings = f"{wire.readers[0].ratio}x {upload.bits or wire.readers[0].bits} bits"
        name = upload.name or f"{digest(upload.text)} at {settings}"
        store = self.contexts.store
        if store.fresh(wire, name, upload.text, upload.bits):
            entry = store.entry(name)
        else:
            (entry,) = store.add(wire, {name: upload.text}, upload.bits)
        answer = shown(entry) | {"milliseconds": round(1000 * (time.perf_counter() - start))}
        if upload.tokens:
            prefix, _ = self.contexts.stored([entry.id], soft_prompt=False)
            answer["kept"] = kept_tokens(self.contexts.wire, prefix, upload.text)
            answer["text"] = upload.text
        return answer

    def list_contexts(self) -> dict[str, Any]:
        """GET /v1/contexts."""
        entries, damaged = self.contexts.store.entries()
        return {"object": "list", "data": [shown(e) for e in entries], "damaged": damaged}

    def context(self, key: str) -> dict[str, Any]:
        """GET /v1/contexts/{id}."""
        return shown(self.contexts.store.entry(key))

    def delete(self, key: str) -> dict[str, Any]:
        """DELETE /v1/contexts/{id}."""
        entry = self.contexts.store.entry(key)
        self.contexts.store.remove(entry)
        return {"id": entry.id, "object": "context", "deleted": True}

    # -- completions --------------------------------------------------------------------------

    async def chat(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        return await self._complete(request, parsed(ChatAsked, await self._body(request)))

    async def complete(self, request: Request) -> Response:
        """POST /v1/completions: the model goes on from words behind a context."""
        return await self._complete(request, parsed(CompletionAsked, await self._body(request)))

    async def _complete(self, request: Request, asked: Any) -> Response:
        deadline = time.monotonic() + self.limits.seconds
        worker = self.workers.get(asked.model)
        if worker is None:
            raise unknown_model(asked.model, self.contexts.models)
        if asked.context is not None and asked.text is not None:
            raise ApiError(400, "invalid_value", "got context and text; expected one", "text")
        decoding, usage = await run_in_threadpool(self._decoding, asked, deadline)
        events: asyncio.Queue[tuple[str, bool]] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def emit(piece: str, row: Row) -> None:
            with suppress(RuntimeError):  # the loop has been closed
                loop.call_soon_threadsafe(events.put_nowait, (piece, row.ended))

        row, writer = worker.submit(decoding, emit), Writer(asked, usage)
        pieces = self._pieces(row, events)
        if asked.stream:
            headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
            return Stream(row, self._lines(row, pieces, writer), headers=headers)
        text = ""
        async for piece in pieces:
            text += piece
            if await request.is_disconnected():
                row.cancelled = True
                return Response(status_code=499)
        self.metrics.count(usage, len(row.ids))
        return JSONResponse(writer.whole(text, str(row.finish), len(row.ids)))

    def _decoding(self, asked: Any, deadline: float) -> tuple[Decoding, dict[str, int]]:
        """The request that the worker is to decode, and what it counts as read."""
        contexts, model, entries = self.contexts, asked.model, []
        if asked.context is not None:
            prefix, entries = contexts.stored(asked.contexts, model, asked.soft_prompt)
        else:
            if asked.text is not None:
                self._check_size(model, asked.text)
            prefix = contexts.plain(asked.text, model, asked.soft_prompt, asked.text_tokens)
        options = {**asked.options(), "deadline": deadline}
        if isinstance(asked, ChatAsked):
            turns = [message.turn() for message in asked.messages]
            decoding = contexts.request(prefix, turns, model, **options)
        else:
            ids = contexts.lm(model).tokenize(asked.words, remember=False)
            if len(ids) == 0:
                raise ApiError(400, "invalid_value", "prompt is empty; expected words", "prompt")
            decoding = contexts.following(prefix, ids, model, **options)
        usage = {
            "prompt_tokens": int(prefix.mask.sum()) + len(decoding.ids),
            "latents": sum(entry.latents for entry in entries),
            "context_tokens": sum(entry.tokens for entry in entries),
            "cache_bytes": prefix.nbytes(),
        }
        return decoding, usage

    async def _pieces(
        self, row: Row, events: asyncio.Queue[tuple[str, bool]]
    ) -> AsyncIterator[str]:
        """Pieces of a row's text until it has ended."""
        while True:
            piece, last = await events.get()
            if last and row.error is not None:
                raise row.error
            yield piece
            if last:
                return

    async def _lines(
        self, row: Row, pieces: AsyncIterator[str], writer: Writer
    ) -> AsyncIterator[str]:
        """Server-sent events of a stream; an error comes as the last of them."""
        try:
            yield line(writer.chunk("", first=True))
            async for piece in pieces:
                if piece:
                    yield line(writer.chunk(piece))
            yield line(writer.chunk("", row.finish))
            self.metrics.count(writer.usage, len(row.ids))
            options = writer.asked.stream_options
            if options is not None and options.include_usage:
                yield line(writer.last(len(row.ids)))
            yield "data: [DONE]\n\n"
        except Exception as error:
            yield line(as_api_error(error).body())

    # -- the rest -----------------------------------------------------------------------------

    async def lens(self, request: Request) -> dict[str, Any]:
        """POST /v1/lens."""
        asked = parsed(LensAsked, await self._body(request))
        return await run_in_threadpool(self.looking.look, asked.text, asked.token, asked.words)

    async def search(self, request: Request) -> Response:
        """POST /v1/search: a stream of the steps of one search."""
        asked = parsed(SearchAsked, await self._body(request))
        if asked.model not in self.workers:
            raise unknown_model(asked.model, self.contexts.models)
        return self.searching.stream(self.contexts.lm(asked.model), asked)

    def models(self) -> dict[str, Any]:
        """GET /v1/models."""
        return {"object": "list", "data": [model(name) for name in self.contexts.models]}

    def model(self, name: str) -> dict[str, Any]:
        """GET /v1/models/{name}."""
        if name not in self.workers:
            raise unknown_model(name, self.contexts.models)
        return model(name)

    def health(self) -> Response:
        """GET /healthz: whether every model still decodes."""
        alive = all(worker.alive for worker in self.workers.values())
        return JSONResponse({"status": "ok" if alive else "dead"}, 200 if alive else 503)

    async def _body(self, request: Request) -> bytes:
        data, most = b"", self.limits.body
        async for part in request.stream():
            data += part
            if len(data) > most:
                raise ApiError(413, "body_too_large", f"the body has more than {most} bytes")
        return data

    def _check_size(self, model: str, text: str, ratio: int = 1) -> None:
        """Raises ApiError for a text that is too long, before its tokens are counted where it is
        far too long: others wait for the tokenizer meanwhile."""
        lm, most = self.contexts.lm(model), self.limits.context_tokens
        size = f"{len(text)} characters"
        long = len(text) > LONGEST_TOKEN * lm.context_length * ratio
        if not long and most is not None:
            tokens = len(lm.tokenize(text, remember=False))
            long, size = tokens > most, f"{tokens} tokens"
        if long:
            takes = f"{lm.context_length * ratio if most is None else most} tokens"
            message = f"the text has {size}; this server takes {takes}"
            raise ApiError(413, "context_too_large", message, "text")


def create_app(
    contexts: Contexts, limits: Limits | None = None, lens: str = "default", **guard: Any
) -> FastAPI:
    """The application. lens: name of the one that the page looks through. guard: of Guard, such as
    api_key."""
    server = Server(contexts, limits or Limits(), lens)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        for worker in server.workers.values():
            worker.close()

    app = FastAPI(title="latentwire", lifespan=lifespan, docs_url=None, redoc_url=None)
    routes: dict[tuple[str, str], Callable] = {
        ("POST", "/v1/contexts"): server.create,
        ("GET", "/v1/contexts"): server.list_contexts,
        ("GET", "/v1/contexts/{key}"): server.context,
        ("DELETE", "/v1/contexts/{key}"): server.delete,
        ("POST", "/v1/chat/completions"): server.chat,
        ("POST", "/v1/completions"): server.complete,
        ("POST", "/v1/lens"): server.lens,
        ("POST", "/v1/search"): server.search,
        ("GET", "/v1/models"): server.models,
        ("GET", "/v1/models/{name:path}"): server.model,
        ("GET", "/healthz"): server.health,
    }
    for (method, path), handler in routes.items():
        app.add_api_route(path, handler, methods=[method], response_model=None)

    @app.get("/metrics")
    def metrics() -> Response:
        return Response(generate_latest(server.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/")
    @app.get("/{name}")
    def page(name: str = "page.html") -> Response:
        if name not in FILES:
            raise HTTPException(404)
        return Response((PAGE / name).read_text(), media_type=TYPES[name.partition(".")[2]])

    async def told(_: Request, error: Exception) -> JSONResponse:
        known = as_api_error(error)
        headers = {"Retry-After": "1"} if known.status == 429 else None
        return JSONResponse(known.body(), known.status, headers)

    for kind in (ApiError, ValueError, OSError, BusyError, HTTPException):
        app.add_exception_handler(kind, told)
    app.add_middleware(Guard, metrics=server.metrics, **guard)
    app.state.server = server
    return app
