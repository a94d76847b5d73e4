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
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from latentwire.files import digest, first_of, owned, write_whole
from latentwire.lm import Dtype, FrozenLM
from latentwire.lm.identity import basis, identity
from latentwire.runs.folder import append, digests, open_run, rewrite
from latentwire.runs.workers import Executor, run_local
from latentwire.seek.found import Found
from latentwire.seek.recipe import SeekRecipe, load_task
from latentwire.seek.registry import REWARDS, source_of
from latentwire.seek.rewards.base import Attempt, Reward, rate
from latentwire.seek.samples import best_of_n
from latentwire.seek.summary import rights_of, summary_of
from latentwire.tasks.base import Grade, Problem, Task, check_ids
from latentwire.terminal import terminal


def run_seek(
    lm: FrozenLM,
    recipe: SeekRecipe,
    out: Path | None = None,
    task: Task | None = None,
    executor: Executor | None = None,
    reward: Reward | None = None,
) -> dict[str, Any]:
    """Search all problems under all arms; the whole result as one dict.

    task: the recipe's, if it is loaded already, or problems of your own. executor: who searches,
    workers that load this LM, or this process if None. reward: one of your own in place of the
    recipe's, which results name by its class; not with an executor.
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
    if reward is not None:
        setting["reward"] = type(reward).__name__
    with owned(out):
        records = [] if out is None else _resumed(out, setting, lm, problems, recipe)
        with _progress() as progress:
            bar = progress.add_task("", total=len(problems), completed=len(records), said="")
            starts = range(len(records), len(problems), recipe.batch)
            parts = [problems[start : start + recipe.batch] for start in starts]
            # Workers load the task themselves: what grades an answer cannot be sent.
            loaded = None if executor else task
            work = partial(_searching, recipe=recipe, task=loaded, reward=reward)
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
    """The model that a worker begins with."""
    return FrozenLM.from_pretrained(name, dtype)


def _searching(
    lm: FrozenLM, recipe: SeekRecipe, task: Task | None, reward: Reward | None
) -> Callable[[Sequence[Problem]], list[dict[str, Any]]]:
    """The function that searches a batch of the recipe's problems; task: the recipe's, if it is
    loaded; reward: the one to use in place of the recipe's."""
    task = task or load_task(recipe)
    return partial(_batch, lm, recipe, task, reward or REWARDS[recipe.reward](lm, task))


def _batch(
    lm: FrozenLM, recipe: SeekRecipe, task: Task, reward: Reward, problems: Sequence[Problem]
) -> list[dict[str, Any]]:
    """Records of a batch of problems under all arms."""
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
            "reroll": {"first": found[i].first_reward, "again": again[i]},
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


def _reroll(reward: Reward, found: Sequence[Found]) -> list[float | None]:
    """The first answers' rewards, asked for once more."""
    rated = [i for i, f in enumerate(found) if f.first_reward is not None]
    attempts = [_first_attempt(found[i]) for i in rated]
    again = {i: r for i, r in zip(rated, rate(reward, attempts), strict=True) if not r.failure}
    return [again[i].value if i in again else None for i in range(len(found))]


def _first_attempt(found: Found) -> Attempt:
    return Attempt(found.problem, found.ids[0], found.trace[0].text, found.trace[0].finished)
