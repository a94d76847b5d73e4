"""The command that asks: of documents, messages, or contexts of a store."""

import sys
from pathlib import Path
from typing import Annotated, Any

import tyro

from latentwire.cli.command_line import DTYPE, SEVERAL, Positional, chosen_dtype, out
from latentwire.cli.serve import whole_of
from latentwire.terminal import printable


def ask(
    questions: Positional[Annotated[tuple[str, ...], tyro.conf.arg(metavar="QUESTION")]],
    context: tyro.conf.UseAppendAction[tuple[Path, ...]] = (),
    store: Path | None = None,
    doc: SEVERAL = (),
    wire: str = "default",
    reader: SEVERAL = (),
    full_text: bool = False,
    ratio: int | None = None,
    keep: str | None = None,
    selector: str | None = None,
    dtype: DTYPE = None,
    soft_prompt: bool = True,
    max_new_tokens: int | None = None,
    stop: SEVERAL = (),
    temperature: float = 0.0,
    seed: int = 0,
) -> int:
    """Answer questions about a document that the reader sees only as latents, a line each. Exit
    status 1 where a document of a store was altered, and is left out.

    Args:
        questions: What to ask; - for questions from standard input, a line each.
        context: A document (text, Markdown, PDF or HTML), or a message as the bytes that `send`
            gave; several are read one after another. A document longer than the wire's window is
            compressed window by window.
        store: A folder that `latentwire compress` made, in place of a document.
        doc: Which document of the store; several are read one after another.
        wire: A wire's folder or hub id (owner/name), or one of those shipped: default, for one
            reader, or shared and interlingua, whose two readers answer from the same bytes.
        reader: PATH of the wire's reader where it has another here, or NAME=PATH of one of several.
        full_text: Also show what the same reader answers with the whole text in front of it.
        ratio: Tokens in per latent out, where it is to be another than the wire's own.
        keep: What of the text to keep as text beside the latents: numbers, names, or what a regular
            expression finds.
        selector: Compress without any training, by this selector; an unknown name lists them all.
            --wire is then a model by zoo name, Hugging Face id or folder.
        dtype: Number type of the readers' weights, where it is to be another than the wire was
            trained with; auto is bfloat16 on devices that are faster with it.
        soft_prompt: Have the wire's soft prompt behind the document, which it was trained with; it
            asks for a short span. Leave it out for a summary or a list.
        max_new_tokens: Longest answer in tokens; 20 with the soft prompt and 256 without it if not
            given.
        stop: A text that ends an answer. May be given several times; with the soft prompt a line
            break if not given.
        temperature: Of sampling; 0 takes the most probable token.
        seed: Of sampling.
    """
    from latentwire.evals.baselines import full_text as text_itself
    from latentwire.serve.context import Contexts
    from latentwire.serve.store import Store
    from latentwire.tasks.qa import Answering, answers, received
    from latentwire.wire.load import load_with

    asked = _asked(questions)
    _check(context, store, doc, full_text, ratio, keep, selector)
    answering = Answering(soft_prompt, max_new_tokens, stop or None, temperature, seed)
    parts = [_context(path) for path in context]
    texts = [part for part in parts if isinstance(part, str)]
    if full_text and len(texts) < len(parts):
        raise ValueError("a message has no text; --full-text goes with documents alone")
    loaded: Any = load_with(wire, ratio, keep, selector, dtype=chosen_dtype(dtype), readers=reader)
    contexts = None if store is None else Contexts(loaded, Store(store))
    whole = [] if contexts is None else whole_of(contexts, doc)
    messages = [part if isinstance(part, bytes) else loaded.send([part])[0] for part in parts]
    for one in loaded.readers:
        if contexts is None:
            prefix = received(one, messages)
        else:
            prefix, _ = contexts.stored(whole, one.reader, soft_prompt=False)
        for answer in answers(one.lm, asked, prefix, one.format, answering):
            print(printable(answer))
        counted = texts if len(texts) == len(parts) else []
        out.print(_told(loaded, one, prefix, counted), style="dim")
        if full_text:
            read = text_itself(one.lm)(["\n\n".join(texts)])
            for answer in answers(one.lm, asked, read, one.format, answering):
                print(printable(f"full text: {answer}"))
    return int(len(whole) < len(doc))


def _context(path: Path) -> str | bytes:
    """A document's text, or the bytes of a message."""
    from latentwire.reading import read_regular
    from latentwire.serve.documents import DOCUMENT_BYTES, read_document
    from latentwire.wire.load import MAGICS

    if path.is_file():
        with path.open("rb") as file:
            begin = file.read(5)
        if begin[:4] in MAGICS and begin[4:] < b"\t":  # a version, where a text has a character
            return read_regular(path, DOCUMENT_BYTES)
    return read_document(path)


def _check(
    context: tuple[Path, ...], store: Path | None, doc: tuple[str, ...], *making: Any
) -> None:
    """Raises ValueError where a document and a store are given, or neither, and where options are
    given with a store that only go with a document."""
    if context and store is not None:
        raise ValueError("got --context and --store; expected one of them")
    if store is None and (doc or not context):
        raise ValueError("expected --context FILE, or --store FOLDER with --doc NAME")
    if store is not None and any(option not in (None, False) for option in making):
        raise ValueError(
            "a store has no text; --full-text, --ratio, --keep and --selector go with --context"
        )


def _asked(questions: tuple[str, ...]) -> list[str]:
    """The questions, those from standard input in the place of "-". Raises ValueError where there
    is none, or one is empty."""
    asked: list[str] = []
    for question in questions:
        asked += [line for line in sys.stdin if line.strip()] if question == "-" else [question]
    if not asked:
        raise ValueError("got no question; expected one, or - and lines of standard input")
    if not all(question.strip() for question in asked):
        raise ValueError("a question is empty; expected text")
    return [question.strip() for question in asked]


def _told(wire, reader, prefix, texts: list[str]) -> str:
    """The line that says who read a context and who answers, a prefix of one row: of a wire of
    learned codes its source reads, and the model that answers sees nothing but latents. Tokens are
    those of the texts, or positions where there is none."""
    from latentwire.wire.codes.wire import CodeWire

    head = len(reader.lm.frame.prefix)
    slots, read_by = len(prefix) - head, wire.source if isinstance(wire, CodeWire) else reader.lm
    tokens = sum(len(read_by.tokenize(text)) for text in texts) or int(prefix.next_position) - head
    if prefix.ragged:
        lengths = [slots.lengths for slots in prefix.ragged]
        slots += round(sum(int(n.sum()) for n in lengths) / sum(n.numel() for n in lengths))
    if not isinstance(wire, CodeWire):
        return f"{reader.reader} read {tokens} tokens as {slots} latents"
    return f"{read_by.name} read {tokens} tokens; {reader.reader} answered from {slots} latents"
