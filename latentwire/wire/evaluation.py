"""Evaluating a wire: its answers beside those of the same reader with the full text, with less
text, with none, and with latents that say nothing.

    latentwire eval default --data squad_dev.jsonl --limit 500
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache, partial
from importlib.resources import files
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from rich.progress import track
from torch import Tensor
from zstandard import compress

from latentwire.evals.baselines import (
    Condition,
    closed_book,
    full_text,
    pruned,
    replayed,
    truncated,
    truncated_bytes,
    truncated_zstd,
)
from latentwire.evals.harness import Answer, batch_size, evaluate, f1_differences, summarise
from latentwire.files import digest, first_of, owned, write_whole
from latentwire.lm import FrozenLM, KVPrefix
from latentwire.lm.devices import wait_for
from latentwire.lm.identity import basis, digest_of, identity
from latentwire.lm.sentences import SentenceEncoder
from latentwire.reading import RENAMED
from latentwire.runs.features import Features
from latentwire.runs.folder import append, open_run, rewrite
from latentwire.runs.workers import Executor, run_local
from latentwire.tasks.base import DataError
from latentwire.tasks.needles import NEEDLE_TOKENS, with_needles
from latentwire.tasks.qa import (
    ANSWER_TOKENS,
    Passage,
    answer_ids,
    answer_targets,
    by_context,
    load_questions,
    passages_prompt,
    question_ids,
    question_prompt,
)
from latentwire.terminal import terminal
from latentwire.wire.text_wire import TextReader

ALMANAC = str(files("latentwire") / "data" / "almanac.jsonl")
"""The reading set that the package ships."""
REFERENCES: dict[str, int | None] = {
    **{"text": None, "closed_book": None},
    **{"truncated_tokens": 0, "pruned_tokens": 0, "truncated_bytes": 1, "truncated_zstd": 1},
}
"""Conditions without latents, the same for all wires of a reader with the same soft prompt; and
which of a message's costs, latents or bytes, each text is cut to."""
TIMED = 8
"""Passages on which times and cache sizes are measured, and raw embeddings are replayed."""


@runtime_checkable
class Reader(Protocol):
    """One reader of a wire of any kind: what an evaluation asks of it. Messages, and what they
    hold, are each kind's own; bits None is for a kind whose codes have no choice of bits."""

    @property
    def reader(self) -> str: ...
    @property
    def lm(self) -> FrozenLM: ...
    @property
    def format(self) -> Tensor: ...
    @property
    def models(self) -> Mapping[str, FrozenLM | SentenceEncoder]: ...
    @property
    def trained(self) -> Mapping[str, Tensor]: ...
    @property
    def id(self) -> bytes: ...
    @property
    def ratio(self) -> int: ...
    @property
    def keep(self) -> str | None: ...
    @property
    def bits(self) -> int | None: ...

    blanks: ClassVar[Mapping[str, str]]

    def check_bits(self, bits: Any) -> None: ...
    def latents(self, text: str) -> int: ...
    def cost(self, text: str, bits: Any = ..., /) -> tuple[int, int]: ...
    def send(self, contexts: Sequence[str], bits: Any = ..., /) -> Sequence[Any]: ...
    def open(self, messages: Sequence[Any], /) -> Sequence[Any]: ...
    def prefix(self, latents: Sequence[Any], /) -> KVPrefix: ...


