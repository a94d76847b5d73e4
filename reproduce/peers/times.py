"""CPU time to compress a text, to the first token and for each token after it, beside Hugging
Face's own for the whole text in the same process. Run it with each package's Python; it measures
the package that is there.

    python times.py OUT >> OUT/times.jsonl

One row, one thread, the reader smollm2-135m, texts of some lengths, 4x; the least of three runs.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from cells import CELLS, READERS, passages_of
from transformers import DynamicCache

LENGTHS, RATIO, TOKENS, REPEATS = (200, 1000, 2000), 4, 20, 3
TEXT = "text"


def seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    """The least CPU time of some calls, and what the last returned."""
    least = float("inf")
    for _ in range(REPEATS):
        begin = time.process_time()
        result = work()
        least = min(least, time.process_time() - begin)
    return least, result


def prefill(model, ids: list[int]) -> DynamicCache:
    """Hugging Face's cache of a text."""
    cache = DynamicCache()
    model.model(input_ids=torch.tensor([ids]), past_key_values=cache)
    return cache


def decoded(model, cache: DynamicCache, question: list[int], following: int) -> tuple[float, float]:
    """CPU seconds to the first token, and for each of the TOKENS after it."""
    begin, ids = time.process_time(), torch.tensor([question])
    for step in range(TOKENS + 1):
        positions = torch.arange(following, following + ids.shape[1])[None]
        following += ids.shape[1]
        logits = model(
            input_ids=ids, past_key_values=cache, position_ids=positions, logits_to_keep=1
        ).logits
        ids = logits[:, -1].argmax(-1, keepdim=True)
        if step == 0:
            first = time.process_time() - begin
    return first, (time.process_time() - begin - first) / TOKENS


def whole(model, ids: list[int], question: list[int]) -> dict[str, float]:
    """Hugging Face's own times with the whole text."""
    read, _ = seconds(lambda: prefill(model, ids))
    runs = [decoded(model, prefill(model, ids), question, len(ids)) for _ in range(REPEATS)]
    first, token = map(min, zip(*runs, strict=True))
    return {"compress": read, "first": first, "token": token}


def peers(out: Path) -> Iterator[tuple[int, str, dict[str, float]]]:
    """kvpress as its pipeline runs it."""
    from kvpress import ExpectedAttentionPress, KeyDiffPress, KnormPress, KVzipPress, SnapKVPress
    from press import Peer, allow_kvzip

    allow_kvzip()
    peer = Peer(out / "inputs" / READERS[0])
    for length, ids, question in texts(out, peer.prefix):
        yield length, TEXT, whole(peer.model, ids, question)
        for press in (KnormPress, KeyDiffPress, SnapKVPress, ExpectedAttentionPress, KVzipPress):
            pressed = press(1 - 1 / RATIO)
            runs = []
            for _ in range(REPEATS):
                begin = time.process_time()
                with pressed(peer.model):
                    cache = prefill(peer.model, ids)
                spent = time.process_time() - begin
                runs.append((spent, *decoded(peer.model, cache, question, len(ids))))
                for attention in peer.attentions:
                    attention.masked_key_indices = None
            named = zip(("compress", "first", "token"), zip(*runs, strict=True), strict=True)
            yield length, press.__name__, {name: min(spent) for name, spent in named}


def ours(out: Path) -> Iterator[tuple[int, str, dict[str, float]]]:
    """The wire, and its scorer alone."""
    from inputs import wire_of

    wire = wire_of(READERS[0]).at(RATIO)
    lm = wire.lm
    for length, ids, question in texts(out, lm.frame.prefix.tolist()):
        yield length, TEXT, whole(lm.model, ids, question)
        text = lm.detokenize(torch.tensor(ids[len(lm.frame.prefix) :]))
        for name, one in (("wire", wire), ("scorer", wire.evicting())):
            yield length, name, ours_of(one, text, torch.tensor(question))


def ours_of(wire, text: str, question: torch.Tensor) -> dict[str, float]:
    """The times of one wire."""
    from latentwire.lm import Greedy, Prompt

    lm = wire.lm
    compress, latents = seconds(lambda: wire.encode([text]))

    def generate(count: int) -> Any:
        prompt = Prompt.from_ids(lm, [question], wire.prefix(latents))
        return lm.generate(prompt, Greedy(), count, stop_ids=())

    first, _ = seconds(lambda: generate(1))
    every, _ = seconds(lambda: generate(TOKENS + 1))
    return {"compress": compress, "first": first, "token": (every - first) / TOKENS}


def texts(out: Path, prefix: list[int]) -> Iterator[tuple[int, list[int], list[int]]]:
    """The beginnings of a long text with the prompt's head, and a question."""
    passage = passages_of(out, READERS[0], CELLS["long"])[0]
    for length in LENGTHS:
        yield length, [*prefix, *passage["ids"][:length]], passage["questions"][0]["ids"]


@torch.no_grad()
def main() -> None:
    """Print one JSON line for each length and row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    torch.set_num_threads(1)
    package = "kvpress" if find_spec("kvpress") else "latentwire"
    base: dict[str, float] = {}
    for length, row, spent in (peers if package == "kvpress" else ours)(out):
        base = spent if row == TEXT else base
        ratios = {name: round(spent[name] / base[name], 3) for name in spent}
        milliseconds = {name: round(1000 * value, 2) for name, value in spent.items()}
        line = {"package": package, "tokens": length, "row": row, "ms": milliseconds}
        print(json.dumps({**line, "of_text": ratios}), flush=True)


if __name__ == "__main__":
    main()
