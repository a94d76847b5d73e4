"""Answers from caches that kvpress compressed, to the inputs of inputs.py. It needs kvpress and
its own transformers, and not latentwire.

    python press.py OUT --cell squad-4x-8x --reader smollm2-135m

The text is read once for all presses that score within one pass, each of which then compresses the
same keys and values at every ratio; check.py shows that this gives the caches that `with
press(model)` gives. KVzip's second pass is its own. kvpress compresses the prompt's head with the
text, so it gets as many slots as the wire has with that head, and may spend them where it likes.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from logging import ERROR, getLogger
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import torch
from cells import CELLS, READERS, TUNE, Records, batches, passages_of, rows_at, timed
from kvpress import (
    AdaKVPress,
    ExpectedAttentionPress,
    KeyDiffPress,
    KnormPress,
    KVzipPress,
    RandomPress,
    SnapKVPress,
    StreamingLLMPress,
    TOVAPress,
)
from kvpress.presses import kvzip_press
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache
from transformers.utils import logging

NONE, KVZIP = "none", "kvzip"
WINDOW = 16
"""Queries that SnapKV looks from. It keeps these at least, and its default of 64 is more than most
of these texts keep at all; chosen among WINDOWS on training questions."""
WINDOWS = (4, 8, 32)
Mask = tuple[Tensor, Tensor, Tensor] | None
"""Batch, head and slot of the keys that a press hides (`masked_key_indices`)."""


@dataclass
class Kept:
    """One text's cache: keys and values [1, h, n, e] of each layer, what of it is hidden, and the
    position that follows the text."""

    keys: list[Tensor]
    values: list[Tensor]
    masks: list[Mask]
    following: int

    def sizes(self) -> dict[str, int]:
        """Slots that are seen, in all heads and layers, and the bytes that are held for them."""
        hidden = sum(len(mask[2]) for mask in self.masks if mask is not None)
        each = [keys.shape[1] * keys.shape[2] for keys in self.keys]
        held = [2 * keys.numel() * keys.element_size() for keys in self.keys]
        return {"slots": sum(each) - hidden, "bytes": sum(held)}


class ExpectedAttention(ExpectedAttentionPress):
    """ExpectedAttention, whose mean rotation is made of the mean cosines and sines; kvpress makes
    one matrix for each of 512 positions, which takes seconds a text where heads are 256 wide."""

    def apply_avg_rope(self, module, mu: Tensor, cov: Tensor, q_len: int) -> tuple[Tensor, Tensor]:
        positions = torch.arange(q_len, q_len + self.n_future_positions)[None]
        cos, sin = (x[0].mean(0)[:, None] for x in module.rotary_emb(mu, positions))
        half, eye = module.head_dim // 2, torch.eye(module.head_dim)
        turn = torch.cat([-eye[half:], eye[:half]])
        rotation = cos * eye + sin * turn
        return mu @ rotation.T, rotation @ cov @ rotation.T


def scoring_presses(window: int = WINDOW) -> dict[str, Any]:
    """The presses that score within the pass over the text."""
    snapkv, expected = SnapKVPress(window_size=window), ExpectedAttention()
    presses = {
        "random": RandomPress(),
        "knorm": KnormPress(),
        "streaming_llm": StreamingLLMPress(),
        "snapkv": snapkv,
        "expected_attention": expected,
        "tova": TOVAPress(),
        "keydiff": KeyDiffPress(),
        "ada_snapkv": AdaKVPress(snapkv),
        "ada_expected_attention": AdaKVPress(expected),
    }
    for press in presses.values():
        if type(press) not in (AdaKVPress, StreamingLLMPress):  # whose scores depend on the ratio
            press.score = scored_once(press.score)
    return presses


def presses_of(cell: str) -> dict[str, Any]:
    """The presses of a cell: those of the comparison, or those that are chosen from."""
    if cell != TUNE:
        return scoring_presses()
    alone = {n: press for n, press in scoring_presses().items() if not n.startswith("ada")}
    return alone | {f"snapkv_{window}": SnapKVPress(window_size=window) for window in WINDOWS}


def scored_once(score: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The same scores of the same keys, computed once for all ratios."""
    last: list[Any] = [None, None]

    def scores(module, hidden_states, keys, values, attentions, kwargs) -> Tensor:
        if last[0] is not keys:
            last[:] = keys, score(module, hidden_states, keys, values, attentions, kwargs)
        return last[1].clone()  # AdaKV writes into them

    return scores


class KVzipAtRatios(KVzipPress):
    """KVzip, which masks for several numbers of slots after one pass."""

    wanted: dict[int, float]
    found: dict[int, list[Mask]]

    def compress_post(self, model) -> None:
        self.found = {}
        for ratio, removed in self.wanted.items():
            self.compression_ratio = removed
            super().compress_post(model)
            self.found[ratio] = [layer.self_attn.masked_key_indices for layer in model.model.layers]


