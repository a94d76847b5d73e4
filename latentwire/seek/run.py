"""A run of seek: every problem searched, and beside it the controls that a claim needs.

    latentwire seek smollm2-135m --data gsm8k --reward exact --limit 100 --run runs/gsm8k-exact

Arms, all with the same model, prompt, answer budget and reward:

- greedy: the first answer.
- seek: the search.
- random_sign: the search with the sign of each update tossed, until a problem has spent what a
  whole search spends or has taken four times its steps; a gain that this has too comes from trying
  other answers, not from where the reward points.
- best_of_n: the greedy answer and samples, the best by the same reward, stopping where the search
  would stop; a batch draws until it has spent as many tokens as the search.
- pass_at_k: whether any of those is right, which no reward but an oracle can know; under `exact`
  the same as best_of_n.

The first answers are also rated a second time without any update ("reroll"): a reward that changes
its mind would raise scores by being asked again.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from latentwire.files import digest, first_of, owned, write_whole
from latentwire.lm import Dtype, FrozenLM, seed_of
from latentwire.lm.identity import basis, identity
from latentwire.runs.folder import append, digests, open_run, rewrite
from latentwire.runs.workers import Executor, run_local
from latentwire.seek.answers import Answers, prompt_ids
from latentwire.seek.region import Fraction, Section
from latentwire.seek.registry import REWARDS, RewardName, load_problems, source_of
from latentwire.seek.rewards.base import Attempt, Reward, attempt_of, rate
from latentwire.seek.search import (
    Found,
    Seek,
    SeekConfig,
    Step,
    best_of,
    threshold_of,
    value_of,
)
from latentwire.seek.summary import rights_of, summary_of
from latentwire.seek.thoughts import Thoughts, ThoughtsConfig
from latentwire.tasks.base import Grade, Problem, Task, check_ids
from latentwire.tasks.maths import Form
from latentwire.terminal import terminal


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
    k: float = 0.2
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
    """How a maths problem asks for its answer: in \\boxed{} or as JSON."""
    max_new_tokens: int = 1024
    """Answer budget in tokens."""
    temperature: float = 0.7
    """Of best-of-N's samples; the search itself starts greedily."""
    batch: int = 8
    """Problems searched together."""
    limit: int | None = None
    """Only the first so many problems."""
    seed: int = 0
    """Of everything sampled."""
    dtype: Dtype = "float32"
    """Of the model's weights; what is searched is float32."""

    def check(self) -> None:
        """Raises ValueError for fields that contradict each other, before any work. Not done when
        one is made, since the command line would wrap the message in a box."""
        self.search()
        if self.batch < 1 or (self.limit is not None and self.limit < 1):
            raise ValueError(f"batch {self.batch}, limit {self.limit}; expected at least 1")
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
        """Where a run is kept unless it is told."""
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
        """What answers a batch of problems."""
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


def run_seek(
    lm: FrozenLM,
    recipe: SeekRecipe,
    out: Path | None = None,
    task: Task | None = None,
    executor: Executor | None = None,
) -> dict[str, Any]:
    """Search all problems under all arms; the whole result as one dict.

    task: the recipe's, if it is loaded already. executor: who searches, workers that load this LM,
    or this process if None.
    out: a run folder that gets config.json and predictions.jsonl, one record a problem, batch by
    batch, so that an interrupted run goes on. Raises ValueError for a folder of another run, or
    of another process.
    """
    recipe.check()
    task = task or load_task(recipe)
    problems = task.problems
    check_ids((p.id for p in problems), "problems", task.name)
    known = digest(repr(problems))
    setting = {"kind": "seek", "model": lm.name, "task": task.name, "problems": known}
    setting |= {**asdict(recipe), "data": Path(recipe.data).name}
    with owned(out):
        records = [] if out is None else _resumed(out, setting, lm, problems, recipe)
        with _progress() as progress:
            bar = progress.add_task("", total=len(problems), completed=len(records), said="")
            starts = range(len(records), len(problems), recipe.batch)
            parts = [problems[start : start + recipe.batch] for start in starts]
            # Workers load the task themselves: what grades an answer cannot be sent.
            work = partial(_searching, recipe=recipe, task=None if executor else task)
            for batch in (executor or run_local(lm))(work, parts):
                records += batch
                if out is not None:
                    append(out, batch)
                progress.update(bar, advance=len(batch), said=_said(records))
        about = {key: setting[key] for key in ("kind", "model", "task", "reward")}
        result = {**about, **summary_of(records, recipe.compat == "original"), "config": setting}
        if out is not None:
            write_whole(out / "results.json", json.dumps(result, indent=1))
        return result


