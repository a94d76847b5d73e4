"""Activations and where they stand: streamed from text, or dumped once to sharded safetensors.

A document is a block of text between blank lines. The LM reads each by itself, so an activation
never knows another document, and documents, not tokens, are split into training and held-out ones.
First tokens are left out (they take the attention that is left over, and their states say nothing
of the text) and so is padding.

    texts = tokenized(lm, read_documents([Path("text.txt")]), window=128, skip=4)
    for activations in stream(lm, 15, texts, count=8):
        ...
"""

from __future__ import annotations

import hashlib
import json
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import torch
from jaxtyping import Float, Int
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from latentwire.artifact import one_error, typed
from latentwire.files import write_whole
from latentwire.lens.checks import LensError, check_layer
from latentwire.lm import FrozenLM, Prompt, seed_of
from latentwire.lm.devices import precise
from latentwire.lm.finite import check_finite
from latentwire.lm.identity import identity
from latentwire.reading import check_name, parse_json
from latentwire.tasks.base import read_text
from latentwire.texts import check_texts

SINK = 1
"""First positions of a text, BOS or the token where BOS would stand, whose states no lens is
trained on: they take the attention that is left over, and have a hundred times the norm of others
(attention sinks: Xiao et al. 2024, arXiv 2309.17453)."""
BATCH = 16
"""Documents that are read in one pass."""


@dataclass(frozen=True)
class Text:
    """One document as the LM reads it."""

    number: int
    """Its place among all documents."""
    ids: Int[Tensor, " n"]
    """Token ids, BOS included where there is one."""
    bos: int
    """The number of them that are BOS."""
    skip: int
    """The number of first tokens, BOS included, that carry no activation that is used."""

    @property
    def usable(self) -> range:
        """Positions that carry an activation."""
        return range(self.skip, len(self.ids))


Place = tuple[Text, Sequence[int]]
"""A text, and positions in it."""


@dataclass(frozen=True)
class Activations:
    """Outputs of one block. vectors [n, d]; texts and positions: the token each one stands on."""

    vectors: Float[Tensor, "n d"]
    texts: tuple[Text, ...]
    positions: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.positions)

    def pick(self, index: Sequence[int]) -> Activations:
        """Some of them, in the order of `index`."""
        return Activations(
            self.vectors[list(index)],
            tuple(self.texts[i] for i in index),
            tuple(self.positions[i] for i in index),
        )

    def up_to(self, counts: Sequence[int], own: int = 1) -> list[Int[Tensor, " _"]]:
        """The last counts[i] tokens of text i up to the activation's own, or with own=0 before it;
        fewer where the text begins later."""
        ends = [p + own for p in self.positions]
        return [
            t.ids[max(t.bos, e - c) : e] for t, e, c in zip(self.texts, ends, counts, strict=True)
        ]

    def after(self, count: int) -> list[Int[Tensor, " _"]]:
        """The first `count` tokens that follow; fewer where the text ends before."""
        return [
            t.ids[p + 1 : p + 1 + count] for t, p in zip(self.texts, self.positions, strict=True)
        ]


def read_documents(paths: Sequence[Path]) -> list[str]:
    """Documents of UTF-8 text files: blocks between blank lines, in order."""
    blocks = [b.strip() for path in paths for b in re.split(r"\n\s*\n", read_text(path))]
    return [b for b in blocks if b]


