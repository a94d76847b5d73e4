"""One layer's attention for a decoded token, in microseconds of CPU time (one thread, least of
up to 60): Hugging Face over as many slots in every head (`slots`) and over the full text (`text`),
its growing cache included; ours over slots of single heads at 4x (`ours`), the same where all rows
ask about one text (`shared`), and as it was, padded again at every token (`padded`).

    OMP_NUM_THREADS=1 python reproduce/profile-attention.py | tee reproduce/profile-attention.txt
"""

import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from latentwire.lm import RaggedKV

READERS = {"smollm2-135m": (3, 9, 64), "gemma3-270m": (1, 4, 256)}
"""KV heads, query heads and the width of one."""
CASES = ((200, 1), (1000, 1), (4000, 1), (200, 16), (1000, 16))
RATIO, AFTER = 4, 40
"""Tokens to a slot; columns behind the slots: soft prompt, question, answer."""


def least(work: Callable[[], object], seconds: float = 0.25) -> float:
    work()
    times, end = [], time.process_time() + seconds
    while len(times) < 4 or (time.process_time() < end and len(times) < 60):
        began = time.process_time()
        work()
        times.append(time.process_time() - began)
    return 1e6 * min(times)


def uneven(rows: int, heads: int, slots: int, width: int) -> RaggedKV:
    """Slots of heads that compete: some keep many times what others do."""
    share = torch.rand(rows, heads, generator=torch.Generator().manual_seed(0)) ** 2 + 0.05
    lengths = (share / share.sum(1, keepdim=True) * heads * slots).long().clamp(1)
    n = int(lengths.sum())
    return RaggedKV(torch.randn(n, width), torch.randn(n, width), torch.zeros(n).long(), lengths)


def hugging_face(queries: Tensor, heads: int, columns: int) -> Callable[[], object]:
    rows, _, _, width = queries.shape
    keys, values = torch.randn(2, rows, heads, columns, width)
    new = torch.randn(rows, heads, 1, width)

    def work() -> Tensor:
        grown = (torch.cat([x, new], 2) for x in (keys, values))
        return scaled_dot_product_attention(queries, *grown, enable_gqa=True)

    return work


def padded(queries: Tensor, after: Tensor, slots: RaggedKV) -> Callable[[], object]:
    (rows, heads), width = slots.lengths.shape, slots.keys.shape[1]
    longest, group = int(slots.lengths.max()), queries.shape[1] // heads

    def wide(flat: Tensor, real: Tensor) -> Tensor:
        empty = flat.new_zeros(real.numel(), width)
        filled = empty.index_copy(0, real.flatten().nonzero()[:, 0], flat)
        return torch.cat([filled.view(rows, heads, longest, width), after], 2)

    def work() -> Tensor:
        real = torch.arange(longest) < slots.lengths[..., None]
        mask = torch.zeros(rows, heads, 1, longest).masked_fill(~real[:, :, None], -1e30)
        mask = torch.cat([mask, torch.zeros(rows, heads, 1, after.shape[2])], -1)
        mask = mask.expand(-1, -1, group, -1)
        grouped = queries.view(rows, heads, group, width)
        keys, values = wide(slots.keys, real), wide(slots.values, real)
        return scaled_dot_product_attention(grouped, keys, values, attn_mask=mask)

    return work


def main() -> None:
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    for name, (heads, query_heads, width) in READERS.items():
        for tokens, rows in CASES:
            slots = uneven(rows, heads, tokens // RATIO, width)
            one = uneven(1, heads, tokens // RATIO, width).rows(torch.zeros(rows).long())
            queries, after = torch.randn(rows, query_heads, 1, width), torch.randn(1, 1, 1, width)
            after = after.expand(rows, heads, AFTER, width).contiguous()
            works = {
                "slots": hugging_face(queries, heads, tokens // RATIO + AFTER),
                "text": hugging_face(queries, heads, tokens + AFTER),
                "ours": lambda s=slots, q=queries, a=after: s.attend(q, a, a, None),
                "shared": lambda s=one, q=queries, a=after: s.attend(q, a, a, None),
                "padded": padded(queries, after, slots),
            }
            times = " ".join(f"{case} {least(work):.0f}" for case, work in works.items())
            print(f"{name} {tokens} tokens x {rows} rows: {times}", flush=True)


if __name__ == "__main__":
    main()
