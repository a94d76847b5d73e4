"""Between texts and token ids: a tokenizer and its chat template, as a base of FrozenLM."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from threading import RLock
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from latentwire.lm.prompt import ChatFrame
from latentwire.reading import check_unicode

REMEMBERED, CHARACTERS = 50_000, 1 << 26
"""Texts whose ids are kept, and most characters of them all."""
DATE = "26 Jul 2024"
"""The date that Llama's chat templates get if they cannot tell today's: slots must be read tomorrow
behind the head that they were made behind today."""
TOKENIZING = RLock()
"""Held by whoever uses a tokenizer, also to decode: it is one for all threads, and is set anew for
each text, which fails while another thread reads it."""


class TokenizerMixin:
    """The part of a model that has to do with text alone."""

    def __init__(self, model: Any, tokenizer: Any, name: str):
        self.model, self.tokenizer, self.name = model, tokenizer, name
        self._known: dict[str, Tensor] = {}
        self._characters = 0

    @property
    def device(self) -> torch.device:
        return self.model.device

    def tokenize(self, text: str, remember: bool = True) -> Int[Tensor, " n"]:
        """Token ids of a piece of text: no special token is added, and one that the text spells out
        ("<|im_end|>") is words like others. Raises ValueError for half of a surrogate pair, which
        JSON can spell and no encoding can write.

        Ids of texts seen before are remembered, since one text is asked for again and again.
        remember: false for one that is not.
        """
        if (known := self._known.get(text)) is not None:
            return known
        check_unicode(text)
        with TOKENIZING:
            made = self._tokenize(text, split_special_tokens=True)
            if not remember:
                return made
            if len(self._known) >= REMEMBERED or self._characters > CHARACTERS:
                self._known.clear()
                self._characters = 0
            self._characters += len(text)
            return self._known.setdefault(text, made)

    def offsets(self, text: str) -> Int[Tensor, "n 2"]:
        """The characters that each token of `ids(text)` stands for: where they begin, and where
        they end. Raises ValueError where the tokenizer is not a fast one, which alone knows."""
        if not self.tokenizer.is_fast:
            raise ValueError(f"{self.name}'s tokenizer gives no offsets; expected a fast one")
        with TOKENIZING:
            offsets = self.tokenizer(
                text,
                add_special_tokens=False,
                verbose=False,
                split_special_tokens=True,
                return_offsets_mapping=True,
            ).offset_mapping
        return torch.tensor(offsets, dtype=torch.long, device=self.device).view(-1, 2)

    def detokenize(self, ids: Int[Tensor, " n"]) -> str:
        """The text of token ids, special tokens left out."""
        with TOKENIZING:
            return self.tokenizer.decode(ids.tolist(), skip_special_tokens=True)

    def spelled(self, ids: Int[Tensor, " n"] | Sequence[int]) -> str:
        """All that token ids stand for: special tokens too, and spaces as they are."""
        ids = ids.tolist() if isinstance(ids, Tensor) else list(ids)
        with TOKENIZING:
            return self.tokenizer.decode(ids, clean_up_tokenization_spaces=False)

    @cached_property
    def bos(self) -> Int[Tensor, " n"]:
        """The ids that the tokenizer puts before a text: one BOS id, or none."""
        with TOKENIZING:
            with_special = self.tokenizer("a").input_ids
        begins = with_special[:1] == [self.tokenizer.bos_token_id]
        return torch.tensor(with_special[:1] if begins else [], dtype=torch.long).to(self.device)

    @cached_property
    def frame(self) -> ChatFrame:
        """The ids around a user's words: of the chat template, or for a base model BOS before
        (whatever its tokenizer does, since a first token takes the attention that is left over)
        and an "Answer:" cue after."""
        tokenizer = self.tokenizer
        if tokenizer.chat_template is None:
            first = tokenizer.bos_token_id
            head = torch.tensor([tokenizer.eos_token_id if first is None else first])
            return ChatFrame(head.to(self.device), self.tokenize("\nAnswer:"), answer_prefix=" ")
        marker = "\u241fuser\u241f"
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": marker}],
            tokenize=False,
            add_generation_prompt=True,
            date_string=DATE,
            enable_thinking=False,  # of templates that have it, Qwen3's: an answer is what follows
        )
        if text.count(marker) != 1:
            raise ValueError(
                f"{self.name}'s chat template says a user's words {text.count(marker)} times; "
                "expected once"
            )
        head, tail = text.split(marker)
        return ChatFrame(self._tokenize(head), self._tokenize(tail))

    @cached_property
    def next_turn(self) -> Int[Tensor, " n"]:
        """The ids between an answer and the user's next words, as the chat template has them; for a
        base model an empty line."""
        if self.tokenizer.chat_template is None:
            return self.tokenize("\n\n")
        roles = {"user": "\u241fuser\u241f", "assistant": "\u241fassistant\u241f"}
        turns = [{"role": role, "content": marker} for role, marker in roles.items()]
        text = self.tokenizer.apply_chat_template(
            [*turns, {"role": "user", "content": "\u241fnext\u241f"}],
            tokenize=False,
            date_string=DATE,
            enable_thinking=False,
        )
        return self._tokenize(text.partition(roles["assistant"])[2].partition("\u241fnext")[0])

    @cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """Ids that end an answer; the first is the one that is trained and scored as EOS."""
        generation = self.model.generation_config
        eos = generation.eos_token_id if generation else None
        listed = eos if isinstance(eos, list) else [eos]
        ids = [self.tokenizer.eos_token_id, *listed]
        return tuple(dict.fromkeys(i for i in ids if i is not None))

    def _tokenize(self, text: str, **options: bool) -> Int[Tensor, " n"]:
        with TOKENIZING:
            ids = self.tokenizer(text, add_special_tokens=False, verbose=False, **options).input_ids
        return torch.tensor(ids, dtype=torch.long, device=self.device)

    def _texts(self, ids: Tensor, mask: Tensor, stops: Sequence[int]) -> list[str]:
        kept = [
            [i for i, real in zip(row, reals, strict=True) if real and i not in stops]
            for row, reals in zip(ids.tolist(), mask.tolist(), strict=True)
        ]
        with TOKENIZING:
            return self.tokenizer.batch_decode(kept, skip_special_tokens=True)