def split(documents: Sequence[str], held_out: float) -> tuple[list[str], list[str]]:
    """Training and held-out documents: the end of each tenth is held out, or where that would be
    less than a document, of fewer and larger parts; so the two come from the same sources and few
    neighbours stand on both sides."""
    check_texts(documents, "documents")
    if not 0 < held_out < 1:
        raise LensError(f"held_out is {held_out}; expected a fraction between 0 and 1")
    if len(documents) < 2:
        raise LensError(
            f"{len(documents)} document; expected at least 2 between blank lines, one to hold out"
        )
    parts = min(10, max(1, int(held_out * len(documents))))
    training: list[str] = []
    held: list[str] = []
    size = -(-len(documents) // parts)
    for start in range(0, len(documents), size):
        part = documents[start : start + size]
        kept = max(1, len(part) - max(1, round(held_out * len(part))))
        training += part[:kept]
        held += part[kept:]
    seen = set(training)
    return training, [d for d in held if d not in seen]


def tokenized(lm: FrozenLM, documents: Sequence[str], window: int, skip: int) -> list[Text]:
    """Documents as the LM reads them, cut to `window` tokens; those with no token after the first
    `skip` are left out. Raises LensError where none is left."""
    check_texts(documents, "documents")
    # Clones, since a view would keep all ids of a document in memory.
    rows = [torch.cat([lm.bos, lm.tokenize(d, remember=False)])[:window].clone() for d in documents]
    first = max(SINK, len(lm.bos) + skip)
    texts = [Text(i, ids, len(lm.bos), first) for i, ids in enumerate(rows) if len(ids) > first]
    if not texts:
        raise LensError(
            f"none of {len(documents)} documents has more than {first - len(lm.bos)} tokens; "
            "expected longer text"
        )
    return texts


def draw(
    texts: Sequence[Text], count: int | None, seed: int, followed: bool = False
) -> list[Place]:
    """`count` random positions of each text (None: all), in order; the same for the same seed.
    followed: only such that a token follows."""
    places: list[Place] = []
    for text in texts:
        usable = list(text.usable)[: -1 if followed else None]
        if count is not None and count < len(usable):
            generator = torch.Generator().manual_seed(seed_of("positions", seed, text.number))
            chosen = torch.randperm(len(usable), generator=generator)[:count]
            usable = [usable[i] for i in sorted(chosen.tolist())]
        places.append((text, usable))
    return places


def check_place(position: int) -> None:
    """Raises LensError for a position, BOS counted, that no lens is trained on."""
    if position < SINK:
        raise LensError(
            "the first token that a model reads, where BOS stands or would, takes the attention "
            "that is left over, and no lens is trained on its state; put a word before it, or take "
            "a later token"
        )


@torch.no_grad()
def at(lm: FrozenLM, layer: int, places: Sequence[Place]) -> Activations:
    """Activations at places, in one pass over their texts. Raises LensError for a position that a
    text does not have."""
    check_layer(layer, lm)
    for text, positions in places:
        if not all(0 <= p < len(text.ids) for p in positions):
            wrong = next(p for p in positions if not 0 <= p < len(text.ids))
            raise LensError(
                f"token {wrong} of a text of {len(text.ids)} tokens; "
                f"expected 0..{len(text.ids) - 1}"
            )
    prompt = Prompt.from_ids(lm, [text.ids for text, _ in places])
    states = lm.hidden(prompt, layer)
    width = states.shape[1]
    vectors = [
        states[row, [width - len(text.ids) + p for p in positions]]
        for row, (text, positions) in enumerate(places)
    ]
    texts = [text for text, positions in places for _ in positions]
    flat = [p for _, positions in places for p in positions]
    joined = torch.cat(vectors)
    joined = joined.to(torch.promote_types(joined.dtype, torch.float32))
    return Activations(joined, tuple(texts), tuple(flat))


def stream(
    lm: FrozenLM, layer: int, texts: Sequence[Text], count: int | None = None, seed: int = 0
) -> Iterator[Activations]:
    """Activations of all texts, a batch of documents at a time; nothing is kept."""
    for start in range(0, len(texts), BATCH):
        yield at(lm, layer, draw(texts[start : start + BATCH], count, seed))


@dataclass(frozen=True)
class Statistics:
    """The usual mean, norm and spread of the activations of one layer, measured on training
    text."""

    mean: Float[Tensor, " d"]
    norm: float
    """Median norm."""
    spread: float
    """Root mean squared distance to the mean: at this scale a squared error is 1 - FVE."""


def statistics(batches: Iterable[Activations]) -> Statistics:
    """Statistics over all activations of some batches, of which only norms and sums are kept."""
    norms: list[Tensor] = []
    total, squares = torch.zeros(()), torch.zeros(())
    for batch in batches:
        vectors = precise(batch.vectors)
        norms.append(vectors.norm(dim=1))
        total = total.to(vectors) + vectors.sum(0)
        squares = squares.to(vectors) + vectors.square().sum()
    all_norms = torch.cat(norms)
    mean = total / len(all_norms)
    spread = (squares / len(all_norms) - mean.square().sum()).sqrt()
    return Statistics(mean.float(), all_norms.median().item(), spread.item())


def dump(lm: FrozenLM, layer: int, texts: Sequence[Text], folder: Path, shard: int = 65536) -> None:
    """Write all activations of some texts as safetensors of at least `shard` rows each, in float32,
    and an index.json. `places` [n, 2] beside them has each one's document and position."""
    folder.mkdir(parents=True, exist_ok=True)
    # An index that outlived its shards would pass an interrupted dump off as whole.
    (folder / "index.json").unlink(missing_ok=True)
    shards: dict[str, int] = {}
    waiting: list[Activations] = []

    def flush() -> None:
        name = f"activations-{len(shards):05}.safetensors"
        flat = [(t.number, p) for a in waiting for t, p in zip(a.texts, a.positions, strict=True)]
        vectors = torch.cat([a.vectors for a in waiting]).to("cpu", torch.float32)
        write_whole(folder / name, save({"vectors": vectors, "places": torch.tensor(flat)}))
        shards[name] = len(flat)
        waiting.clear()

    for batch in stream(lm, layer, texts):
        waiting.append(batch)
        if sum(map(len, waiting)) >= shard:
            flush()
    if waiting:
        flush()
    index = {**_origin(lm, layer, texts), "shards": shards}
    write_whole(folder / "index.json", json.dumps(index, indent=1))


@dataclass(frozen=True)
class Shards:
    """The part of a dump's index.json that names its files."""

    shards: dict[str, int]
    """Rows of each file, by its name."""

    def __post_init__(self) -> None:
        for name in self.shards:
            check_name(name)


class Dump:
    """A folder that `dump` wrote, read where it is asked for. Raises LensError where it was of
    another model, layer or text."""

    def __init__(self, lm: FrozenLM, layer: int, texts: Sequence[Text], folder: Path):
        with one_error(LensError, f"{folder}/index.json"):
            index = parse_json(read_text(folder / "index.json"))
            shards = typed(Shards, index).shards
        for name, expected in _origin(lm, layer, texts).items():
            if index.get(name) != expected:
                raise LensError(
                    f"{folder} was dumped with {name} {index.get(name)}; expected {expected}: "
                    "give another folder or remove it"
                )
        self.device = lm.device
        files = [safe_open(str(folder / name), framework="pt") for name in shards]
        self._vectors = [file.get_slice("vectors") for file in files]
        self._starts = list(accumulate(shards.values(), initial=0))
        lengths = accumulate((len(text.usable) for text in texts), initial=0)
        self._first = {t.number: s for t, s in zip(texts, lengths, strict=False)}

    def at(self, places: Sequence[Place]) -> Activations:
        """Activations at usable positions of its texts."""
        texts = tuple(text for text, positions in places for _ in positions)
        flat = tuple(p for _, positions in places for p in positions)
        rows = [self._first[t.number] + t.usable.index(p) for t, p in zip(texts, flat, strict=True)]
        vectors = []
        for row in rows:
            shard = bisect_right(self._starts, row) - 1
            own = row - self._starts[shard]
            vectors.append(self._vectors[shard][own : own + 1])
        joined = torch.cat(vectors).to(self.device)
        check_finite({"an activation of the dump": joined}, LensError)
        return Activations(joined, texts, flat)


def _origin(lm: FrozenLM, layer: int, texts: Sequence[Text]) -> dict:
    rows = [[t.skip, *t.ids.tolist()] for t in texts]
    digest = hashlib.sha256(json.dumps(rows).encode()).hexdigest()
    frozen = {part: identity(lm)[part] for part in ("weights", "config")}
    return {**frozen, "layer": layer, "text": digest[:16]}
