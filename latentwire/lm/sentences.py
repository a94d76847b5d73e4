"""A frozen sentence encoder: BERT and its kind, of which a sentence's vector is the mean.

sentences = SentenceEncoder.from_pretrained("all-minilm-l6-v2")
sentences.vectors(["Name a river."])
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import AutoModel

from latentwire.lm.loading import load_model
from latentwire.lm.prompt import pad_right
from latentwire.lm.tokenizer import TOKENIZING
from latentwire.lm.turns import LOADING
from latentwire.lm.zoo import ZooError, locate
from latentwire.reading import check_unicode
from latentwire.texts import check_texts


class SentenceEncoder:
    """A bidirectional encoder whose weights never change and never get gradients."""

    def __init__(self, model: Any, tokenizer: Any, name: str):
        self.model, self.tokenizer, self.name = model.eval().requires_grad_(False), tokenizer, name
        if None in (tokenizer.cls_token_id, tokenizer.sep_token_id):
            raise ZooError(
                f"{name}'s tokenizer has no [CLS] and [SEP]; expected a sentence encoder of BERT's "
                "kind, as all-minilm-l6-v2"
            )

    @classmethod
    def from_pretrained(cls, name: str, device: torch.device | str = "cpu") -> SentenceEncoder:
        """Load a zoo name, a Hugging Face id or a local folder in float32, fetching it where
        needed."""
        with LOADING:
            model, tokenizer = load_model(
                locate(name), AutoModel, "a sentence encoder", torch.float32
            )
        return cls(model.to(device), tokenizer, name)

    @property
    def width(self) -> int:
        return self.model.config.hidden_size

    @property
    def room(self) -> int:
        """Most ids of a window: the model's positions without those of [CLS] and [SEP]."""
        most = self.model.config.max_position_embeddings
        return min(most, self.tokenizer.model_max_length) - 2

    @property
    def architecture(self) -> str:
        """Family and sizes: what two copies of one model share."""
        config = self.model.config
        sizes = f"{config.num_hidden_layers}x{config.hidden_size}-v{config.vocab_size}"
        return f"{config.model_type}-{sizes}"

    @property
    def fingerprint(self) -> str:
        """Digest of the weights, without a pooler's: it is not used, and random where a file has
        none."""
        digest = hashlib.sha256()
        for name, weight in self.model.named_parameters():
            if not name.startswith("pooler."):
                stored = weight.detach().to("cpu", torch.bfloat16)
                digest.update(stored.view(torch.int16).numpy().tobytes())
        return digest.hexdigest()[:16]

    def tokenize(self, text: str) -> Int[Tensor, " n"]:
        """Ids of a text without [CLS] and [SEP]; either that the text spells out is words like
        others. WordPiece folds case and accents, leaves out control characters and has one id for
        all that it does not know. Raises ValueError for half of a surrogate pair."""
        check_unicode(text)
        options = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}
        with TOKENIZING:
            ids = self.tokenizer(text, **options).input_ids
        return torch.tensor(ids, dtype=torch.long, device=self.model.device)

    @torch.no_grad()
    def states(self, windows: Sequence[Int[Tensor, " _"]]) -> list[Float[Tensor, "_ d"]]:
        """States after the last layer of [CLS], each window's ids and [SEP]: n + 2 of n ids."""
        begin, end = (
            torch.tensor([i], device=self.model.device)
            for i in (self.tokenizer.cls_token_id, self.tokenizer.sep_token_id)
        )
        ids, mask = pad_right([torch.cat([begin, window, end]) for window in windows])
        states = self.model(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        return [row[: len(w) + 2] for row, w in zip(states, windows, strict=True)]

    def vectors(self, texts: Sequence[str]) -> Float[Tensor, "b d"]:
        """The mean state of each text, at norm 1 (Reimers and Gurevych 2019, arXiv 1908.10084); of
        a text longer than `room`, over all its windows."""
        check_texts(texts, "texts")
        cut = [self.tokenize(text).split(self.room) for text in texts]
        made = iter(self.states([window for windows in cut for window in windows]))
        means = [torch.cat([next(made) for _ in windows]).mean(0) for windows in cut]
        return torch.nn.functional.normalize(torch.stack(means), dim=-1)
