"""A lossless code for text: the ranks that a frozen LM gives the tokens, a sixth of UTF-8.

Sender and receiver run the same LM over the tokens so far. The sender writes the rank of the next
token among the logits, which is small where the LM predicts well; the receiver takes the token of
that rank. (With arithmetic coding in place of ranks: Deletang et al. 2023, arXiv 2309.10668.)

Two machines do not agree on a logit to the last bit. So a rank is only written where it would be
the same if every logit moved a little; elsewhere the token's id is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock

import torch
from jaxtyping import Float, Int
from torch import Tensor

from latentwire.lm import FrozenLM, Prompt
from latentwire.lm.samplers import Choice
from latentwire.wire.folder import WireError
from latentwire.wire.message import MessageError

CHUNK = 256
"""Tokens that are predicted from one another; each chunk of a text begins anew."""
MARGIN = 2e-5
"""Share of its position's largest logit by which a token's logit must differ from all others for
its rank to be certain: about 5e-4 for smollm2-135m, whose cached and uncached float32 passes differ
by an eighth of that. The sender's business alone: a receiver takes what is written."""
BATCH = 32
"""Chunks that are decoded together: 0.4 GB of cache for smollm2-135m, however many there are."""
LENGTHS = (1, 3, 4, 4, 4, 5, 5, 5, 6, 7, 8, 9, 9, 4)
"""Bits of the prefix code of each class: class c holds the 2**c ranks from 2**c - 1 on, the last
class is an id. Huffman's code of their shares in 60 passages of SQuAD's training set."""
ID = len(LENGTHS) - 1


def prefix_codes(lengths: Sequence[int]) -> list[str]:
    """The canonical prefix code of given lengths, as strings of 0 and 1 (RFC 1951, 3.2.2)."""
    codes = [""] * len(lengths)
    code, before = 0, 0
    for length, symbol in sorted((n, i) for i, n in enumerate(lengths)):
        code <<= length - before
        codes[symbol], before = f"{code:0{length}b}", length
        code += 1
    return codes


CODES = prefix_codes(LENGTHS)
CLASSES = {code: symbol for symbol, code in enumerate(CODES)}


@dataclass(frozen=True)
class Symbol:
    """One token: its rank, from 0, or its id."""

    value: int
    is_id: bool = False


