"""Commands on stored contexts: compress, chat, serve."""

import os
import socket
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event
from typing import Annotated, Any

import tyro

from latentwire.cli.command_line import SEVERAL, Positional, out
from latentwire.terminal import printable


def compress(
    documents: Positional[Annotated[tuple[Path, ...], tyro.conf.arg(metavar="DOC")]],
    store: Path,
    wire: str = "default",
    reader: SEVERAL = (),
    ratio: int | None = None,
    keep: str | None = None,
    bits: int | None = None,
    uniform: bool = False,
) -> int:
    """Compress documents into a store, to be asked many times. A second run does only what is new
    or changed. Exit status 1 where a document could not be compressed; the others are.

    Args:
        documents: Text, Markdown, PDF or HTML files; the path as given is a document's name. One
            longer than the wire's window is compressed window by window.
        store: Folder of the store; it is made where there is none.
        wire: A wire's folder or hub id (owner/name), or one of those shipped: default, shared,
            interlingua.
        reader: PATH of the wire's reader where it has another here, or NAME=PATH of one of several.
        ratio: Tokens in per latent out, where it is to be another than the wire's own.
        keep: What of the text to keep as text beside the latents: numbers, names, or what a regular
            expression finds.
        bits: Bits of one code of a message of a wire of one reader: 16 (if not given), 8, 6 or 4.
        uniform: Keep as many slots in every head, as vLLM and transformers' caches need; it costs
            quality. For a wire of one reader.
    """
    from latentwire.serve.documents import read_document
    from latentwire.serve.store import Store, wire_id
    from latentwire.tasks.base import DataError
    from latentwire.wire.folder import WireError
    from latentwire.wire.load import load_with

    if not documents:
        raise ValueError("got no document; expected at least one file")
    kept, failed = Store(store), 0
    loaded = load_with(wire, ratio, keep, uniform=uniform, readers=reader)
    wire_id(loaded)
    for number, path in enumerate(documents, 1):
        start, place = time.perf_counter(), printable(f"[{number}/{len(documents)}] {path}")
        try:
            text = read_document(path)
            if kept.fresh(loaded, str(path), text, bits):
                out.print(f"{place}: unchanged", style="dim", soft_wrap=True)
                continue
            (entry,) = kept.add(loaded, {str(path): text}, bits)
        except (DataError, WireError) as error:
            failed += 1
            print("latentwire:", printable(" ".join(str(error).split())), file=sys.stderr)
            continue
        out.print(
            f"{place}: {entry.tokens} tokens as {entry.latents} latents, {entry.bytes} bytes, "
            f"{time.perf_counter() - start:.1f} s",
            soft_wrap=True,
        )
    return int(failed > 0)


def whole_of(contexts, names: SEVERAL) -> list[str]:
    """Those documents that were not altered; each of the others is named on stderr. Raises
    StoreError where none is left, or one is unknown."""
    from latentwire.serve.store import StoreError, UnknownContextError

    whole, damaged = [], ""
    if not names:
        listed = ", ".join(entry.name for entry in contexts.store.entries()[0][:8]) or "nothing"
        raise StoreError(f"expected --doc NAME; {contexts.store.folder} has {listed}")
    for name in names:
        try:
            contexts.store.message(contexts.wire, contexts.store.entry(name))
            whole.append(name)
        except UnknownContextError:
            raise
        except StoreError as error:
            damaged = str(error)
            if len(names) > 1:
                print("latentwire:", printable(damaged), file=sys.stderr)
    if not whole:
        raise StoreError(damaged)
    return whole


def chat(
    context: tyro.conf.UseAppendAction[tuple[Path, ...]] = (),
    store: Path | None = None,
    doc: SEVERAL = (),
    wire: str = "default",
    reader: SEVERAL = (),
    ratio: int | None = None,
    soft_prompt: bool = True,
    max_new_tokens: int = 256,
    stop: SEVERAL = (),
    temperature: float = 0.0,
) -> int:
    """Chat about documents that the reader sees only as latents. Ctrl-C stops an answer; an empty
    line ends the chat.

    Args:
        context: A document: text, Markdown, PDF or HTML; several are read one after another.
        store: A folder that `latentwire compress` made, in place of a document.
        doc: Which document of the store; several are read one after another.
        wire: A wire's folder or hub id (owner/name), or one of those shipped; its first reader
            answers.
        reader: PATH of the wire's reader where it has another here, or NAME=PATH of one of several.
        ratio: Tokens in per latent out, where it is to be another than the wire's own.
        soft_prompt: Have the wire's soft prompt behind the document, which it was trained with; it
            asks for a short span.
        max_new_tokens: Longest answer in tokens.
        stop: A text that ends an answer. May be given several times.
        temperature: Of sampling; 0 takes the most probable token.
    """
    from latentwire.serve.context import Chat, Contexts
    from latentwire.serve.documents import read_document
    from latentwire.serve.store import Store
    from latentwire.wire.load import load_with

    if bool(context) == (store is not None):
        raise ValueError("expected --context FILE, or --store FOLDER with --doc NAME")
    texts = {str(path): read_document(path) for path in context}
    with TemporaryDirectory() as folder:
        contexts = Contexts(load_with(wire, ratio, readers=reader), Store(store or folder))
        list(contexts.store.add(contexts.wire, texts))
        doc = (*texts, *doc)
        whole = whole_of(contexts, doc)
        options: Any = {"max_new_tokens": max_new_tokens, "temperature": temperature, "stop": stop}
        talk = Chat(contexts, whole, soft_prompt=soft_prompt, **options)
        for entry in talk.entries:
            words = f"{entry.name}: {entry.tokens} tokens as {entry.latents} latents"
            out.print(printable(words), style="dim", soft_wrap=True)
        _converse(talk)
    return int(len(whole) < len(doc))