def _resumed(
    out: Path,
    setting: dict[str, Any],
    lm: FrozenLM,
    problems: Sequence[Problem],
    recipe: SeekRecipe,
) -> list[dict[str, Any]]:
    """Keep what an earlier session left, each problem once: whole batches, since best of N shares
    a batch's tokens."""
    files = list(digests(source_of(recipe.data)[1]).values())
    records = open_run(out, {**setting, "files": files, **basis({"model": identity(lm)})})
    known = first_of(records, lambda record: record["id"])
    kept = [known[p.id] for p in takewhile(lambda p: p.id in known, problems)]
    if len(kept) < len(problems):
        kept = kept[: len(kept) // recipe.batch * recipe.batch]
    rewrite(out, kept)
    return kept


def seek_prompt(lm: FrozenLM, recipe: SeekRecipe, prompt: str) -> Found:
    """Search the answer to one prompt. Raises ValueError for a reward that a prompt alone cannot
    have."""
    recipe.check()
    if recipe.reward in ("exact", "program"):
        raise ValueError(f"reward {recipe.reward} needs a problem's answer; a prompt has none")
    reward = REWARDS[recipe.reward](
        lm, Task("prompt", (), lambda problem, text, finished=True: False)
    )
    return recipe.searcher(lm, reward)([Problem("prompt", prompt, prompt)])[0]


def _progress() -> Progress:
    return Progress(
        TextColumn("searching"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[said]}", markup=False),
        console=terminal(stderr=True),
    )


def _said(records: Sequence[dict]) -> str:
    """Live accuracies and tokens, for the progress line."""
    n = len(records)
    right = {name: sum(rights_of(r)[name] for r in records) / n for name in ("greedy", "seek")}
    tokens = sum(step["tokens"] for r in records for step in r["arms"]["seek"]["trace"])
    return f"greedy {right['greedy']:.1%}, seek {right['seek']:.1%}, {tokens / n:,.0f} tokens each"


def load_lm(name: str, dtype: Dtype) -> FrozenLM:
    """What a worker begins with."""
    return FrozenLM.from_pretrained(name, dtype)


def _searching(
    lm: FrozenLM, recipe: SeekRecipe, task: Task | None
) -> Callable[[Sequence[Problem]], list[dict[str, Any]]]:
    """What searches a batch of the recipe's problems; task: the recipe's, if it is loaded."""
    return partial(_batch, lm, recipe, task or load_task(recipe))


def _batch(
    lm: FrozenLM, recipe: SeekRecipe, task: Task, problems: Sequence[Problem]
) -> list[dict[str, Any]]:
    """Records of a batch of problems under all arms."""
    reward = REWARDS[recipe.reward](lm, task)
    found = recipe.searcher(lm, reward)(problems)
    arms = {
        "seek": found,
        "random_sign": recipe.control(lm, reward, found)(problems),
        "best_of_n": best_of_n(lm, reward, recipe, found),
    }
    again = _reroll(reward, found)
    return [
        {
            "id": problem.id,
            "question": problem.question,
            "gold": problem.gold,
            "reroll": {"first": _first(found[i]), "again": again[i]},
            "arms": {name: _record(row[i], task.grade) for name, row in arms.items()},
        }
        for i, problem in enumerate(problems)
    ]


def _record(found: Found, grade: Grade) -> dict[str, Any]:
    rights = [grade(found.problem, s.text, s.finished) for s in found.trace]
    given = next((i for i, s in enumerate(found.trace) if s.text == found.text), None)
    return {
        "text": found.text,
        "right": given is not None and rights[given],
        "reward": found.reward,
        "span": found.span,
        "note": found.note,
        "failure": found.failure,
        "trace": [
            {**asdict(s), "right": right} for s, right in zip(found.trace, rights, strict=True)
        ],
    }


def _first(found: Found) -> float | None:
    return found.trace[0].reward if found.trace else None


def _reroll(reward: Reward, found: Sequence[Found]) -> list[float | None]:
    """The first answers' rewards, asked for once more."""
    rated = [i for i, f in enumerate(found) if _first(f) is not None]
    attempts = [_first_attempt(found[i]) for i in rated]
    again = {i: r for i, r in zip(rated, rate(reward, attempts), strict=True) if not r.failure}
    return [again[i].value if i in again else None for i in range(len(found))]


def _first_attempt(found: Found) -> Attempt:
    return Attempt(found.problem, found.ids[0], found.trace[0].text, found.trace[0].finished)


def best_of_n(
    lm: FrozenLM, reward: Reward, recipe: SeekRecipe, searched: Sequence[Found]
) -> list[Found]:
    """The same problems answered by samples, until the batch has spent what its search spent.

    A problem begins with its greedy answer and stops drawing above the search's threshold. The
    answer given is the first of those with the highest reward.
    """
    threshold = threshold_of(reward)
    drawn = {i: list(f.trace[:1]) for i, f in enumerate(searched)}
    going = [i for i, f in enumerate(searched) if _first(f) is not None]
    if not going:
        return list(searched)
    answers = Answers(lm, [prompt_ids(lm, searched[i].problem) for i in going], recipe.temperature)
    row = {i: place for place, i in enumerate(going)}
    left = sum(f.tokens for f in searched) - sum(
        s.tokens for steps in drawn.values() for s in steps
    )
    while left > 0:
        live = [i for i in going if max(map(value_of, drawn[i])) <= threshold]
        if not live:
            break
        # Those with the fewest answers first; in the last round only as many as tokens are left.
        live.sort(key=lambda i: len(drawn[i]))
        typical = statistics.fmean(s.tokens for i in live for s in drawn[i])
        live = live[: math.ceil(left / typical)]
        seeds = [seed_of(recipe.seed, searched[i].problem.id, "n", len(drawn[i])) for i in live]
        nothing, budgets = [answers.nothing] * len(live), [recipe.max_new_tokens] * len(live)
        ids = answers.finish([row[i] for i in live], nothing, budgets, seeds)
        attempts = [
            attempt_of(lm, searched[i].problem, new) for i, new in zip(live, ids, strict=True)
        ]
        for i, attempt, rating in zip(live, attempts, rate(reward, attempts), strict=True):
            cost = len(attempt.ids) + rating.tokens
            left -= cost
            value = None if rating.failure else rating.value
            step = Step(
                len(drawn[i]), value, rating.parts, 0, attempt.text, attempt.finished, 0.0, cost
            )
            drawn[i].append(step)
    return [_best(searched[i], drawn[i]) for i in range(len(searched))]


def _best(searched: Found, drawn: Sequence[Step]) -> Found:
    best = best_of(drawn)
    return (
        searched if best is None else Found(searched.problem, best.text, best.reward, tuple(drawn))
    )
