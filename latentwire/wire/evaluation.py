"""Evaluating a wire: its answers beside those of the same reader with the full text, with less
text, with none, and with latents that say nothing.

    latentwire eval default --data squad_dev.jsonl --limit 500
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache, partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from torch import Tensor

from latentwire.evals.baselines import (
    Condition,
    closed_book,
    full_text,
    pruned,
    truncated,
    truncated_bytes,
    truncated_zstd,
)
from latentwire.evals.harness import (
    Answer,
    batch_size,
    cut_answers,
    evaluate,
    f1_differences,
    summarise,
)
from latentwire.files import digest, first_of, owned, write_whole
from latentwire.lm import KVPrefix
from latentwire.lm.identity import basis, digest_of, identity
from latentwire.runs.features import Features
from latentwire.runs.folder import append, open_run, rewrite
from latentwire.runs.workers import Executor, run_local
from latentwire.tasks.base import DataError
from latentwire.tasks.needles import NEEDLE_TOKENS, with_needles
from latentwire.tasks.qa import (
    ANSWER_TOKENS,
    Passage,
    answer_ids,
    by_context,
    load_questions,
    question_ids,
)
from latentwire.terminal import terminal
from latentwire.wire.costs import TIMED, costs, embeds_vs_ids_difference, sizes
from latentwire.wire.protocol import Reader
from latentwire.wire.text_wire import TextReader

ALMANAC = str(files("latentwire") / "data" / "almanac.jsonl")
"""The reading set that the package ships."""
REFERENCES: dict[str, int | None] = {
    **{"text": None, "closed_book": None},
    **{"truncated_tokens": 0, "pruned_tokens": 0, "truncated_bytes": 1, "truncated_zstd": 1},
}
"""Conditions without latents, the same for all wires of a reader with the same soft prompt; and
which of a message's costs, latents or bytes, each text is cut to."""


def conditions(
    reader: Reader,
    passages: Sequence[Passage],
    bits: int | None = None,
    also: Sequence[str] = (),
) -> dict[str, Condition]:
    """The rows of an evaluation. The latents go through the bytes of their messages, in codes of
    `bits` (the wire's own if None), so that what is scored is what would travel. also: selectors by
    whose eviction alone there are rows too; raises WireError for one that there is not."""
    texts = [p.context for p in passages]
    following = dict(zip(texts, texts[1:] + texts[:1], strict=True))
    options = () if bits is None else (bits,)

    @lru_cache(maxsize=1)  # the rows of one batch follow one another
    def opened(wanted: tuple[str, ...]) -> dict[str, Any]:
        texts = list(dict.fromkeys((*wanted, *(following[text] for text in wanted))))
        return dict(zip(texts, reader.open([sent(text) for text in texts]), strict=True))

    def sent(text: str, by: Reader = reader) -> Any:
        message = by.send([text], *options)[0]
        return type(message).from_bytes(message.to_bytes())

    def latents(of: Callable[[str], str], blank: str | None = None) -> Condition:
        def condition(wanted: Sequence[str]) -> KVPrefix:
            contents = [opened(tuple(wanted))[of(text)] for text in wanted]
            return reader.prefix([getattr(c, blank)() for c in contents] if blank else contents)

        return condition

    def evicted(by: Reader) -> Condition:
        return lambda wanted: by.prefix(by.open([sent(text, by) for text in wanted]))

    def cost(text: str) -> int:
        return reader.cost(text, *options)[1]

    return {
        "text": full_text(reader.lm),
        "wire": latents(lambda text: text),
        **{name: evicted(by) for name, by in reader.evictions(also).items()},
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
    also: Sequence[str] = (),
    answer_tokens: int | None = None,
) -> dict:
    """Score all conditions on the first `limit` questions of `data`, with messages in codes of
    `bits` (the wire's own if None); the whole result as one dict. needles: "number" or "uuid" asks
    for one that is hidden in each passage, in place of the passage's questions. executor: who
    answers, workers that load this wire, or this process if None. also: selectors (wire/selectors/)
    that are scored at the same ratio, without a residual. answer_tokens: longest answer, 20 tokens
    if None, and 48 for needles; the result says what share of the gold answers is longer. Answers
    from text are kept on disk (runs/features.py), and taken from there where another evaluation has
    left them.

    out: a run folder that gets config.json, predictions.jsonl (passage by passage, so that an
    interrupted evaluation goes on) and results.json. Raises DataError for fewer than two passages,
    since another example's latents need another example, MessageError for bits that no codec has,
    and ValueError for a folder that holds another run or is another process's.
    """
    asked = (data, limit, out, bits, needles, executor, also, answer_tokens)
    return evaluate_reader(wire, *asked)[0]


