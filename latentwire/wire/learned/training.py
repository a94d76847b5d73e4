"""Training a shared wire: one encoder, one code, several frozen readers.

Two stages, each resumable:

1. format: each reader's soft prompt, on full text, so that the text reference is as strong as it
   can be and the wire never gets credit for form;
2. wire: everything else at once, every reader at each step. Each reader answers from latents as it
   answers from the text (KL over the answer's positions, answer cross-entropy) and says pieces of
   the text, given their first tokens; objectives.py has these and others.

With `init_from`, a trained wire, that one's soft prompts stand in for stage 1, so that
members of a sweep share them and differ in nothing else.

`add_reader` trains both for one more reader, with all that the others share frozen.

    latentwire train shared-4x --data squad_train.jsonl --out runs/shared-4x
    latentwire add-reader runs/shared-4x/wire MODEL --data squad_train.jsonl --run runs/added
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from latentwire.evals.baselines import full_text
from latentwire.files import digest
from latentwire.lm import Dtype, FrozenLM
from latentwire.lm.identity import identity
from latentwire.lm.soft_prompt import soft_prompt_rate
from latentwire.lm.zoo import name_of
from latentwire.runs.folder import (
    begin_training,
    check_training,
    joined_run,
    training_config,
)
from latentwire.tasks.qa import Passage, answer_targets
from latentwire.train import parallel
from latentwire.train.loop import Session, train
from latentwire.train.losses import token_loss
from latentwire.wire.folder import WireError, folder_of
from latentwire.wire.learned.config import SharedRecipe
from latentwire.wire.learned.data import TrainingData, batch_of, load_data, ready
from latentwire.wire.learned.objectives import (
    Step,
    answer_tokens,
    asked_prompt,
    reader_parts,
    values_of,
)
from latentwire.wire.learned.reader import Reader
from latentwire.wire.learned.shared_wire import SharedWire
from latentwire.wire.learned.training_checks import check_readers
from latentwire.wire.load import soft_prompts_of


def train_shared(
    recipe: SharedRecipe,
    session: Session | None = None,
    lms: Mapping[str, FrozenLM] | None = None,
) -> Path:
    """Run both stages, or what is left of them; the run folder, whose wire/ is the trained wire.
    lms: the models by name, where they are loaded already.

    Raises ValueError for a run folder that holds another run or that another process trains in, and
    for a wire that it cannot begin with, before any compute.
    """
    session = session or Session()
    _check_gates(recipe, session)
    with joined_run(recipe, recipe.batch_size, session) as out:
        return _train(recipe, session, lms, out)


def config_of(
    recipe: SharedRecipe, models: Mapping[str, dict[str, Any]] | None = None, **beside: Any
) -> str:
    """Describe all that a training follows from; models and beside as `training_config` does."""
    # The weights of the wire to begin with count, whose digests are in its configs.
    begun = recipe.init_from and sorted(
        digest(config.read_bytes()) for config in folder_of(recipe.init_from).rglob("config.json")
    )
    return training_config(recipe, recipe.data, models, init_from=begun, **beside)


def _train(
    recipe: SharedRecipe, session: Session, lms: Mapping[str, FrozenLM] | None, out: Path
) -> Path:
    known = known_soft_prompts(recipe, recipe.wire.readers, lms)
    check_training(out, config_of(recipe))
    names = {*recipe.wire.readers, recipe.wire.source}
    lms = lms or load_models(names, recipe.wire.dtype)
    models = {name: identity(lms[name]) for name in sorted(names)}
    torch.manual_seed(recipe.seed)
    wire = SharedWire(recipe.wire, {name: parallel.sharded(lms[name]) for name in sorted(names)})
    models |= {name: identity(other) for name, other in wire.encoder.others.items()}
    config = config_of(recipe, models)
    check_training(out, config)
    training_data = load_data(recipe, lms[recipe.wire.source])
    if parallel.rank() == 0:
        begin_training(out, config)
    wire.fit([p.context for p in training_data.passages[: recipe.fitted]])
    train_soft_prompts(wire.readers, known, training_data, recipe, out, session)
    train_latents(wire, wire.readers, wire, training_data, recipe, out, session)
    if parallel.rank() == 0:
        wire.save_pretrained(out / "wire")
    return out


def add_reader(
    wire: SharedWire,
    name: str,
    recipe: SharedRecipe,
    session: Session | None = None,
) -> Path:
    """A new adapter for one more reader; what the others share, and their adapters, stay as they
    are, so that messages already sent can be read. The run folder, whose wire/ has the reader."""
    session, recipe = session or Session(), replace(recipe, wire=wire.config)
    with joined_run(recipe, recipe.batch_size, session) as out:
        return _add(wire, name, recipe, session, out)


def _add(wire: SharedWire, name: str, recipe: SharedRecipe, session: Session, out: Path) -> Path:
    known = known_soft_prompts(recipe, (name,), None)
    torch.manual_seed(recipe.seed)
    to = wire.id.hex()
    check_training(out, config_of(recipe, added=name, to=to))
    lm = load_models({name}, recipe.wire.dtype)[name]
    models = {r.reader: identity(r.lm) for r in wire.readers} | {name: identity(lm)}
    frozen = {recipe.wire.source: wire.encoder.lm, **wire.encoder.others}
    models |= {model: identity(one) for model, one in frozen.items()}
    config = config_of(recipe, models, added=name, to=to)
    check_training(out, config)
    wire = wire.with_reader(name, parallel.sharded(lm))
    training_data = load_data(recipe, wire.encoder.lm)
    if parallel.rank() == 0:
        begin_training(out, config)
    new = wire.reader(name)
    wire.calibrate(new.adapter, [p.context for p in training_data.passages[: recipe.fitted]])
    wire.requires_grad_(False)
    new.adapter.requires_grad_(True)
    train_soft_prompts([new], known, training_data, recipe, out, session)
    train_latents(wire, [new], new.adapter, training_data, recipe, out, session)
    if parallel.rank() == 0:
        wire.save_pretrained(out / "wire")
    return out


def load_models(names: set[str], dtype: Dtype) -> dict[str, FrozenLM]:
    """The frozen models by name."""
    return {name: FrozenLM.from_pretrained(name, dtype) for name in sorted(names)}


def _check_gates(recipe: SharedRecipe, session: Session) -> None:
    """Raises ValueError for weights that wait for checks which a single held-out passage does not
    give."""
    schedules = {f"objectives.{n}": s for n, s in recipe.objectives.schedules.items()}
    schedules["adapter_rate"] = recipe.adapter_rate
    waiting = [name for name, schedule in schedules.items() if schedule.gate is not None]
    if waiting and min(recipe.held_out, session.check_size) < 2:
        raise ValueError(
            f"{waiting[0]} waits for a check; expected held_out and check_size of "
            f"at least 2, got {recipe.held_out} and {session.check_size}"
        )


def known_soft_prompts(
    recipe: SharedRecipe, names: Sequence[str], lms: Mapping[str, FrozenLM] | None
) -> dict[str, Tensor]:
    """The soft prompts that the recipe begins with, by reader; none where it trains its own.

    Raises WireError for a wire that has none of one of the readers, or another number of them.
    """
    if recipe.init_from is None:
        return {}
    known = soft_prompts_of(recipe.init_from, lms)
    for name in map(name_of, names):
        if name not in known:
            raise WireError(
                f"init_from is {recipe.init_from}, a wire of {', '.join(known)}; expected one "
                f"that has a soft prompt of {name} too"
            )
        if len(known[name]) != recipe.wire.format_tokens:
            raise WireError(
                f"init_from is {recipe.init_from}, with {len(known[name])} soft tokens; expected "
                f"{recipe.wire.format_tokens}, as the recipe says"
            )
    return known


def train_soft_prompts(
    readers: Sequence[Reader],
    known: Mapping[str, Tensor],
    training_data: TrainingData,
    recipe: SharedRecipe,
    out: Path,
    session: Session,
) -> None:
    """Stage 1: the soft prompt of each reader, with the full text as context, where it is not
    known."""
    if known:
        for reader in readers:
            reader.format.requires_grad_(False).copy_(known[reader.reader])
        return
    asking = TrainingData([p for p in training_data.passages if p.questions], training_data.held)
    source = readers[0].wire.encoder.lm

    def loss(step: int) -> tuple[Tensor, dict[str, Tensor | float]]:
        waited = coming(step)
        whole = batch_of(asking, recipe, step)
        batch, tokens = parallel.share(whole), 0.0
        parts: dict[str, Tensor | float] = {}
        for reader in readers:
            targets, mask = answer_targets(reader.lm, batch)
            text = full_text(reader.lm)([p.context for p in batch])
            prompt = asked_prompt(reader.lm, reader.format, batch, text)
            logits = reader.lm.packed_logits(prompt, targets, mask)
            weight = parallel.weight(batch, whole, partial(answer_tokens, reader.lm))
            parts[f"{reader.reader}.ce"] = weight * token_loss(logits, targets[mask])
            tokens += float(mask.sum())
        total = torch.stack([torch.as_tensor(p) for p in parts.values()]).mean()
        return total, {**parts, "tokens": tokens, "waited": waited, "count": 1.0}

    formats = {f"format.{r.number}": r.format.requires_grad_(True) for r in readers}
    units = {f"format.{r.number}": soft_prompt_rate(r.lm) for r in readers}

    def rate(part: str, _: int) -> float:
        return units[part]

    with ready(asking, recipe, source, readers) as coming:
        train("format", formats, loss, recipe.format, out, rate, session=session)
    for tensor in formats.values():
        tensor.requires_grad_(False)


def train_latents(
    wire: SharedWire,
    readers: Sequence[Reader],
    part: nn.Module,
    training_data: TrainingData,
    recipe: SharedRecipe,
    out: Path,
    session: Session,
) -> None:
    """Stage 2: encoder, code, trunk and adapters, or the part of them that is given."""
    checks: list[dict[str, float]] = []

    def loss(step: int) -> tuple[Tensor, dict[str, Tensor | float]]:
        waited = coming(step)
        total, figures = wire_loss(wire, readers, training_data, recipe, step, checks)
        return total, {**figures, "waited": waited + figures["waited"]}

    held = [Passage(p.context, p.questions[: recipe.questions]) for p in training_data.held]
    rest = ["text", "closed_book", "truncated_tokens"]  # these do not change

    def probe() -> dict[str, float]:
        wire.eval()
        found = check_readers(readers, held[: session.check_size], rest)
        rest.clear()
        wire.train()
        return found

    def rate(named: str, step: int) -> float:
        if not named.startswith("adapters."):  # an added one is all there is, and is not frozen
            return 1.0
        return recipe.adapter_rate.at(step, _epoch(training_data, recipe), checks)

    # All of it: what was measured before the first step is not measured anew.
    kept: dict[str, Tensor] = part.state_dict(keep_vars=True)
    wire.train()
    with ready(training_data, recipe, wire.encoder.lm, readers) as coming:
        train("wire", kept, loss, recipe.train, out, rate, probe, session, measured=checks)
    wire.eval()


def wire_loss(
    wire: SharedWire,
    readers: Sequence[Reader],
    training_data: TrainingData,
    recipe: SharedRecipe,
    step: int,
    checks: Sequence[Mapping[str, float]] = (),
) -> tuple[Tensor, dict[str, Tensor | float]]:
    """One part's loss of a step, so that the mean over parts is the step's: the mean over readers,
    who all read what was encoded once. checks: the figures of those so far, for weights that wait
    for one."""
    began = time.perf_counter()
    whole = batch_of(training_data, recipe, step)
    figures: dict[str, Tensor | float] = {"waited": time.perf_counter() - began}
    epoch, of = _epoch(training_data, recipe), recipe.objectives
    weights = {name: schedule.at(step, epoch, checks) for name, schedule in of.schedules.items()}
    this = Step(parallel.share(whole), whole, weights, of.piece, recipe.seed, step)
    texts = [passage.context for passage in this.batch]
    contents = values_of(wire, texts, wire(texts))
    # No objective may apply to a step's passages: then nothing moves, and that is no error.
    total = 0 * next(readers[0].adapter.layer.parameters()).sum()
    for reader in readers:
        parts = reader_parts(reader, this, texts, contents)
        total = total + this.total(parts) / len(readers)
        figures |= {f"{reader.reader}.{name}": part for name, part in parts.items()}
    figures["tokens"] = float(
        sum(answer_tokens(r.lm, passage) for r in readers for passage in this.batch)
    )
    return total, {**figures, "count": 1.0}


def _epoch(training_data: TrainingData, recipe: SharedRecipe) -> int:
    """Steps of an epoch."""
    return math.ceil(len(training_data.passages) / recipe.batch_size)
