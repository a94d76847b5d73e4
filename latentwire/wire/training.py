"""Training a wire: the place where port, wire, task and loop meet.

Three stages, each resumable, each on top of the one before:

1. format: the soft tokens that set the form of an answer, on full text, so that the text reference
   is as strong as it can be and the wire never gets credit for form;
2. scorer: which tokens each head needs, in closed form from attention; left out where the wire has
   a selector that needs no training;
3. slots: the residual, by distillation from the same reader with the full text in front of it (KL
   over the answer's positions) plus answer cross-entropy, at several ratios in turn.

With `init_from`, a trained wire, stages 1 and 3 go on from that one's weights, and its scorer
stands in for stage 2. A stage of 0 steps is left out.

    latentwire train smollm2-4x --data squad_train.jsonl --out runs/smollm2-4x
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from latentwire.files import owned, write_whole
from latentwire.lm import FrozenLM, KVPrefix
from latentwire.lm.identity import identity
from latentwire.lm.soft_prompt import soft_prompt_rate
from latentwire.lm.zoo import name_of
from latentwire.runs.features import Features
from latentwire.runs.folder import (
    begin_training,
    check_training,
    joined_run,
    training_config,
)
from latentwire.tasks.qa import (
    Passage,
    answer_targets,
    by_context,
    in_parts,
    load_questions,
    passages_prompt,
    question_ids,
    tokenise,
)
from latentwire.terminal import terminal
from latentwire.train import parallel
from latentwire.train.batches import Coming, ahead, bucketed
from latentwire.train.loop import Session, train
from latentwire.train.losses import distillation, token_loss
from latentwire.wire.config import Measured, read_config
from latentwire.wire.folder import WireError, folder_of
from latentwire.wire.importance import attention_received
from latentwire.wire.recipe import WireRecipe
from latentwire.wire.scorer_fit import RidgeFit
from latentwire.wire.selectors import TRAINED, Reading
from latentwire.wire.text_wire import TextWire
from latentwire.wire.training_checks import Forced, check_latents, check_text
from latentwire.wire.wire import Wire


def train_wire(recipe: WireRecipe, session: Session | None = None) -> Path:
    """Run all stages, or what is left of them; the run folder, whose wire/ is the trained wire.

    Raises ValueError for a run folder that holds another run, before any compute, or that another
    process trains in.
    """
    session = session or Session()
    with joined_run(recipe, recipe.batch_size, session) as out:
        return _train(recipe, session, out)


def config_of(recipe: WireRecipe, models: Mapping[str, dict[str, Any]] | None = None) -> str:
    """Describe all that a training follows from; models as `training_config` takes them."""
    # Of the wire to begin with its weights count, which a path does not tell.
    begun = None if recipe.init_from is None else read_config(folder_of(recipe.init_from))["sha256"]
    return training_config(recipe, [recipe.data], models, init_from=begun)


def _train(recipe: WireRecipe, session: Session, out: Path) -> Path:
    check_training(out, config_of(recipe))
    least = recipe.held_out + recipe.batch_size
    passages = by_context(load_questions(recipe.data, least=least))
    kept = len(passages) - recipe.held_out
    first = parallel.rank() == 0
    lm = FrozenLM.from_pretrained(recipe.wire.reader, recipe.wire.dtype)
    config = config_of(recipe, {recipe.wire.reader: identity(lm)})
    check_training(out, config)
    # Where a pass needs all processes, none may skip one because it found what another did not.
    features = None if parallel.all_check() else Features(lm)
    wire = Wire(parallel.sharded(lm), recipe.wire)
    wire.check_window()
    if recipe.init_from is not None:
        _begin(wire, recipe.init_from, lm)
    if first:
        begin_training(out, config)
    checked = _checked(wire, passages[kept:], recipe, session)
    parts = in_parts(passages[:kept], recipe.questions)
    train_format(wire, parts, recipe, out, checked, session)
    if recipe.init_from is None and recipe.wire.selector == TRAINED:
        # From all of the file: neighbours are often of one article.
        spread = passages[: kept : max(1, kept // recipe.scorer_passages)]
        fit_scorer(wire, spread[: recipe.scorer_passages], out, features)
    train_slots(wire, parts, recipe, out, checked, session, features)
    longest = max((p.context for p in passages[:kept]), key=len)
    tokens = min(len(lm.tokenize(longest)), recipe.wire.window)
    wire.measured = Measured(tokens, max(recipe.ratios or (recipe.wire.ratio,)))
    if first:
        wire.save_pretrained(out / "wire")
    if first and features is not None:
        terminal(stderr=True).print(str(features), style="dim", soft_wrap=True)
    return out


def _begin(wire: Wire, name: str, lm: FrozenLM) -> None:
    """Take the weights of another wire. Raises WireError for one of another reader or size."""
    known = Wire.from_pretrained(name, lm)
    for size in ("reader", "rank", "format_tokens", "selector"):
        theirs, ours = getattr(known.config, size), getattr(wire.config, size)
        if theirs != ours:
            raise WireError(f"init_from is {name}, whose {size} is {theirs}; expected {ours}")
    wire.load_state_dict(known.state_dict())


def add_text_reader(
    wire: Wire | TextWire, recipe: WireRecipe, session: Session | None = None
) -> Path:
    """Train the recipe's wire, which becomes one more reader of a text wire; a wire of one reader
    becomes a text wire first, in the code of that reader. The run folder, whose text-wire/ has all
    readers."""
    before = TextWire(wire.lm, [wire]) if isinstance(wire, Wire) else wire
    wires = [reader.wire for reader in before.readers]
    if name_of(recipe.wire.reader) in [w.reader for w in wires]:
        raise WireError(f"{recipe.wire.reader} reads this wire already")
    out = train_wire(recipe, session)
    if parallel.rank() == 0:
        wires.append(Wire.from_pretrained(out / "wire"))
        with owned(out):
            TextWire(before.code.lm, wires).save_pretrained(out / "text-wire")
    return out


def train_format(
    wire: Wire,
    passages: Sequence[Passage],
    recipe: WireRecipe,
    out: Path,
    checked: Sequence[Passage],
    session: Session,
) -> None:
    """Stage 1: the soft prompt, with the full text as context."""

    def loss(step: int) -> tuple[Tensor, dict[str, Tensor | float]]:
        waited = coming(step)
        batch = batch_of(wire.lm, passages, recipe, step, waited)
        text = _read(wire, batch.passages).states.prefix
        prompt = passages_prompt(wire.lm, wire.format, batch.passages, text)
        logits = wire.lm.packed_logits(prompt, batch.targets, batch.mask)
        return token_loss(logits, batch.targets[batch.mask]), {**batch.figures}

    def probe() -> dict[str, float]:
        return check_text(wire, checked, lambda batch: _read(wire, batch), _forced(wire))

    parameters, unit = {"format": wire.format}, soft_prompt_rate(wire.lm)
    with _ready(wire.lm, passages, recipe) as coming:
        train(
            "format", parameters, loss, recipe.format, out, lambda *_: unit, probe, session=session
        )


@torch.no_grad()
def fit_scorer(
    wire: Wire, passages: Sequence[Passage], out: Path, features: Features | None
) -> None:
    """Stage 2: ridge regression on the attention that tokens get from questions with their answers,
    and from the passage repeated."""
    path = out / "scorer.safetensors"

    def fitted() -> dict[str, Tensor]:
        lm, (layers, width, heads) = wire.lm, wire.scorer.weight.shape
        fit = RidgeFit(layers, width, heads)
        console = terminal(stderr=True, quiet=parallel.rank() > 0)
        for passage in track(passages, description="scorer", console=console):
            reading = _read(wire, [passage])
            states, (ids,) = reading.states, reading.ids
            received = attention_received(lm, wire.format, passage, ids, states.prefix)
            fit.add(states.inputs[:, 0], received)
        fit.solve(wire.scorer)
        return wire.scorer.state_dict()

    try:
        known = load_file(path)
    except (OSError, SafetensorError):  # not fitted yet, or cut off by a full disk
        known = None
    if parallel.of_first(known is None):  # the passes of a fit may need all processes
        parts = [wire.format]
        for p in passages:
            parts += [*_rows(wire, [p]), *answer_targets(wire.lm, [p])]
            parts += [question_ids(wire.lm, q.question) for q in p.questions]
        known = features("scorer", parts, fitted) if features else fitted()
        if parallel.rank() == 0:
            write_whole(path, save(known))
    wire.scorer.load_state_dict(known or wire.scorer.state_dict())
    parallel.as_first(list(wire.scorer.parameters()))


def train_slots(
    wire: Wire,
    passages: Sequence[Passage],
    recipe: WireRecipe,
    out: Path,
    checked: Sequence[Passage],
    session: Session,
    features: Features | None,
) -> None:
    """Stage 3: the residual of the slots; reader, scorer and soft prompt stay as they are."""

    def loss(step: int) -> tuple[Tensor, dict[str, Tensor | float]]:
        waited = coming(step)
        batch = batch_of(wire.lm, passages, recipe, step, waited)
        at = wire.at(ratios[step % len(ratios)])
        parts = slots_losses(at, batch, features=features)
        return torch.stack(list(parts.values())).sum(), {**parts, **batch.figures}

    def probe() -> dict[str, float]:
        return check_latents(wire, checked, lambda batch: _read(wire, batch), _forced(wire))

    ratios = recipe.ratios or (wire.ratio,)
    wire.format.requires_grad_(False)
    parameters = dict(wire.slots.named_parameters())
    with _ready(wire.lm, passages, recipe) as coming:
        train("slots", parameters, loss, recipe.slots, out, probe=probe, session=session)


def _teacher(wire: Wire, batch: Batch, text: KVPrefix, features: Features | None) -> Tensor:
    """The states [k, d] that predict the answers after the full text. The texts' own cache would
    be hundreds of times as large, so it is computed at every step and only these are kept."""
    prompt = passages_prompt(wire.lm, wire.format, batch.passages, text)

    def states() -> dict[str, Tensor]:
        return {"states": wire.lm.shifted_hidden(prompt, batch.targets, batch.mask)[batch.mask]}

    if features is None:
        return states()["states"]
    asked = [prompt.embeds, prompt.mask, prompt.positions, batch.targets, batch.mask]
    return features("teacher", [wire.format, *_rows(wire, batch.passages), *asked], states)[
        "states"
    ]


def slots_losses(
    wire: Wire,
    batch: Batch,
    within: Callable[[str], AbstractContextManager] = nullcontext,
    features: Features | None = None,
) -> dict[str, Tensor]:
    """The objectives of stage 3, in nats per answer token. within: a context for each part of the
    work, by its name, for who wants to know what it costs. features: where the teacher's states are
    kept."""
    with within("encoder"):
        reading = _read(wire, batch.passages)
        latents = wire.prefix(wire.compress(reading))
    with within("reader forward"):
        with torch.no_grad():
            teacher = wire.lm.head(_teacher(wire, batch, reading.states.prefix, features))
        asked = passages_prompt(wire.lm, wire.format, batch.passages, latents)
        student = wire.lm.packed_logits(asked, batch.targets, batch.mask)
    with within("loss"):
        ce = token_loss(student, batch.targets[batch.mask])
        return {"ce": ce, "kl": distillation(teacher, student)}


def _checked(
    wire: Wire, held_out: Sequence[Passage], recipe: WireRecipe, session: Session
) -> list[Passage]:
    """The held-out passages that checks look at: such as are read in one window, and with as many
    questions as training takes."""
    short = [p for p in held_out if len(wire.lm.tokenize(p.context)) <= wire.config.window]
    return [
        Passage(p.context, p.questions[: recipe.questions]) for p in short[: session.check_size]
    ]


def _forced(wire: Wire) -> Forced:
    """Training's own logits of the answers, and its targets and mask."""

    def forced(batch: Sequence[Passage], context: KVPrefix) -> tuple[Tensor, Tensor, Tensor]:
        targets, mask = answer_targets(wire.lm, batch)
        prompt = passages_prompt(wire.lm, wire.format, batch, context)
        return wire.lm.logits(prompt, targets, mask), targets, mask

    return forced