def conditions(
    reader: Reader, passages: Sequence[Passage], bits: int | None = None
) -> dict[str, Condition]:
    """The rows of an evaluation. The latents go through the bytes of their messages, in codes of
    `bits` (the wire's own if None), so that what is scored is what would travel."""
    texts = [p.context for p in passages]
    following = dict(zip(texts, texts[1:] + texts[:1], strict=True))
    options = () if bits is None else (bits,)

    @lru_cache(maxsize=1)  # the rows of one batch follow one another
    def opened(wanted: tuple[str, ...]) -> dict[str, Any]:
        texts = list(dict.fromkeys((*wanted, *(following[text] for text in wanted))))
        return dict(zip(texts, reader.open([sent(text) for text in texts]), strict=True))

    def sent(text: str) -> Any:
        message = reader.send([text], *options)[0]
        return type(message).from_bytes(message.to_bytes())

    def latents(of: Callable[[str], str], blank: str | None = None) -> Condition:
        def condition(wanted: Sequence[str]) -> KVPrefix:
            contents = [opened(tuple(wanted))[of(text)] for text in wanted]
            return reader.prefix([getattr(c, blank)() for c in contents] if blank else contents)

        return condition

    def cost(text: str) -> int:
        return reader.cost(text, *options)[1]

    return {
        "text": full_text(reader.lm),
        "wire": latents(lambda text: text),
        "truncated_tokens": truncated(reader.lm, reader.latents),
        "pruned_tokens": pruned(reader.lm, reader.latents),
        "truncated_bytes": truncated_bytes(reader.lm, cost),
        "truncated_zstd": truncated_zstd(reader.lm, cost),
        "closed_book": closed_book(reader.lm),
        **{name: latents(lambda text: text, blank) for name, blank in reader.blanks.items()},
        "mismatched_latents": latents(following.__getitem__),
    }


def evaluate_wire(
    wire: Reader,
    data: str = ALMANAC,
    limit: int | None = None,
    out: Path | None = None,
    bits: int | None = None,
    needles: str | None = None,
    executor: Executor | None = None,
) -> dict:
    """Score all conditions on the first `limit` questions of `data`, with messages in codes of
    `bits` (the wire's own if None); the whole result as one dict. needles: "number" or "uuid" asks
    for one that is hidden in each passage, in place of the passage's questions. executor: who
    answers, workers that load this wire, or this process if None. Answers from text are kept on
    disk (runs/features.py), and taken from there where another evaluation has left them.

    out: a run folder that gets config.json, predictions.jsonl (passage by passage, so that an
    interrupted evaluation goes on) and results.json. Raises DataError for fewer than two passages,
    since another example's latents need another example, MessageError for bits that no codec has,
    and ValueError for a folder that holds another run or is another process's.
    """
    return evaluate_reader(wire, data, limit, out, bits, needles, executor)[0]


def evaluate_reader(
    wire: Reader,
    data: str,
    limit: int | None,
    out: Path | None,
    bits: int | None,
    needles: str | None,
    executor: Executor | None = None,
) -> tuple[dict, list[Answer]]:
    """The result of evaluate_wire, and every answer that it counts."""
    bits = wire.bits if bits is None else bits
    wire.check_bits(bits)
    passages, answer_tokens = load_passages(data, limit, needles)
    _check_room(wire, passages, answer_tokens)
    rows = list(conditions(wire, passages, bits))
    setting = {
        "wire": wire.id.hex(),
        "reader": wire.reader,
        "data": Path(data).name,
        "limit": limit,
        "ratio": wire.ratio,
        **({} if bits is None else {"bits": bits}),
        **({"source": wire.source} if isinstance(wire, TextReader) else {}),
        **({} if wire.keep is None else {"keep": wire.keep}),
        **({} if needles is None else {"needles": needles}),
        "questions": digest(repr(passages)),
    }
    with owned(out):
        answers = [] if out is None else _resumed(out, setting, wire, passages, rows)
        done = {a.context for a in answers}
        left = [p for p in passages if p.context not in done]
        size = batch_size(wire.lm)
        parts = [left[start : start + size] for start in range(0, len(left), size)]
        work = partial(_answering, passages=passages, bits=bits, answer_tokens=answer_tokens)
        made, console = (executor or run_local(wire))(work, parts), terminal(stderr=True)
        for batch in track(made, description="answering", total=len(parts), console=console):
            answers += batch
            if out is not None:
                append(out, [asdict(a) for a in batch])
        scores = {name: summarise([a for a in answers if a.condition == name]) for name in rows}
        whole = scores["text"]["f1"]
        result = {
            **setting,
            "n": sum(a.condition == "wire" for a in answers),
            "passages": len(passages),
            "rows": scores,
            "differences": f1_differences(answers),
            "retention": scores["wire"]["f1"] / whole if whole else None,
            **sizes(wire, passages, bits),
            **costs(wire, passages[:TIMED]),
            "embeds_vs_ids_difference": embeds_vs_ids_difference(wire, passages[:TIMED]),
        }
        if out is not None:
            write_whole(out / "results.json", json.dumps(result, indent=1))
        return result, answers