def _converse(talk) -> None:
    """Turns from the terminal until an empty line or the end of the input."""
    while True:
        try:
            words = input("> ")
        except EOFError:
            return
        if not words.strip():
            return
        try:
            for piece in talk.say(words):
                print(printable(piece), end="", flush=True)
        except KeyboardInterrupt:
            print(" ...", end="")
        print()


def serve(
    store: Path = Path("latentwire-store"),
    wire: str = "default",
    reader: SEVERAL = (),
    ratio: int | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    api_key: str | None = None,
    rows: int = 16,
    waiting: int = 256,
    seconds: float = 120.0,
    body_bytes: int = 1 << 24,
    context_tokens: int | None = None,
    lens: str = "default",
    ray: str | None = None,
    replicas: int | None = None,
) -> None:
    """Serve a store: a page at / and OpenAI's API under /v1, whose requests name contexts.

    Args:
        store: Folder of the store; it is made where there is none.
        wire: A wire's folder or hub id (owner/name), or one of those shipped: default, shared,
            interlingua. Its readers are the models.
        reader: PATH of the wire's reader where it has another here, or NAME=PATH of one of several.
        ratio: Tokens in per latent out of what is uploaded, where it is to be another than the
            wire's own.
        host: Address to listen on; only this machine reaches 127.0.0.1.
        port: Port to listen on; 0 takes a free one.
        api_key: Key that requests must have; $LATENTWIRE_API_KEY if not given.
        rows: Requests of a model that are decoded together.
        waiting: Requests of a model that may wait; those beyond are answered 429.
        seconds: Time that an answer may take.
        body_bytes: Largest body of a request.
        context_tokens: Longest context; as many as the reader holds if not given.
        lens: A lens's folder or hub id, or default, which the page's second tab looks through.
        ray: Answer by replicas on the machines of the Ray at this address, or of one started here
            if local; all must see the store under the same path.
        replicas: How many, each with a model of its own; one if not given.
    """
    try:
        import uvicorn

        from latentwire.serve.guard import LOOPBACK, Limits
    except ImportError as error:
        raise ValueError(f"serve needs {error.name}: pip install 'latentwire[serve]'") from None
    from latentwire.serve.replicas import deployed, family, url_of
    from latentwire.wire.folder import kind_of
    from latentwire.wire.load import load_with

    if replicas is not None and (ray is None or replicas < 1):
        raise ValueError(f"--replicas is {replicas}; expected at least 1, beside --ray ADDRESS")
    if not 0 <= port < 1 << 16:
        raise ValueError(f"--port is {port}; expected 0 to 65535")
    limits = Limits(rows, waiting, seconds, body_bytes, context_tokens)
    key = api_key or os.environ.get("LATENTWIRE_API_KEY")
    hosts = LOOPBACK if host in LOOPBACK else None
    if hosts is None and key is None:
        print("latentwire: all who reach this address may ask; see --api-key", file=sys.stderr)
    load = partial(load_with, wire, ratio, readers=reader)
    build = partial(_app, load, store, limits, lens, api_key=key, hosts=hosts)
    if ray is not None:
        kind_of(wire)  # what is no wire is told here, and not by a replica at its first request
        with deployed(ray, replicas or 1, host, port, limits, build) as url:
            print(f"{url} answers; Ctrl-C ends it", flush=True)
            Event().wait()
    listener = socket.create_server((host, port), family=family(host))
    app = build()
    print(f"{url_of(host, listener.getsockname()[1])} answers; Ctrl-C ends it", flush=True)
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=3)
    uvicorn.Server(config).run([listener])


def _app(load: Callable[[], Any], store: Path, limits: Any, lens: str, **guard: Any) -> Any:
    """The application, with the wire that is loaded for it."""
    from latentwire.serve.context import Contexts
    from latentwire.serve.server import create_app
    from latentwire.serve.store import Store

    return create_app(Contexts(load(), Store(store)), limits, lens, **guard)
