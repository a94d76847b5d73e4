"""The training data of a shared wire: passages with their questions."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from latentwire.lm import FrozenLM
from latentwire.lm.samplers import seed_of
from latentwire.tasks.base import DataError
from latentwire.tasks.qa import Passage, by_context, load_questions, tokenise
from latentwire.terminal import terminal
from latentwire.train import parallel
from latentwire.train.batches import Coming, ahead, bucketed
from latentwire.wire.learned.config import SharedRecipe
from latentwire.wire.learned.objectives import CUE
from latentwire.wire.learned.reader import Reader

LONGEST_ANSWER = 12
"""Tokens; questions with longer answers are not trained on, since a batch is padded to them."""


@dataclass(frozen=True)
class TrainingData:
    """Passages to train on, and passages held out."""

    passages: list[Passage]
    """Some have no question left, and are rebuilt alone."""
    held: list[Passage]


def load_data(recipe: SharedRecipe, source: FrozenLM) -> TrainingData:
    """Passages of all files, those at the end of the first held out. Questions with long answers
    are left out, and so are passages that are too long or too short, with one line on stderr; with
    FSDP2 passages that then have no question are too, since all processes have to run the same
    passes.

    Raises DataError for files that cannot be used, or that leave nothing to train on.
    """
    files = [by_context(load_questions(name)) for name in recipe.data]
    held, files[0] = files[0][-recipe.held_out :], files[0][: -recipe.held_out]
    passages = [p for file in files for p in file]
    seen = {p.context for p in held}
    unseen = [p for p in passages if p.context not in seen]
    fitting = [p for p in unseen if CUE < len(source.tokenize(p.context)) <= recipe.longest]
    kept = [_briefly_answered(p, source) for p in fitting]
    asked, left = (sum(len(p.questions) for p in row) for row in (fitting, kept))
    _tell(
        {
            f"passages of not {CUE + 1} to {recipe.longest} tokens": len(unseen) - len(fitting),
            f"questions with answers of more than {LONGEST_ANSWER} tokens": asked - left,
        }
    )
    kept = [p for p in kept if p.questions or not parallel.all_check()]
    if len(kept) < recipe.batch_size:
        raise DataError(
            f"{', '.join(recipe.data)}: {len(kept)} passages of at most {recipe.longest} tokens "
            f"beside the {recipe.held_out} held out; expected at least {recipe.batch_size}"
        )
    if not any(p.questions for p in kept):
        raise DataError(
            f"{', '.join(recipe.data)}: no question is left; expected answers of at most "
            f"{LONGEST_ANSWER} tokens"
        )
    random.Random(recipe.seed).shuffle(kept)
    return TrainingData(
        kept, [p for p in held if len(source.tokenize(p.context)) <= recipe.longest]
    )


def batch_of(training_data: TrainingData, recipe: SharedRecipe, step: int) -> list[Passage]:
    """A step's passages, those of all processes, each with some of its questions, of which the
    step's number draws."""
    lengths = [len(p.context) for p in training_data.passages]
    made = []
    for i in bucketed(lengths, recipe.seed, step, recipe.batch_size):
        passage, draw = training_data.passages[i], random.Random(seed_of(recipe.seed, step, i))
        drawn = draw.sample(passage.questions, min(len(passage.questions), recipe.questions))
        made.append(Passage(passage.context, tuple(drawn)))
    return made


def ready(
    training_data: TrainingData, recipe: SharedRecipe, source: FrozenLM, readers: Sequence[Reader]
) -> Coming:
    """To be asked for each step; its texts are tokenised, for all models, while the one before
    runs."""

    def prepare(step: int) -> None:
        batch = parallel.share(batch_of(training_data, recipe, step))
        for lm in (source, *(reader.lm for reader in readers)):
            tokenise(lm, batch)

    return ahead(prepare)


def _tell(counts: Mapping[str, int]) -> None:
    """One line on stderr of what of the data is not trained on, by kind; none where all is."""
    said = ", ".join(f"{kind} ({count:,})" for kind, count in counts.items() if count)
    if said and parallel.rank() == 0:
        terminal(stderr=True).print(f"left out: {said}", style="dim", soft_wrap=True)


def _briefly_answered(passage: Passage, source: FrozenLM) -> Passage:
    """With those of its questions whose answers are not too long to be trained on."""
    asked = passage.questions
    brief = tuple(q for q in asked if len(source.tokenize(q.answers[0])) <= LONGEST_ANSWER)
    return Passage(passage.context, brief)