class TextCode:
    """The code of one LM, which must run in float32 (or finer) on both sides."""

    def __init__(self, lm: FrozenLM):
        if lm.dtype not in (torch.float32, torch.float64):
            raise WireError(f"{lm.name} is loaded in {lm.dtype}; its code needs torch.float32")
        if not lm.stop_ids or lm.context_length <= CHUNK:
            raise WireError(
                f"{lm.name} cannot code text: expected an end-of-text token and a window above "
                f"{CHUNK} positions, it has {lm.context_length}"
            )
        self.lm = lm
        self.vocabulary = lm.model.config.vocab_size
        self.id_bits = (self.vocabulary - 1).bit_length()

    @torch.no_grad()
    def encode(self, text: str) -> tuple[int, bytes]:
        """The number of tokens of a text, and their code. Raises WireError for an empty text, or
        one that the tokenizer does not give back to the letter."""
        if not text:
            raise WireError("the text is empty; expected at least one character")
        ids = self.lm.tokenize(text)
        if len(ids) == 0 or int(ids.max()) >= self.vocabulary or self.lm.spelled(ids) != text:
            raise WireError(
                f"{self.lm.name}'s tokenizer does not give the text back to the letter; take "
                "another source"
            )
        bits = []
        for chunk in ids.split(CHUNK):
            with _full_precision(self.lm.device.type):
                logits = self.lm.logits(self._begin(1), chunk[None])[0]
            bits += map(self._spelled, chunk.tolist(), certain_ranks(logits, chunk))
        return len(ids), _packed("".join(bits))

    @torch.no_grad()
    def decode(self, coded: Sequence[tuple[int, bytes]]) -> list[str]:
        """The texts of codes. Raises MessageError for a code of another length than its tokens
        need, or of tokens that the LM has not."""
        chunks: list[tuple[int, list[Symbol]]] = []
        for row, (tokens, data) in enumerate(coded):
            read = self._symbols(tokens, data)
            chunks += [(row, read[i : i + CHUNK]) for i in range(0, tokens, CHUNK)]
        # Those of a batch wait for its longest; the short end of a text stays behind the rest.
        chunks.sort(key=lambda chunk: -len(chunk[1]))
        ids: list[list[Tensor]] = [[] for _ in coded]
        for start in range(0, len(chunks), BATCH):
            rows, said = zip(*chunks[start : start + BATCH], strict=True)
            with _full_precision(self.lm.device.type):
                out = self.lm.generate(
                    self._begin(len(said)), _Said(said), [len(s) for s in said], stop_ids=()
                )
            for row, made, mask in zip(rows, out.ids, out.mask, strict=True):
                ids[row].append(made[mask])
        return [self.lm.spelled(torch.cat(parts)) for parts in ids]

    def _begin(self, rows: int) -> Prompt:
        start = torch.tensor(self.lm.stop_ids[:1], device=self.lm.device)
        return Prompt.from_ids(self.lm, [start] * rows)

    def _spelled(self, token: int, rank: int | None) -> str:
        """The shorter of what a token may be written as."""
        by_id = f"{CODES[ID]}{token:0{self.id_bits}b}"
        if rank is None or (kind := (rank + 1).bit_length() - 1) >= ID:
            return by_id
        by_rank = CODES[kind] + f"{rank + 1:b}"[1:]  # its first digit is 1: the class tells it
        return min(by_rank, by_id, key=len)

    def _symbols(self, tokens: int, data: bytes) -> list[Symbol]:
        if tokens < 1:
            raise MessageError(f"the text's code is of {tokens} tokens; expected at least one")
        bits = "".join(f"{byte:08b}" for byte in data)
        read, place = [], 0
        for _ in range(tokens):
            end = place + 1
            while (kind := CLASSES.get(bits[place:end])) is None and end < len(bits):
                end += 1
            width = self.id_bits if kind == ID else kind
            if width is None or end + width > len(bits):
                raise MessageError(f"the text's code ends after {len(read)} of {tokens} tokens")
            place = end + width
            if kind == ID:
                read.append(Symbol(int(bits[end:place], 2), is_id=True))
            else:
                read.append(Symbol(int("1" + bits[end:place], 2) - 1))
            if read[-1].value >= self.vocabulary:
                raise MessageError(f"the text's code names a token that {self.lm.name} has not")
        if len(bits) - place > 7 or "1" in bits[place:]:
            raise MessageError(f"the text's code goes on after its {tokens} tokens")
        return read


def certain_ranks(logits: Float[Tensor, "n v"], targets: Int[Tensor, " n"]) -> Iterator[int | None]:
    """The number of logits above each target's; None where another is too close to tell."""
    own = logits.gather(1, targets[:, None])
    margin = MARGIN * logits.abs().amax(1, keepdim=True)
    above = (logits > own).sum(1)
    close = ((logits - own).abs() <= margin).sum(1)
    for rank, near in zip(above.tolist(), close.tolist(), strict=True):
        yield rank if near == 1 else None


@dataclass(frozen=True)
class _Said:
    """A sampler that follows symbols, one list for each row."""

    rows: Sequence[Sequence[Symbol]]
    temperature: float = 1.0

    def __call__(self, logits: Float[Tensor, "b v"], step: int) -> Choice:
        ids = [
            _token(said[step], row) if step < len(said) else 0
            for said, row in zip(self.rows, logits, strict=True)
        ]
        return Choice(torch.tensor(ids, device=logits.device))


def _token(symbol: Symbol, logits: Float[Tensor, " v"]) -> int:
    if symbol.is_id:
        return symbol.value
    return int(logits.kthvalue(len(logits) - symbol.value).indices)


def _packed(bits: str) -> bytes:
    """A string of 0 and 1 as bytes, the highest bit first, 0 to the end of the last byte."""
    size = -(-len(bits) // 8)
    return int(bits.ljust(8 * size, "0") or "0", 2).to_bytes(size, "big")


class _FullPrecision:
    """Contexts without TF32 and autocast, which round more than MARGIN allows. The setting is one
    for all threads: the first to enter makes it, and the last to leave takes it back."""

    def __init__(self) -> None:
        self._lock, self._inside, self._before = Lock(), 0, list[str]()

    @contextmanager
    def __call__(self, device: str) -> Iterator[None]:
        backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # pyright: ignore
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                self._before = [b.fp32_precision for b in backends]
                for b in backends:
                    b.fp32_precision = "ieee"
        try:
            with torch.autocast(device, enabled=False):
                yield
        finally:
            with self._lock:
                self._inside -= 1
                if self._inside == 0:
                    for b, precision in zip(backends, self._before, strict=True):
                        b.fp32_precision = precision


_full_precision = _FullPrecision()
