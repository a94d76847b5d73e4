"""The model: a wire's reader, as lm-evaluation-harness's tasks call it.

What a task writes as a request's context is split before the last `separator`, two line breaks if
not given: what stands before is the document, which becomes latents, and the rest is asked.
`condition=full_text` has the same reader read the same document as text instead, everything else
being equal.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, TypeVar, cast

import torch
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from tqdm import tqdm

from latentwire.evals.baselines import Condition, closed_book, full_text, truncated
from latentwire.lm import Dtype, Greedy, Prompt, pad_right, token_log_probs
from latentwire.tasks.qa import question_prompt, with_soft_prompt
from latentwire.wire.load import load_with

CONDITIONS: dict[str, Callable[[Any, int | None], Condition]] = {
    "latents": lambda reader, bits: lambda texts: reader.receive(reader.send(texts, bits)),
    "full_text": lambda reader, _: full_text(reader.lm),
    "truncated": lambda reader, _: truncated(reader.lm, reader.latents),
    "closed_book": lambda reader, _: closed_book(reader.lm),
}
"""Conditions by name, each made from a reader and the bits of its messages. The reader sees a
document as latents; as all of its tokens; as its first tokens, as many as latents; not at all."""
DEFAULT_DEVICE = "cuda:0"
"""The device that the harness's command line names where it was asked for none, CUDA or not."""
MAX_NEW_TOKENS = 256
"""Longest answer of a task that names none, as the harness has it."""

log = logging.getLogger("latentwire.lm_eval")
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Asked:
    """A request of the harness, split."""

    place: int
    """Its place among all requests."""
    document: str
    question: str
    second: Any
    """The request's second argument: a continuation to score, or options of generation."""


