"""Answers the page's lens tab: the tokens of a sentence, and what a lens says of one of them."""

from __future__ import annotations

from threading import Lock
from typing import Any

from latentwire.lens.explain import explain_text, tokens_of
from latentwire.lens.interventions import edited
from latentwire.lens.lens import Lens


class Looking:
    """A lens that is loaded when it is first asked, with an LM of its own: its adapters stay off
    the models that decode."""

    def __init__(self, name: str):
        self.name, self._lens, self._lock = name, None, Lock()

    def look(self, text: str, token: int | None, words: str | None) -> dict[str, Any]:
        """The pieces of a text, or its explanation at one token, or what the model says next with
        other words there. Raises LensError for a token that it does not have."""
        lens = self._loaded()
        whole = tokens_of(lens.lm, text)
        first, bos = min(whole.usable) - whole.bos if whole.usable else 0, whole.bos
        if token is None:
            own = whole.ids[bos:].tolist()
            return {"tokens": [lens.lm.spelled([i]) for i in own], "first": first}
        if words is not None:
            before, after = edited(lens, whole, bos + token, words)
            return {"before": before, "after": after}
        (row,) = explain_text(lens, text, [token])
        best = row.explanations[0]
        before, after = edited(lens, whole, bos + token, best.text)
        said = {"explanation": best.text, "explained": 1 - best.error, "kl": row.kl}
        return {**said, "before": before, "after": after}

    def _loaded(self) -> Lens:
        with self._lock:
            if self._lens is None:
                self._lens = Lens.from_pretrained(self.name)
            return self._lens
