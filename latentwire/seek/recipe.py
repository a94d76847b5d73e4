"""The recipe of a run of seek: its task, reward, strategy and search."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from latentwire.lm import Dtype, FrozenLM
from latentwire.seek.found import Found
from latentwire.seek.region import Fraction, Section
from latentwire.seek.registry import RewardName, load_problems, source_of
from latentwire.seek.rewards.base import Reward
from latentwire.seek.search import Seek, SeekConfig
from latentwire.seek.thoughts import Thoughts, ThoughtsConfig
from latentwire.tasks.base import Problem, Task
from latentwire.tasks.maths import Form
from latentwire.texts import check_least


@dataclass(frozen=True)
class SeekRecipe:
    """A search over the problems of one task."""

    data: str = "gsm8k"
    """gsm8k, math500 or aime (from the hub), a FILE.jsonl with rows {"question", "answer"}, or
    arc:FILE_OR_FOLDER."""
    reward: RewardName = "self"
    """self: the model checks itself; exact: knows the gold answer, an oracle; program: runs the
    answer's program on ARC's training pairs; confidence: probabilities of the answer."""
    strategy: Literal["states", "thoughts"] = "states"
    """states: hidden states of the answer (LatentSeek); thoughts: soft tokens before it (LTPO)."""
    steps: int = 10
    """Steps of a search, at most."""
    k: float = 0.1
    """Share of the answer that is searched, from its start, 300 tokens at most."""
    section: str | None = None
    """Search the part of the answer that this pattern finds instead, its first group if it has
    one."""
    lr: float = 0.03
    """Step size on the states."""
    samples: int = 0
    """Sampled spans per step instead of the most probable one."""
    baseline: bool = False
    """Weigh samples by their advantage over the first answer."""
    compat: Literal["ours", "original"] = "ours"
    """original: the published code's behaviour, its last answer included."""
    form: Form = "boxed"
    """The form in which a maths problem asks for its answer: in \\boxed{} or as JSON."""
    max_new_tokens: int = 1024
    """Answer budget in tokens."""
    temperature: float = 0.7
    """Temperature of best-of-N's samples; the search itself starts greedily."""
    batch: int = 8
    """Problems searched together."""
    limit: int | None = None
    """Only the first so many problems."""
    seed: int = 0
    """Seed of everything sampled."""
    dtype: Dtype = "float32"
    """Number type of the model's weights; what is searched is float32."""

    def check(self) -> None:
        """Raises ValueError for fields that contradict each other, before any work. Not done when
        one is made, since the command line would wrap the message in a box."""
        self.search()
        check_least(self, batch=1, limit=1)
        if not self.temperature > 0:
            raise ValueError(
                f"temperature is {self.temperature}; expected more than 0 (of samples)"
            )
        if self.strategy == "thoughts":
            unused = ("k", "section", "lr", "samples", "baseline", "compat")
            if given := [f for f in unused if getattr(self, f) != getattr(SeekRecipe, f)]:
                raise ValueError(f"strategy thoughts has no {given[0]}; leave it out")
        arc = source_of(self.data)[0] == "arc"
        if (self.reward == "program" and not arc) or (self.reward == "exact" and arc):
            raise ValueError(
                f"reward {self.reward} with data {self.data}; expected program with arc:..., and "
                "exact with problems that have a gold answer"
            )

    def folder(self) -> Path:
        """The folder that a run is kept in where none is given."""
        return Path("runs") / f"seek-{Path(source_of(self.data)[1]).stem}-{self.reward}"

    def search(self) -> SeekConfig:
        """The search that this describes."""
        region = Section(self.section) if self.section else Fraction(self.k)
        return SeekConfig(
            region=region,
            steps=self.steps,
            lr=self.lr,
            max_new_tokens=self.max_new_tokens,
            samples=self.samples,
            baseline=self.baseline,
            compat=self.compat,
            seed=self.seed,
        )

    def searcher(self, lm: FrozenLM, reward: Reward) -> Callable[[Sequence[Problem]], list[Found]]:
        """The function that answers a batch of problems."""
        if self.strategy == "states":
            return Seek(lm, reward, self.search())
        return Thoughts(lm, reward, self.thoughts())

    def control(
        self, lm: FrozenLM, reward: Reward, found: Sequence[Found]
    ) -> Callable[[Sequence[Problem]], list[Found]]:
        """The same search with the sign of each update tossed, beside what the search `found`."""
        if self.strategy == "thoughts":
            return Thoughts(lm, reward, replace(self.thoughts(), update="random_sign"))
        # Half of its steps lead back to a span that was tried, at no cost: let it spend as much.
        most = max(f.tokens for f in found)
        tossed = replace(self.search(), update="random_sign", steps=4 * self.steps, tokens=most)
        return Seek(lm, reward, tossed)

    def thoughts(self) -> ThoughtsConfig:
        """The search of the second strategy."""
        return ThoughtsConfig(steps=self.steps, max_new_tokens=self.max_new_tokens, seed=self.seed)


def load_task(recipe: SeekRecipe) -> Task:
    """The problems of a recipe. Raises DataError as load_problems does."""
    return load_problems(recipe.data, recipe.limit, recipe.form)