@register_model("latentwire")
class WireLM(LM):
    """A wire's reader, as the harness's tasks call it."""

    def __init__(
        self,
        wire: str | int = "default",
        condition: str = "latents",
        separator: str = "\n\n",
        reader: str | None = None,
        ratio: int | None = None,
        keep: str | None = None,
        selector: str | None = None,
        bits: int | None = None,
        soft_prompt: bool | str = True,
        dtype: str | None = None,
        batch_size: int | str = 8,
        device: str | None = None,
        max_batch_size: int | None = None,
    ):
        """wire, ratio, keep, selector, dtype: as in `latentwire eval`. condition: of CONDITIONS.
        separator: a context's last one begins what is asked; \\n is a line break. reader: name of
        the one that answers, the first if None. bits: of a message's codes. soft_prompt: with the
        wire's behind the document; it asks for a short span. batch_size: requests that are run
        together; auto is 8. device, max_batch_size: given by the harness; models go to torch's
        accelerator where there is one, and to no other device. Raises ValueError for an argument
        that names nothing."""
        super().__init__()
        for name, value, known in (
            ("condition", condition, tuple(CONDITIONS)),
            ("dtype", dtype, (None, "float32", "bfloat16")),
            ("soft_prompt", soft_prompt, (True, False)),
        ):
            if value not in known:
                choices = ", ".join(str(choice) for choice in known if choice is not None)
                raise ValueError(f"{name} is {value!r}; expected one of {choices}")
        if not separator:
            raise ValueError("separator is empty; expected what begins a question")
        size = 8 if str(batch_size).startswith("auto") else batch_size
        if not str(size).isdigit() or int(size) < 1:
            raise ValueError(f"batch_size is {batch_size!r}; expected a whole number >= 1, or auto")
        # A name of digits alone comes as a number from the harness's command line.
        loaded: Any = load_with(str(wire), ratio, keep, selector, dtype=cast(Dtype | None, dtype))
        readers = {one.lm.name: one for one in loaded.readers}
        if reader is not None and reader not in readers:
            raise ValueError(f"no reader {reader!r}; expected one of {', '.join(readers)}")
        self.reader = loaded.readers[0] if reader is None else readers[reader]
        self.soft_prompt = self.reader.format if soft_prompt else None
        bits = self.reader.bits if bits is None else bits
        self.reader.check_bits(bits)
        self.condition = CONDITIONS[condition](self.reader, bits)
        self.separator = separator.replace("\\n", "\n")
        self.batch_size = int(size)
        self._device = self.reader.lm.device
        asked = None if device == DEFAULT_DEVICE else device
        if asked is not None and not str(self._device).startswith(asked.partition(":")[0]):
            raise ValueError(
                f"device is {device!r}; models are on {self._device.type}: leave it out, or set "
                "ACCELERATE_USE_CPU=true for cpu"
            )

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Greedy answers. Raises ValueError for a request that is to be sampled."""
        lm = self.reader.lm

        def answers(asked: Sequence[Asked], prompt: Prompt) -> list[str]:
            options = [request.second for request in asked]
            stops = [_stops(given) for given in options]
            most = [given.get("max_gen_toks", MAX_NEW_TOKENS) for given in options]
            room = lm.context_length - prompt.next_position
            budget = torch.tensor(most, device=lm.device).minimum(room).tolist()
            texts = lm.generate(prompt, Greedy(), budget, stop_strings=stops[0]).texts
            return [text.strip() for text in texts]

        for request in requests:
            if request.args[1].get("do_sample"):
                raise ValueError("do_sample is true; expected a task that is answered greedily")
        return self._batched(requests, answers, lambda given: str(_stops(given)), disable_tqdm)

    def loglikelihood(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """The log-probability of each continuation as the beginning of the answer, and whether it
        is the greedy one."""
        lm = self.reader.lm

        def scores(asked: Sequence[Asked], prompt: Prompt) -> list[tuple[float, bool]]:
            texts = [lm.frame.answer_prefix + request.second.strip() for request in asked]
            ids, mask = pad_right([lm.tokenize(text) for text in texts])
            logits = lm.logits(prompt, ids, mask)
            sums = (token_log_probs(logits, ids) * mask).sum(1).tolist()
            greedy = ((logits.argmax(-1) == ids) | ~mask).all(1).tolist()
            return list(zip(sums, greedy, strict=True))

        return self._batched(requests, scores, lambda _: "", disable_tqdm)

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> Any:
        """Raises ValueError: a text that is scored by itself has no document."""
        raise ValueError(
            "perplexity of a text has no document to compress; expected a task that asks something"
        )

    def get_model_info(self) -> dict[str, Any]:
        """Figures that the harness writes beside the results."""
        return {"model_name": self.reader.lm.name, "ratio": self.reader.ratio}

    @torch.no_grad()
    def _batched(
        self,
        requests: Sequence[Any],
        run: Callable[[Sequence[Asked], Prompt], list[Answer]],
        kind: Callable[[Any], str],
        disable_tqdm: bool,
    ) -> list[Answer]:
        """The answers to requests, in their order. Those of one document stand together, and it is
        read once for all of a batch. kind: requests of different kinds share no batch."""
        asked = [self._split(place, request) for place, request in enumerate(requests)]
        asked.sort(key=lambda one: (kind(one.second), one.document))
        answers: dict[int, Answer] = {}
        progress = tqdm(total=len(asked), disable=disable_tqdm, desc="latentwire")
        for batch in self._batches(asked, kind):
            documents = list(dict.fromkeys(one.document for one in batch))
            rows = torch.tensor([documents.index(one.document) for one in batch])
            prefix = with_soft_prompt(
                self.reader.lm, self.soft_prompt, self.condition(documents)
            ).rows(rows.to(self.reader.lm.device))
            prompt = question_prompt(self.reader.lm, [one.question for one in batch], prefix)
            places = [one.place for one in batch]
            answers.update(zip(places, run(batch, prompt), strict=True))
            progress.update(len(batch))
        progress.close()
        self._log_sizes(asked)
        return [answers[place] for place in range(len(asked))]

    def _batches(
        self, asked: Sequence[Asked], kind: Callable[[Any], str]
    ) -> Iterator[Sequence[Asked]]:
        """Requests in order, at most so many together, all of one kind."""
        for _, same in groupby(asked, key=lambda one: kind(one.second)):
            rest = list(same)
            for start in range(0, len(rest), self.batch_size):
                yield rest[start : start + self.batch_size]

    def _split(self, place: int, request: Any) -> Asked:
        """A request's document and question. Raises ValueError where there are not both: a score
        without a document would be one of the model alone."""
        context, second = request.args
        document, found, rest = context.rpartition(self.separator)
        question = (found + rest).strip()
        if not found or not document.strip() or not question:
            raise ValueError(
                f"a request of {request.task_name or 'a task'} has no document before "
                f"{self.separator!r} or no question behind it; it ends in {context[-60:]!r}: say "
                "by separator=... what begins the question"
            )
        return Asked(place, document, question, second)

    def _log_sizes(self, asked: Sequence[Asked]) -> None:
        documents = {one.document for one in asked}
        lm = self.reader.lm
        tokens = sum(len(lm.tokenize(text, remember=False)) for text in documents)
        latents = sum(self.reader.latents(text) for text in documents)
        log.info("%d documents: %d tokens, %d latents", len(documents), tokens, latents)


def _stops(options: dict[str, Any]) -> tuple[str, ...]:
    """Texts that end an answer."""
    until = options.get("until") or ()
    return tuple(filter(None, [until] if isinstance(until, str) else until))
