"""Recordings of frozen models on a passage, computed once and kept in a run folder.

Training the attention of a decoder, and distilling a reader's answers, need of the frozen models
only what they compute from the full text: the source's features, the queries that a reader's
questions and answers ask of it, the attention those give it, and the states that predict the
answers. One file a passage and model, in bfloat16; an interrupted run goes on.

Shapes: n tokens of the source, m of the reader, q query tokens, l layers, h query heads,
e width of a head, k answer tokens, d width of the reader.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from latentwire.files import write_whole
from latentwire.lm import FrozenLM, KVPrefix, Prompt, seed_of
from latentwire.lm.families import attention_softcap, capped, rotate
from latentwire.tasks.qa import Passage, answer_targets, passages_prompt
from latentwire.wire.codes.code import CodeConfig, read
from latentwire.wire.codes.fitting import pairs
from latentwire.wire.compressed_kv import head_of

QUERIES = 40
"""Most tokens of a passage's questions and answers whose attention is recorded."""


class Recorder:
    """The recordings of one model in a folder."""

    def __init__(self, folder: Path, lm: FrozenLM):
        self.folder, self.device = folder, lm.device.type
        folder.mkdir(parents=True, exist_ok=True)

    def __call__(self, name: str, compute: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """The tensors of a passage, computed where they are not there yet."""
        path = self.folder / f"{name}.safetensors"
        try:
            return load_file(path)
        except (OSError, SafetensorError):  # none yet, or one that a full disk cut off
            with torch.autocast(self.device, enabled=False):  # whatever the step around it has
                tensors = {key: tensor.cpu().contiguous() for key, tensor in compute().items()}
            write_whole(path, save(tensors))
            return tensors


def source_features(source: FrozenLM, config: CodeConfig, text: str) -> dict[str, Tensor]:
    """features [n, f] of the tokens of a text's first chunk."""
    ids = source.tokenize(text)[: config.chunk_size]
    return {"features": read(source, head_of(source), config, ids).bfloat16()}


@torch.no_grad()
def own_reading(
    source: FrozenLM, tokens: int, lm: FrozenLM, text: str
) -> tuple[Tensor, Tensor, KVPrefix]:
    """A reader's ids of the part of a text that `tokens` of the source cover, the source token that
    each belongs to, and its cache of them behind its head."""
    ends, reader_ends = source.offsets(text)[:tokens, 1], lm.offsets(text)[:, 1]
    ids = lm.tokenize(text)[reader_ends <= ends[-1]]
    cache = lm.prefill(Prompt.from_ids(lm, [torch.cat([lm.frame.prefix, ids])]))
    return ids, pairs(ends, reader_ends[: len(ids)]), cache


@torch.no_grad()
def reader_attention(
    reader: FrozenLM,
    format_tokens: Tensor,
    source: FrozenLM,
    tokens: int,
    passage: Passage,
    layers: range | None = None,
) -> dict[str, Tensor]:
    """A reader's attention to one passage's full text when it is asked and answers.

    tokens: of the source's, those that have a code. layers: the attention of these alone, in
    order; of all if None. queries [q, l, h, e] scaled and before
    rotation; offsets [q], their positions behind the text; attention [q, l, h, n + 1] on the
    source's tokens, each reader token's counted where it ends, and on all else; outputs
    [q, l, h, e], what attention reads from the text; others [q, l, h], the log of the sum over all
    else; teacher [k, d], the states that predict the answers.
    """
    start, text = len(reader.frame.prefix), passage.context
    layers = range(len(reader.blocks)) if layers is None else layers
    ids, owner, context = own_reading(source, tokens, reader, text)
    targets, mask = answer_targets(reader, [passage])
    prompt = passages_prompt(reader, format_tokens, [passage], context)
    asked = prompt.append(reader.embed(targets[:, :-1]), mask[:, :-1])
    final, seen = reader.attention_inputs(asked, layers)
    first = prompt.embeds.shape[1] - 1
    row, column = _some(asked.mask, seed_of(text)).unbind(1)
    positions, of_text = asked.positions[row, column], slice(start, start + len(ids))
    rows: dict[str, list[Tensor]] = {n: [] for n in ("queries", "attention", "outputs", "others")}
    of_rows = row.bincount(minlength=len(asked.mask)).tolist()
    for layer, (queries, keys, values, visible) in zip(layers, seen, strict=True):
        queries = queries[row, :, column].float()
        logits = _each_row(queries, of_rows, keys.float().transpose(2, 3))
        logits = capped(logits, attention_softcap(reader.model.config))
        logits = logits.masked_fill(~visible[row, :1, column], -torch.inf)
        rest = torch.cat([logits[..., : of_text.start], logits[..., of_text.stop :]], -1)
        rest = rest.logsumexp(-1)
        shares = torch.cat([logits[..., of_text], rest[..., None]], -1).softmax(-1)
        by_token = shares.new_zeros(*shares.shape[:-1], tokens)
        by_token = by_token.index_add(-1, owner, shares[..., :-1])
        at = positions.expand(1, queries.shape[1], -1)
        unrotated = rotate(reader.model, layer, queries.transpose(0, 1)[None], at, back=True)[0]
        rows["queries"].append(unrotated.transpose(0, 1).bfloat16())
        rows["attention"].append(torch.cat([by_token, shares[..., -1:]], -1).half())
        outputs = _each_row(shares[..., :-1], of_rows, values[:, :, of_text].float())
        rows["outputs"].append(outputs.bfloat16())
        rows["others"].append(rest)
    return {
        **{name: torch.stack(of, 1) for name, of in rows.items() if of},
        "offsets": (positions - of_text.stop).int(),
        "teacher": final[:, first : first + targets.shape[1]][mask].bfloat16(),
    }


def _each_row(
    x: Float[Tensor, "q h k"], of_rows: Sequence[int], matrices: Float[Tensor, "b g k e"]
) -> Float[Tensor, "q h e"]:
    """Vectors, the first `of_rows[0]` of them of row 0 and so on, times the matrix of their row and
    of the KV head that their query head belongs to."""
    grouped = x.unflatten(1, (matrices.shape[1], -1)).split([*of_rows])
    products = [
        torch.einsum("qghk,gke->qghe", *pair) for pair in zip(grouped, matrices, strict=True)
    ]
    return torch.cat(products).flatten(1, 2)


def _some(mask: Bool[Tensor, "b t"], seed: int) -> Int[Tensor, "q two"]:
    """Row and column of QUERIES real tokens, or of all where there are fewer."""
    real = mask.nonzero()
    generator = torch.Generator().manual_seed(seed)
    return real[torch.randperm(len(real), generator=generator)[:QUERIES].sort().values]
