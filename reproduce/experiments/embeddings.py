"""A text's input embeddings moved about, with no training: which changes does a frozen LM bear?

    python reproduce/experiments/embeddings.py squad_dev.jsonl gemma3-270m embeddings-gemma3.json

The first 40 questions of the file, in bfloat16. Only embeddings of the passage are changed; the
prompt's beginning, the soft prompt, the question and the answer's budget are those of every
evaluation. About half an hour on one thread; the same command goes on with a run that was stopped.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize

from latentwire.evals.baselines import closed_book
from latentwire.evals.harness import Answer, evaluate, f1_differences, summarise
from latentwire.files import write_whole
from latentwire.lm import FrozenLM, KVPrefix, Prompt
from latentwire.tasks.qa import by_context, load_questions
from latentwire.wire.compressed_kv import head_of
from latentwire.wire.load import load_wire

QUESTIONS, DTYPE, SEED = 40, "bfloat16", 0
Change = Callable[[Tensor], Tensor]
"""Embeddings [n, d] of a text, as they enter the model -> as many others."""


def rms(x: Tensor) -> Tensor:
    """Root mean square of each row."""
    return x.square().mean(-1, keepdim=True).sqrt()


class Changes:
    """Every change of one model's embeddings, by name."""

    def __init__(self, lm: FrozenLM):
        self.vocabulary = lm.embed(torch.arange(lm.model.get_input_embeddings().num_embeddings))
        self.vocabulary = self.vocabulary.detach().float()
        self.directions = normalize(self.vocabulary, dim=-1)
        self.mean, self.deviation = self.vocabulary.mean(0), self.vocabulary.std(0)
        self.size = rms(self.vocabulary).mean()
        covariance = torch.cov(self.vocabulary.double().T)
        values, vectors = torch.linalg.eigh(covariance)
        self.components = vectors.flip(1).float()
        self.whiten = (vectors / values.clamp_min(1e-12).sqrt() @ vectors.T).float()

    def rows(self) -> dict[str, Change]:
        """The rows of the table."""
        width = len(self.mean)
        rows: dict[str, Change] = {"unchanged": lambda x: x}
        for gain in (0.5, 0.75, 1.0, 1.25, 1.5):
            rows[f"one gain: mean RMS {gain} of the vocabulary's"] = self.gain(gain)
        rows["RMS of each token the vocabulary's mean"] = lambda x: x / rms(x) * self.size
        rows["mean and deviation of each channel the vocabulary's"] = self.channels
        rows["whitened, RMS the vocabulary's mean"] = self.whitened
        for size in (0.25, 0.5, 1.0, 2.0):
            rows[f"noise of {size} of each token's RMS"] = self.noise(size)
        rows["noise of 1.0, then the nearest token"] = self.snapped
        rows["one offset for all of 1.0 of the mean RMS"] = self.offset
        rows["mean of the 4 nearest tokens, itself among them"] = self.mixed(0, 4)
        rows["mean of the 4 nearest other tokens"] = self.mixed(1, 5)
        rows["the nearest other token"] = self.mixed(1, 2)
        for share in (2, 4, 8):
            rows[f"1/{share} of the principal components"] = self.projected(width // share, False)
            rows[f"1/{share}, each token's RMS restored"] = self.projected(width // share, True)
        return rows

    def gain(self, gain: float) -> Change:
        return lambda x: x * (gain * self.size / rms(x).mean())

    def channels(self, x: Tensor) -> Tensor:
        return (x - x.mean(0)) / x.std(0).clamp_min(1e-6) * self.deviation + self.mean

    def whitened(self, x: Tensor) -> Tensor:
        white = (x - self.mean) @ self.whiten
        return white / rms(white) * self.size

    def noise(self, size: float) -> Change:
        return lambda x: x + size * rms(x) * self._random(x)

    def snapped(self, x: Tensor) -> Tensor:
        return self.vocabulary[self.nearest(self.noise(1.0)(x), 1).indices[:, 0]]

    def offset(self, x: Tensor) -> Tensor:
        return x + rms(x).mean() * self._random(x[:1])

    def mixed(self, first: int, end: int) -> Change:
        return lambda x: self.vocabulary[self.nearest(x, end).indices[:, first:]].mean(1)

    def projected(self, count: int, restore: bool) -> Change:
        kept = self.components[:, :count]

        def change(x: Tensor) -> Tensor:
            low = (x - self.mean) @ kept @ kept.T + self.mean
            return low * (rms(x) / rms(low)) if restore else low

        return change

    def nearest(self, x: Tensor, count: int) -> torch.return_types.topk:
        """Tokens by cosine."""
        return (normalize(x, dim=-1) @ self.directions.T).topk(count)

    def _random(self, like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=torch.Generator().manual_seed(SEED))


def main(data: str, name: str, out: str) -> None:
    torch.set_num_threads(1)
    passages = by_context(load_questions(data, QUESTIONS))
    (reader,) = [r for r in load_wire("shared", dtype=DTYPE).readers if r.reader == name]
    lm, changes = reader.lm, Changes(reader.lm)
    kept = Path("runs/experiments") / f"embeddings-{name}"
    kept.mkdir(parents=True, exist_ok=True)
    tokens = torch.cat([lm.tokenize(p.context) for p in passages[:5]])

    def entered(change: Change) -> Callable[..., KVPrefix]:
        def condition(texts: list[str]) -> KVPrefix:
            head = head_of(lm).repeat(len(texts))
            rows = [[change(lm.embed(lm.tokenize(t)).float()).to(lm.dtype)] for t in texts]
            return lm.prefill(Prompt.of(lm, rows, head))

        return condition

    rows = {row: (change, entered(change)) for row, change in changes.rows().items()}
    rows["no text"] = (None, closed_book(lm))
    result = {
        "data": Path(data).name,
        "reader": name,
        "questions": QUESTIONS,
        "dtype": DTYPE,
        "rows": {},
    }
    given: list[Answer] = []
    for number, (row, (change, condition)) in enumerate(rows.items()):
        path = kept / f"{number}.json"
        if not path.exists():
            found = chain(*evaluate(lm, reader.format, passages, {row: condition}))
            write_whole(path, json.dumps([asdict(answer) for answer in found]))
        records = json.loads(path.read_text())
        answers = [Answer.of_record(r) for r in records]
        given += answers
        result["rows"][row] = summarise(answers)
        result["rows"][row]["empty"] = sum(not a.answer for a in answers) / len(answers)
        if change is not None:
            near = changes.nearest(change(lm.embed(tokens).detach().float()), 1)
            result["rows"][row]["cosine"] = near.values.mean().item()
            result["rows"][row]["token"] = (near.indices[:, 0] == tokens).float().mean().item()
        print(f"{result['rows'][row]['f1']:.3f}  {row}", flush=True)
        differences = f1_differences(given, "unchanged")
        result["unchanged minus"] = differences
        write_whole(Path(out), json.dumps(result, indent=1))


if __name__ == "__main__":
    main(*sys.argv[1:])