class Peer:
    """A model under transformers' own attention, patched by kvpress."""

    def __init__(self, folder: Path):
        about = json.loads((folder / "reader.json").read_text())
        self.prefix, self.stops = about["prefix"], about["stops"]
        self.soft = load_file(folder / "soft.safetensors")["soft"]
        path = about["model"]
        self.model = AutoModelForCausalLM.from_pretrained(
            path, dtype=torch.float32, attn_implementation="sdpa"
        ).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(path)
        self.attentions = [layer.self_attn for layer in self.model.model.layers]
        self.give_rotary()

    def give_rotary(self) -> None:
        """Give each layer the rotary embedding that presses look for there; kvpress gives all of
        them the model's, which for Gemma raises an error."""
        whole, kinds = self.model.model.rotary_emb, getattr(self.model.config, "layer_types", None)
        for attention in self.attentions:
            own = self.model.config.model_type == "gemma3_text"
            kind = kinds[attention.layer_idx] if own else None
            attention.rotary_emb = LayerRotary(whole, kind) if own else whole

    def ids(self, passage: dict) -> Tensor:
        """Ids [1, n] of the prompt's head and a text."""
        return torch.tensor([self.prefix + passage["ids"]])

    def kept_slots(self, passage: dict, ratio: int) -> int:
        """Slots a head that the wire has: the prompt's head, and one for `ratio` tokens."""
        return len(self.prefix) + -(-len(passage["ids"]) // ratio)

    def compressed(
        self, passage: dict, presses: dict[str, Any], wanted: Sequence[tuple[int, str]]
    ) -> dict[tuple[int, str], Kept]:
        """The caches of a text, by ratio and row, after one pass."""
        ids, cache = self.ids(passage), DynamicCache()
        total = ids.shape[1]
        kept = {key: Kept([], [], [], total) for key in wanted if key[1] in (NONE, *presses)}

        def hook(attention, args, kwargs, output) -> None:
            layer = cache.layers[attention.layer_idx]
            hidden = kwargs["hidden_states"]
            for (ratio, row), to in kept.items():
                keys, values, attention.masked_key_indices = layer.keys, layer.values, None
                if row != NONE:
                    torch.manual_seed(passage["passage"] * 100 + attention.layer_idx)
                    press = presses[row]
                    press.compression_ratio = 1 - (self.kept_slots(passage, ratio) + 0.5) / total
                    keys, values = press.compress(
                        attention, hidden, keys, values, output[1], kwargs
                    )
                to.keys.append(keys)
                to.values.append(values)
                to.masks.append(attention.masked_key_indices)
            attention.masked_key_indices = None

        hooks = [a.register_forward_hook(hook, with_kwargs=True) for a in self.attentions]
        try:
            if kept:
                self.model.model(input_ids=ids, past_key_values=cache)
        finally:
            for registered in hooks:
                registered.remove()
        if ratios := [ratio for ratio, row in wanted if row == KVZIP]:
            kept |= self.kvzipped(passage, ratios)
        return kept

    def kvzipped(self, passage: dict, ratios: Sequence[int]) -> dict[tuple[int, str], Kept]:
        """KVzip's caches of a text, by ratio."""
        ids, cache, press = self.ids(passage), DynamicCache(), KVzipAtRatios(0.5)
        total = ids.shape[1]
        press.wanted = {r: 1 - self.kept_slots(passage, r) / total + 1e-9 for r in ratios}
        with press(self.model):
            self.model.model(input_ids=ids, past_key_values=cache)
        self.give_rotary()
        keys = [layer.keys for layer in cache.layers]
        values = [layer.values for layer in cache.layers]
        for attention in self.attentions:
            attention.masked_key_indices = None
        return {(r, KVZIP): Kept(keys, values, press.found[r], total) for r in ratios}

    def answers(self, caches: Sequence[Kept], batch: list[dict], soft: bool) -> list[list[str]]:
        """Greedy answers to the questions of each passage of a batch, each behind its cache."""
        pairs = zip(caches, batch, strict=True)
        rows = [(kept, q["ids"]) for kept, passage in pairs for q in passage["questions"]]
        cache, seen = self.joined([kept for kept, _ in rows])
        embeds, real = self.embedded([ids for _, ids in rows], soft)
        following = torch.tensor([kept.following for kept, _ in rows])
        positions = following[:, None] + (real.long().cumsum(1) - 1).clamp(min=0)
        mask = torch.cat([seen, real], 1)
        chosen: list[list[int]] = [[] for _ in rows]
        alive = [True] * len(rows)
        for _ in range(batch[0]["budget"]):
            states = self.model.model(
                inputs_embeds=embeds,
                attention_mask=mask.long(),
                position_ids=positions,
                past_key_values=cache,
            ).last_hidden_state[:, -1:]
            ids = self.model.lm_head(states)[:, 0].argmax(-1)
            for row, token in enumerate(ids.tolist()):
                if alive[row]:
                    chosen[row].append(token)
                    alive[row] = token not in self.stops and "\n" not in self.text(chosen[row])
            if not any(alive):
                break
            embeds = self.model.get_input_embeddings()(ids[:, None])
            mask = torch.cat([mask, mask.new_ones(len(rows), 1)], 1)
            positions = positions[:, -1:] + 1
        for attention in self.attentions:
            attention.masked_key_indices = None
        texts = iter(self.text(row).split("\n")[0].strip() for row in chosen)
        return [[next(texts) for _ in p["questions"]] for p in batch]

    def text(self, ids: Sequence[int]) -> str:
        """The text of an answer's ids."""
        words = [token for token in ids if token not in self.stops]
        return self.tokenizer.decode(words, skip_special_tokens=True)

    def embedded(self, rows: Sequence[Sequence[int]], soft: bool) -> tuple[Tensor, Tensor]:
        """Embeddings of questions, after the soft prompt, padded on the left with their own first
        (KVzip's and AdaKV's fake keys are looked for among all queries), and which are real."""
        embed = self.model.get_input_embeddings()
        whole = [embed(torch.tensor(ids)) for ids in rows]
        if soft:
            whole = [torch.cat([self.soft, row]) for row in whole]
        width = max(map(len, whole))
        padded = [torch.cat([row[:1].expand(width - len(row), -1), row]) for row in whole]
        lengths = torch.tensor([len(row) for row in whole])
        return torch.stack(padded), torch.arange(width) >= width - lengths[:, None]

    def joined(self, rows: Sequence[Kept]) -> tuple[DynamicCache, Tensor]:
        """Caches as one, padded on the left, and which slots are real. What is hidden in each is
        told to the attention as kvpress does."""
        lengths = [kept.keys[0].shape[2] for kept in rows]
        width, cache = max(lengths), DynamicCache()
        offsets = [width - length for length in lengths]
        pad = torch.nn.functional.pad
        for layer, attention in enumerate(self.attentions):
            sides = []
            for side in ("keys", "values"):
                each = [getattr(kept, side)[layer] for kept in rows]
                sides.append(
                    torch.cat([pad(x, (0, 0, o, 0)) for x, o in zip(each, offsets, strict=True)])
                )
            cache.update(*sides, layer)
            hidden = [(row, kept.masks[layer]) for row, kept in enumerate(rows)]
            hidden = [(row, mask) for row, mask in hidden if mask is not None]
            attention.masked_key_indices = None
            if hidden:
                attention.masked_key_indices = (
                    torch.cat([torch.full_like(mask[2], row) for row, mask in hidden]),
                    torch.cat([mask[1] for _, mask in hidden]),
                    torch.cat([mask[2] + offsets[row] for row, mask in hidden]),
                )
        return cache, torch.arange(width) >= torch.tensor(offsets)[:, None]


class LayerRotary(torch.nn.Module):
    """The rotary embedding of one of Gemma's layers, which differ in theirs, as presses call it."""

    def __init__(self, whole: torch.nn.Module, kind: str):
        super().__init__()
        self.whole, self.kind = whole, kind

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        return self.whole(x, position_ids, self.kind)


def allow_kvzip() -> None:
    """Read a model's tokenizer once; and let KVzip have Gemma 3, which it turns down though each of
    its steps runs there: all texts but the long ones are shorter than the sliding window."""
    once = staticmethod(lru_cache(AutoTokenizer.from_pretrained))
    kvzip_press.AutoTokenizer = type("Tokenizers", (), {"from_pretrained": once})
    kvzip_press.Gemma3PreTrainedModel = type("Nothing", (), {})


@torch.no_grad()
def main() -> None:
    """Answer one cell for one reader, as far as it is not answered yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--cell", choices=CELLS, default=next(iter(CELLS)))
    parser.add_argument("--reader", choices=READERS, required=True)
    parser.add_argument("--batches", type=int, help="answer the first of them alone")
    options = parser.parse_args()
    logging.set_verbosity_error()
    getLogger("kvpress").setLevel(ERROR)
    cell, reader = CELLS[options.cell], options.reader
    peer = Peer(options.out / "inputs" / reader)
    passages = passages_of(options.out, reader, cell)
    allow_kvzip()
    presses, records = presses_of(options.cell), Records(options.out / "kvpress.jsonl")
    parts = batches(passages)[: options.batches]
    for batch in timed(parts, f"kvpress {options.cell} {reader}"):
        wanted = [
            (ratio, row)
            for ratio in cell.ratios
            for row in rows_at(cell, ratio, "kvpress", NONE, [*presses, KVZIP])
            if records.missing(cell, reader, ratio, row, batch)
        ]
        begin = time.process_time()
        kept = [peer.compressed(passage, presses, wanted) for passage in batch] if wanted else []
        print(f"caches: {time.process_time() - begin:.1f} s", flush=True)
        for ratio, row in wanted:
            begin = time.process_time()
            caches = [of_passage[ratio, row] for of_passage in kept]
            texts = peer.answers(caches, batch, cell.soft)
            spent, sizes = (time.process_time() - begin) / len(batch), [c.sizes() for c in caches]
            records.add(cell, reader, ratio, row, [
                {"passage": passage["passage"], "answers": said, **size, "cpu": round(spent, 3)}
                for passage, said, size in zip(batch, texts, sizes, strict=True)
            ])  # fmt: skip


if __name__ == "__main__":
    main()
