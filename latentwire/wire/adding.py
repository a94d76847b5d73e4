"""Adding a reader to a wire of any kind: its recipe, its training, and what it loses."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from latentwire.lm import Dtype
from latentwire.train.settings import Session
from latentwire.wire.codes.config import HIDDEN, CodeRecipe
from latentwire.wire.codes.training import add_code_reader
from latentwire.wire.codes.wire import CodeWire
from latentwire.wire.folder import WireError
from latentwire.wire.joint import held_out, lost
from latentwire.wire.learned.config import SharedRecipe
from latentwire.wire.learned.shared_wire import SharedWire
from latentwire.wire.learned.training import add_reader as add_shared_reader
from latentwire.wire.load import AnyWire, load_wire
from latentwire.wire.text_wire import TextWire
from latentwire.wire.training import WireRecipe, add_text_reader
from latentwire.wire.wire import Wire


@dataclass
class Addition:
    """One more reader of a wire. None stands for what a wire of its kind is trained with.

    Raises WireError for a wire that is none.
    """

    wire: str
    model: str
    data: str
    run: Path | None = None
    steps: int | None = None
    """Steps of the adapter; 0 leaves a decoder of latent codes at its closed form."""
    format_steps: int | None = None
    batch_size: int | None = None
    dtype: Dtype | None = None
    loaded: AnyWire = field(init=False)

    def __post_init__(self) -> None:
        self.loaded = load_wire(self.wire)

    def train(self, session: Session) -> Path:
        """Train it; the run folder."""
        loaded, name = self.loaded, f"added-{Path(self.model).name}"
        if isinstance(loaded, SharedWire):
            if self.dtype not in (None, loaded.config.dtype):
                raise WireError(
                    f"--dtype is {self.dtype}; readers of this wire have {loaded.config.dtype}"
                )
            shared = SharedRecipe(name, loaded.config, data=(self.data,), out=self.run)
            return add_shared_reader(loaded, self.model, self._given(shared, "train"), session)
        if isinstance(loaded, CodeWire):
            parts = (loaded.code.config, (self.model,), (HIDDEN,), self.data, self.run)
            codes = CodeRecipe(name, *parts, dtype=self.dtype or "bfloat16")
            if self.steps == 0:  # the closed form alone
                codes = replace(codes, attention=replace(codes.attention, steps=0))
            return add_code_reader(loaded, self._given(codes, "answers"), session)
        own = loaded.readers[0].config
        config = replace(own, reader=self.model, dtype=self.dtype or own.dtype)
        ratios = (config.ratio, 2 * config.ratio, 4 * config.ratio)  # as the shipped wires have
        recipe = WireRecipe(name, config, data=self.data, out=self.run, ratios=ratios)
        return add_text_reader(loaded, self._given(recipe, "slots"), session)

    def _given(self, recipe: Any, adapter: str) -> Any:
        """The recipe with the numbers that are given. adapter: the stage of the adapter."""
        for stage, steps in ((adapter, self.steps), ("format", self.format_steps)):
            if steps is not None:
                recipe = replace(recipe, **{stage: replace(getattr(recipe, stage), steps=steps)})
        rows = self.batch_size
        return recipe if rows is None else replace(recipe, batch_size=rows)

    def place(self, folder: Path) -> Path:
        """The wire with all readers, of a run folder."""
        return folder / ("text-wire" if isinstance(self.loaded, Wire | TextWire) else "wire")

    def losses(self, folder: Path) -> list[str]:
        """Sentences on what each reader of the new wire loses by latents."""
        readers = load_wire(self.place(folder)).readers
        return lost(readers, self.model, held_out(self.data, readers))