def load_passages(data: str, limit: int | None, needles: str | None) -> tuple[list[Passage], int]:
    """What is asked, by context, and the most tokens of an answer."""
    passages = by_context(load_questions(data, limit, least=2))
    if needles is None:
        return passages, ANSWER_TOKENS
    return with_needles(passages, needles), NEEDLE_TOKENS


def _answering(
    wire: Reader,
    passages: Sequence[Passage],
    bits: int | None,
    answer_tokens: int,
) -> Callable[[Sequence[Passage]], list[Answer]]:
    """What answers a batch of the passages under all conditions."""
    rows = conditions(wire, passages, bits)
    features = Features(wire.lm)

    def answered(part: Sequence[Passage], name: str, condition: Condition) -> list[Answer]:
        made = evaluate(wire.lm, wire.format, part, {name: condition}, answer_tokens)
        return [answer for batch in made for answer in batch]

    def kept(part: Sequence[Passage], name: str) -> list[Answer]:
        def packed() -> dict[str, Tensor]:
            return {"json": _packed(list(map(asdict, answered(part, name, rows[name]))))}

        cut = REFERENCES[name]
        cuts = [None if cut is None else wire.cost(p.context, bits)[cut] for p in part]
        asked = _packed([name, answer_tokens, cuts, *map(asdict, part)])
        found = features("answers", [wire.format, asked], packed)
        return [_answer(record) for record in json.loads(bytes(found["json"].tolist()))]

    def work(part: Sequence[Passage]) -> list[Answer]:
        made = []
        for name, condition in rows.items():
            made += kept(part, name) if name in REFERENCES else answered(part, name, condition)
        return made

    return work


def _packed(value: Any) -> Tensor:
    """Anything that JSON holds, as a tensor of its bytes."""
    return torch.tensor(list(json.dumps(value).encode()), dtype=torch.uint8)


def _answer(record: dict) -> Answer:
    return Answer(**{**record, "gold": tuple(record["gold"])})


def _check_room(wire: Reader, passages: Sequence[Passage], answer_tokens: int) -> None:
    """Every question must fit the reader's window with its full text, before any is answered."""
    lm = wire.lm
    before = len(wire.lm.frame.prefix) + len(wire.format)
    for passage in passages:
        context = len(lm.tokenize(passage.context))
        for q in passage.questions:
            answer = max(answer_tokens, len(answer_ids(lm, q.answers[0])))
            used = before + context + len(question_ids(lm, q.question)) + answer
            if used > lm.context_length:
                raise DataError(
                    f"row {q.id!r} takes {used} positions, {context} of them its context; "
                    f"{lm.name} has a context length of {lm.context_length}"
                )


def _resumed(
    out: Path, setting: dict, wire: Reader, passages: Sequence[Passage], rows: Sequence[str]
) -> list[Answer]:
    """Keep what an earlier run of the same evaluation left in `out`: passages all of whose
    questions it has answered under all conditions, each once."""
    rests = basis({name: identity(model) for name, model in wire.models.items()})
    records = open_run(out, {**setting, "trained": digest_of(wire.trained), **rests})
    records = [{**r, "condition": RENAMED.get(r["condition"], r["condition"])} for r in records]
    known = first_of(records, lambda r: (r["context"], r["id"], r["condition"]))
    done = {
        p.context
        for p in passages
        if all((p.context, q.id, name) in known for q in p.questions for name in rows)
    }
    kept = [record for record in known.values() if record["context"] in done]
    rewrite(out, kept)
    return [_answer(record) for record in kept]