@dataclass(frozen=True)
class Batch:
    """The batch of one step of a stage."""

    passages: list[Passage]
    targets: Tensor
    """[b, n] answers of all questions, EOS at the end."""
    mask: Tensor
    """[b, n] real targets."""
    figures: dict[str, float]
    """For the log: how many targets, and the seconds that the step waited for it."""


def batch_of(
    lm: FrozenLM, passages: Sequence[Passage], recipe: WireRecipe, step: int, waited: float = 0.0
) -> Batch:
    """This process's share of a step's passages. waited: seconds that its texts were waited for."""
    began = time.perf_counter()
    mine = list(parallel.share(_chosen(passages, recipe, step)))
    targets, mask = answer_targets(lm, mine)
    figures = {"tokens": float(mask.sum()), "waited": waited + time.perf_counter() - began}
    return Batch(mine, targets, mask, figures)


def _chosen(passages: Sequence[Passage], recipe: WireRecipe, step: int) -> list[Passage]:
    lengths = [len(p.context) for p in passages]
    return [passages[i] for i in bucketed(lengths, recipe.seed, step, recipe.batch_size)]


def _ready(lm: FrozenLM, passages: Sequence[Passage], recipe: WireRecipe) -> Coming:
    """To be asked for each step; its texts are tokenised while the one before runs."""
    return ahead(lambda step: tokenise(lm, parallel.share(_chosen(passages, recipe, step))))


def _read(wire: Wire, batch: Sequence[Passage]) -> Reading:
    """The LM's pass over the texts: its cache is the text condition, its states are what the wire
    compresses. Texts are cut to the wire's window."""
    rows = _rows(wire, batch)
    return wire.read(rows, [len(wire.head)] * len(rows))


def _rows(wire: Wire, batch: Sequence[Passage]) -> list[Tensor]:
    return [wire.lm.tokenize(p.context)[: wire.config.window] for p in batch]