def evaluate_reader(
    wire: Reader,
    data: str,
    limit: int | None,
    out: Path | None,
    bits: int | None,
    needles: str | None,
    executor: Executor | None = None,
    also: Sequence[str] = (),
    answer_tokens: int | None = None,
) -> tuple[dict, list[Answer]]:
    """The result of evaluate_wire, and every answer that it counts."""
    bits = wire.bits if bits is None else bits
    wire.check_bits(bits)
    passages, usual = load_passages(data, limit, needles)
    budget = answer_tokens or usual
    _check_room(wire, passages, budget)
    rows = list(conditions(wire, passages, bits, also))
    setting = {
        "wire": wire.id.hex(),
        "reader": wire.reader,
        "data": Path(data).name,
        "limit": limit,
        "ratio": wire.ratio,
    }
    source = wire.source if isinstance(wire, TextReader) else None
    given = {"bits": bits, "source": source, "keep": wire.keep, "needles": needles}
    given |= {"also": sorted(also) or None, "answer_tokens": None if budget == usual else budget}
    setting |= {name: value for name, value in given.items() if value is not None}
    setting["questions"] = digest(repr(passages))
    with owned(out):
        answers = [] if out is None else _resumed(out, setting, wire, passages, rows)
        asked = {"passages": passages, "bits": bits, "also": also, "answer_tokens": budget}
        answers += _left(wire, passages, answers, out, executor, asked)
        result = {**setting, **_summary(wire, passages, answers, bits, rows)}
        cut = cut_answers(wire.lm, passages, budget)
        result |= {"answer_tokens": budget, "cut_answers": cut}
        if out is not None:
            write_whole(out / "results.json", json.dumps(result, indent=1))
        return result, answers


def _left(
    wire: Reader,
    passages: Sequence[Passage],
    answers: Sequence[Answer],
    out: Path | None,
    executor: Executor | None,
    asked: Mapping[str, Any],
) -> list[Answer]:
    """Answer what is left to answer, a batch of passages at a time. asked: of _answering."""
    done, size = {a.context for a in answers}, batch_size(wire.lm)
    left = [p for p in passages if p.context not in done]
    parts = [left[start : start + size] for start in range(0, len(left), size)]
    batches = (executor or run_local(wire))(partial(_answering, **asked), parts)
    console, answered = terminal(stderr=True), []
    for batch in track(batches, description="answering", total=len(parts), console=console):
        answered += batch
        if out is not None:
            append(out, [asdict(a) for a in batch])
    return answered


def _summary(
    wire: Reader,
    passages: Sequence[Passage],
    answers: Sequence[Answer],
    bits: int | None,
    rows: Sequence[str],
) -> dict[str, Any]:
    """Scores of all rows, and costs."""
    scores = {name: summarise([a for a in answers if a.condition == name]) for name in rows}
    whole = scores["text"]["f1"]
    return {
        "n": sum(a.condition == "wire" for a in answers),
        "passages": len(passages),
        "rows": scores,
        "differences": f1_differences(answers),
        "retention": scores["wire"]["f1"] / whole if whole else None,
        **sizes(wire, passages, bits),
        **costs(wire, passages[:TIMED]),
        "embeds_vs_ids_difference": embeds_vs_ids_difference(wire, passages[:TIMED]),
    }


def load_passages(data: str, limit: int | None, needles: str | None) -> tuple[list[Passage], int]:
    """The questions by context, and the most tokens of an answer where nothing else is said."""
    passages = by_context(load_questions(data, limit, least=2))
    if needles is None:
        return passages, ANSWER_TOKENS
    return with_needles(passages, needles), NEEDLE_TOKENS


def _answering(
    wire: Reader,
    passages: Sequence[Passage],
    bits: int | None,
    also: Sequence[str],
    answer_tokens: int,
) -> Callable[[Sequence[Passage]], list[Answer]]:
    """The function that answers a batch of the passages under all conditions."""
    rows = conditions(wire, passages, bits, also)
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
        return [Answer.of_record(record) for record in json.loads(bytes(found["json"].tolist()))]

    def work(part: Sequence[Passage]) -> list[Answer]:
        made = []
        for name, condition in rows.items():
            made += kept(part, name) if name in REFERENCES else answered(part, name, condition)
        return made

    return work


def _packed(value: Any) -> Tensor:
    """Anything that JSON holds, as a tensor of its bytes."""
    return torch.tensor(list(json.dumps(value).encode()), dtype=torch.uint8)


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
    known = first_of(records, lambda r: (r["context"], r["id"], r["condition"]))
    done = {
        p.context
        for p in passages
        if all((p.context, q.id, name) in known for q in p.questions for name in rows)
    }
    kept = [record for record in known.values() if record["context"] in done]
    rewrite(out, kept)
    return [Answer.of_record(record) for record in kept]