def sizes(wire: Reader, passages: Sequence[Passage], bits: int | None) -> dict[str, float]:
    """Means over all passages: tokens in, latents out, bytes of the message, and of the text in
    UTF-8 and after zstd -19."""
    tokens = [len(wire.lm.tokenize(p.context)) for p in passages]
    texts = [p.context.encode() for p in passages]
    latents, sent = zip(*(wire.cost(p.context, bits) for p in passages), strict=True)
    return {
        "tokens_in": statistics.fmean(tokens),
        "latents_out": statistics.fmean(latents),
        "message_bytes": statistics.fmean(sent),
        "text_bytes": statistics.fmean(map(len, texts)),
        "zstd_bytes": statistics.fmean(len(compress(text, 19)) for text in texts),
    }


@torch.no_grad()
def costs(wire: Reader, passages: Sequence[Passage]) -> dict[str, float]:
    """Seconds to first token (medians) and KV-cache bytes (means) of the full text and of the wire,
    measured in turn in this process, and the ratios of wire to text. The wire's time is measured
    with the message at hand, and again with encoding counted."""

    def read(messages: Sequence[Any]) -> KVPrefix:
        return wire.prefix(wire.open(messages))

    text, received, whole = full_text(wire.lm), [], []
    seconds: dict[str, list[float]] = {"text": [], "wire": [], "encode": []}
    for passage in passages:
        # Texts that nobody saw before: ids, and texts of messages for all readers, are remembered.
        one, two = (f"{passage.context}\n{wire.reader} {n}" for n in "ab")
        messages = wire.send([one])
        whole.append(text([one]))
        seconds["text"].append(_first_token(wire, passage, lambda t=two: text([t])))
        seconds["wire"].append(_first_token(wire, passage, lambda m=messages: read(m)))
        received.append(read(messages))
        seconds["encode"].append(_first_token(wire, passage, lambda t=two: read(wire.send([t]))))
    median = {name: statistics.median(values) for name, values in seconds.items()}
    text_kv, kv = (statistics.fmean(p.nbytes() for p in cached) for cached in (whole, received))
    return {
        "text_ttft_seconds": median["text"],
        "ttft_seconds": median["wire"],
        "encode_ttft_seconds": median["encode"],
        "ttft_ratio": median["wire"] / median["text"],
        "encode_ttft_ratio": median["encode"] / median["text"],
        "text_kv_bytes": text_kv,
        "kv_bytes": kv,
        "kv_ratio": kv / text_kv,
    }


@torch.no_grad()
def embeds_vs_ids_difference(wire: Reader, passages: Sequence[Passage]) -> float:
    """Largest difference that it makes to the log-probability of any token of the gold answers, in
    nats, whether a text is given as ids or its input embeddings as soft tokens. It must be 0, or
    the reader is fed latents in another way than text, and no row compares."""
    lm, differences = wire.lm, []
    for passage in passages:
        targets, mask = answer_targets(lm, [passage])
        text, replay = (
            lm.score(
                passages_prompt(lm, wire.format, [passage], condition([passage.context])),
                targets,
                mask,
            )
            for condition in (full_text(lm), replayed(lm))
        )
        differences.append((text - replay).abs().max())
    return torch.stack(differences).max().item()  # unlike Python's, NaN if any is


def _first_token(wire: Reader, passage: Passage, context: Callable[[], KVPrefix]) -> float:
    """Seconds from a context to the logits of the answer's first token."""
    wait_for(wire.lm.device)
    began = time.perf_counter()
    question = passage.questions[0].question
    prompt = question_prompt(wire.lm, [question], context(), wire.format)
    wire.lm.head(wire.lm.last_hidden(prompt)[:, -1]).argmax(-1).item()
    return time.perf_counter() - began
