"""Training a shared wire: one encoder, one code, several frozen readers.

Two stages, each resumable:

1. format: each reader's format tokens, on full text, so that the text reference is as strong as it
   can be and the wire never gets credit for form;
2. wire: everything else at once, every reader at each step. Each reader answers from latents as it
   answers from the text (KL over the answer's positions, answer cross-entropy) and says pieces of
   the text again, from a few of their tokens on; objectives.py has these and others.

Where a recipe is `begun` with a wire, that one's format tokens stand in for stage 1, so that
members of a sweep share it and differ in nothing else.

`add_reader` trains both for one more reader, with all that the others share frozen.

    latentwire train shared-4x --data squad_train.jsonl --out runs/shared-4x
    latentwire add-reader runs/shared-4x/wire MODEL --data squad_train.jsonl --run runs/added
"""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor, nn

from latentwire.evals.harness import Answer, evaluate, summarise
from latentwire.evals.metrics import bootstrap, mean_ratio
from latentwire.lm import Dtype, FrozenLM
from latentwire.lm.picks import seed_of
from latentwire.recipes.evaluation import conditions
from latentwire.recipes.objectives import (
    CUE,
    Gist,
    Objectives,
    Step,
    answer_tokens,
    asked_prompt,
    full_texts,
    reader_parts,
    send,
    send_onward,
    shared_parts,
)
from latentwire.recipes.runs import begin_training, check_training
from latentwire.tasks.base import DataError, read_text
from latentwire.tasks.qa import (
    Passage,
    answer_targets,
    by_context,
    load_questions,
    tokenise,
)
from latentwire.train import parallel
from latentwire.train.batches import Coming, ahead, bucketed
from latentwire.train.loop import LoopConfig, Session, train
from latentwire.train.losses import token_loss
from latentwire.train.step import part_of
from latentwire.wire.encoders import ENCODERS
from latentwire.wire.folder import WireError
from latentwire.wire.load import load_wire
from latentwire.wire.shared import Reader, SharedConfig, SharedWire
from latentwire.wire.wire import format_rate

LONGEST_ANSWER = 12
"""Tokens; questions with longer answers are not trained on, since a batch is padded to them."""
SHORTEST_TEXT = 100
"""Characters; paragraphs of plain text with no more are not trained on."""


@dataclass(frozen=True)
class SharedRecipe:
    """A complete training of one shared wire."""

    name: str
    """Of the run folder, runs/NAME, unless `out` says otherwise."""
    wire: SharedConfig
    """The wire that is trained."""
    data: tuple[str, ...] = ("hub:rajpurkar/squad",)
    """JSONL files with rows {"id", "context", "question", "answers"}, or hub:NAME."""
    text: tuple[Path, ...] = ()
    """Files of plain text, blank lines between paragraphs: passages without questions."""
    out: Path | None = None
    """Run folder; a folder that holds this run already is gone on with."""
    format: LoopConfig = field(
        default_factory=lambda: LoopConfig(steps=300, lr=0.025, save_every=50)
    )
    """Stage 1; the rate is in multiples of the size of each reader's embeddings."""
    begun: str | None = None
    """A wire of the same readers, a folder or a shipped one's name, whose format tokens are taken
    over in place of stage 1."""
    train: LoopConfig = field(default_factory=lambda: LoopConfig(steps=4000, lr=1e-3))
    """Stage 2."""
    passages: int = 16
    """Passages per step, texts among them as often as they are in the data."""
    questions: int = 4
    """Most questions per passage and step."""
    longest: int = 320
    """Most tokens of a passage, as the source counts; longer ones are left out."""
    objectives: Objectives = field(default_factory=Objectives)
    """What stage 2 minimises."""
    held_out: int = 100
    """Passages at the end of the first file that are never trained on."""
    fitted: int = 64
    """Passages that readers are calibrated on, and that PCA is fitted to."""
    seed: int = 0
    """Of the order of the data and of its pieces."""

    def __post_init__(self) -> None:
        for name in ("passages", "questions", "longest", "held_out", "fitted"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1")
        if self.objectives.embeds.on and self.wire.ways_in[0] != "embeddings":
            raise ValueError(
                f"objectives.embeds aligns input embeddings and ways_in is "
                f"{', '.join(self.wire.ways_in)}; expected embeddings first, or a weight of 0"
            )


BOTH = ("smollm2-135m", "gemma3-270m")


def shared_4x() -> SharedRecipe:
    """smollm2-135m and gemma3-270m read one message: a latent of 4 bytes for every 4 tokens."""
    return SharedRecipe("shared-4x", SharedConfig(readers=BOTH, source="smollm2-135m"))


RECIPES = {"shared-4x": shared_4x}


@dataclass(frozen=True)
class Stock:
    """What a training draws from."""

    passages: list[Passage]
    """Texts without questions among them."""
    held: list[Passage]


def train_shared(
    recipe: SharedRecipe,
    session: Session | None = None,
    lms: Mapping[str, FrozenLM] | None = None,
) -> Path:
    """Run both stages, or what is left of them; the run folder, whose wire/ is the trained wire.
    lms: the models by name, where they are loaded already.

    Raises ValueError for a run folder that holds another run, and for a wire that it cannot begin
    with, before any compute.
    """
    session = session or Session()
    parallel.join()
    parallel.check_rows(recipe.passages, session.gradient_accumulation)
    if recipe.text and parallel.all_check():
        raise ValueError(
            "text has no questions, so that with FSDP2 processes would not run the same passes; "
            "leave out --text, or launch without FSDP"
        )
    check_parts(recipe, session)
    known = known_formats(recipe, recipe.wire.readers, lms)
    out, config = _folder(recipe, asdict(recipe))
    lms = lms or load_models({*recipe.wire.readers, recipe.wire.source}, recipe.wire.dtype)
    torch.manual_seed(recipe.seed)
    wire = SharedWire(recipe.wire, lms)
    stock = load_stock(recipe, lms[recipe.wire.source])
    if parallel.rank() == 0:
        begin_training(out, config)
    wire.fit([p.context for p in stock.passages[: recipe.fitted]])
    train_formats(wire.readers, known, stock, recipe, out, session)
    train_wire(wire, wire.readers, wire, stock, recipe, out, session)
    if parallel.rank() == 0:
        wire.save(out / "wire")
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
    parallel.join()
    parallel.check_rows(recipe.passages, session.gradient_accumulation)
    known = known_formats(recipe, (name,), None)
    setting = {"added": name, "to": wire.id.hex(), **asdict(recipe)}
    torch.manual_seed(recipe.seed)
    wire = wire.with_reader(name, load_models({name}, recipe.wire.dtype)[name])
    out, config = _folder(recipe, setting)
    stock = load_stock(recipe, wire.encoder.lm)
    if parallel.rank() == 0:
        begin_training(out, config)
    new = wire.reader(name)
    wire.calibrate(new.adapter, [p.context for p in stock.passages[: recipe.fitted]])
    wire.requires_grad_(False)
    new.adapter.requires_grad_(True)
    recipe = replace(recipe, objectives=recipe.objectives.of_readers())
    train_formats([new], known, stock, recipe, out, session)
    train_wire(wire, [new], new.adapter, stock, recipe, out, session)
    if parallel.rank() == 0:
        wire.save(out / "wire")
    return out


def load_models(names: set[str], dtype: Dtype) -> dict[str, FrozenLM]:
    """The frozen models by name."""
    return {n: parallel.sharded(FrozenLM.from_pretrained(n, dtype)) for n in sorted(names)}


def load_stock(recipe: SharedRecipe, source: FrozenLM) -> Stock:
    """Passages of all files, those at the end of the first held out, and texts. Questions with long
    answers are left out, and so are passages that are too long or too short, with one line on
    stderr; with FSDP2 passages that then have no question are too, since all processes have to run
    the same passes.

    Raises DataError for files that cannot be used, or that leave nothing to train on.
    """
    files = [by_context(load_questions(name)) for name in recipe.data]
    held, files[0] = files[0][-recipe.held_out :], files[0][: -recipe.held_out]
    passages = [p for file in files for p in file]
    paragraphs = [text for path in recipe.text for text in _paragraphs(path)]
    passages += [Passage(text, ()) for text in paragraphs if len(text) > SHORTEST_TEXT]
    seen = {p.context for p in held}
    unseen = [p for p in passages if p.context not in seen]
    fitting = [p for p in unseen if CUE < len(source.ids(p.context)) <= recipe.longest]
    kept = [_briefly_answered(p, source) for p in fitting]
    asked, left = (sum(len(p.questions) for p in row) for row in (fitting, kept))
    short = sum(len(text) <= SHORTEST_TEXT for text in paragraphs)
    _tell(
        {
            f"passages of not {CUE + 1} to {recipe.longest} tokens": len(unseen) - len(fitting),
            f"questions with answers of more than {LONGEST_ANSWER} tokens": asked - left,
            f"paragraphs of at most {SHORTEST_TEXT} characters": short,
        }
    )
    kept = [p for p in kept if p.questions or not parallel.all_check()]
    if len(kept) < recipe.passages:
        raise DataError(
            f"{', '.join(recipe.data)}: {len(kept)} passages of at most {recipe.longest} tokens "
            f"beside the {recipe.held_out} held out; expected at least {recipe.passages}"
        )
    if not any(p.questions for p in kept):
        raise DataError(
            f"{', '.join(recipe.data)}: no question is left; expected answers of at most "
            f"{LONGEST_ANSWER} tokens"
        )
    random.Random(recipe.seed).shuffle(kept)
    return Stock(kept, [p for p in held if len(source.ids(p.context)) <= recipe.longest])


def check_parts(recipe: SharedRecipe, session: Session) -> None:
    """Raises ValueError for objectives of an encoder in which nothing is trained by gradient, for
    such as compare texts where a step is computed a text at a time, and for weights that wait for
    checks which a single held-out passage does not give."""
    of, parts = recipe.objectives, parallel.world() * session.gradient_accumulation
    comparing = of.contrast.on or of.diversity.on
    if comparing and not ENCODERS[recipe.wire.encoder].learns:
        raise ValueError(
            f"objectives.contrast and diversity train the encoder, and {recipe.wire.encoder} has "
            "nothing that is learnt by gradient; expected weights of 0, or another encoder"
        )
    if comparing and recipe.passages < 2 * parts:
        raise ValueError(
            f"objectives.contrast and diversity compare texts; {recipe.passages} passages in "
            f"{parts} parts leave one a part: expected at least {2 * parts} passages"
        )
    waiting = [name for name, schedule in of.schedules.items() if schedule.gate is not None]
    if waiting and min(recipe.held_out, session.checked) < 2:
        raise ValueError(
            f"objectives.{waiting[0]} waits for a check; expected held_out and checked of at "
            f"least 2, got {recipe.held_out} and {session.checked}"
        )


def known_formats(
    recipe: SharedRecipe, names: Sequence[str], lms: Mapping[str, FrozenLM] | None
) -> dict[str, Tensor]:
    """The format tokens that the recipe is begun with, by reader; nothing where it trains its own.

    Raises WireError for a wire that has none of one of the readers, or another number of them.
    """
    if recipe.begun is None:
        return {}
    known = {r.reader: r.format.detach() for r in load_wire(recipe.begun, lms).readers}
    for name in names:
        if name not in known:
            raise WireError(
                f"begun is {recipe.begun}, a wire of {', '.join(known)}; expected one that has "
                f"format tokens of {name} too"
            )
        if len(known[name]) != recipe.wire.format_tokens:
            raise WireError(
                f"begun is {recipe.begun}, with {len(known[name])} format tokens; expected "
                f"{recipe.wire.format_tokens}, as the recipe says"
            )
    return known


def train_formats(
    readers: Sequence[Reader],
    known: Mapping[str, Tensor],
    stock: Stock,
    recipe: SharedRecipe,
    out: Path,
    session: Session,
) -> None:
    """Stage 1: the format tokens of each reader, with the full text as context, where they are not
    known."""
    if known:
        for reader in readers:
            reader.format.requires_grad_(False).copy_(known[reader.reader])
        return
    asking = Stock([p for p in stock.passages if p.questions], stock.held)
    source = readers[0].wire.encoder.lm

    def loss(step: int) -> tuple[Tensor, dict[str, Tensor | float]]:
        coming(step)
        whole = _batch(asking, recipe, step)
        batch = parallel.share(whole)
        parts: dict[str, Tensor | float] = {}
        for reader in readers:
            targets, mask = answer_targets(reader.lm, batch)
            with torch.no_grad():
                text = full_texts(reader.lm, batch)
            prompt = asked_prompt(reader.lm, reader.format, batch, text)
            logits = reader.lm.packed_logits(prompt, targets, mask)
            weight = parallel.weight(batch, whole, partial(answer_tokens, reader.lm))
            parts[f"{reader.reader}.ce"] = weight * token_loss(logits, targets[mask])
        return torch.stack([torch.as_tensor(p) for p in parts.values()]).mean(), parts

    formats = {f"{r.reader}.format": r.format.requires_grad_(True) for r in readers}
    units = {part_of(f"{r.reader}.format"): format_rate(r.lm) for r in readers}

    def rate(part: str, _: int) -> float:
        return units[part]

    with _ready(asking, recipe, source, readers) as coming:
        train("format", formats, loss, recipe.format, out, rate, session=session)
    for tensor in formats.values():
        tensor.requires_grad_(False)


def train_wire(
    wire: SharedWire,
    readers: Sequence[Reader],
    part: nn.Module,
    stock: Stock,
    recipe: SharedRecipe,
    out: Path,
    session: Session,
) -> None:
    """Stage 2: encoder, code, trunk and adapters, or the part of them that is given."""

    checks: list[dict[str, float]] = []
    gist = Gist(wire) if recipe.objectives.gist.on else None

    def loss(step: int) -> tuple[Tensor, dict[str, Tensor | float]]:
        coming(step)
        return wire_loss(wire, readers, stock, recipe, step, gist, checks)

    held = [Passage(p.context, p.questions[: recipe.questions]) for p in stock.held]
    rest = ["text", "closed_book", "truncated_tokens"]  # these do not change

    def probe() -> dict[str, float]:
        wire.eval()
        found = check_readers(readers, held[: session.checked], rest)
        rest.clear()
        wire.train()
        return found

    kept: dict[str, Tensor] = {n: p for n, p in part.named_parameters() if p.requires_grad}
    kept |= {f"gist.{n}": p for n, p in gist.named_parameters()} if gist else {}
    for name, module in part.named_modules():
        if isinstance(module, nn.BatchNorm1d):  # its averages follow from the steps alone
            kept |= {f"{name}.{n}": buffer for n, buffer in module.named_buffers()}
    wire.train()
    with _ready(stock, recipe, wire.encoder.lm, readers) as coming:
        train("wire", kept, loss, recipe.train, out, probe=probe, session=session, measured=checks)
    wire.eval()


def wire_loss(
    wire: SharedWire,
    readers: Sequence[Reader],
    stock: Stock,
    recipe: SharedRecipe,
    step: int,
    gist: Gist | None = None,
    checks: Sequence[Mapping[str, float]] = (),
) -> tuple[Tensor, dict[str, Tensor | float]]:
    """What one part of a step minimises, so that the mean over parts is the step's: the mean over
    readers, who all read what was encoded once, and what the latents alone are trained for. gist:
    where that objective is on; checks: what those so far found, for weights that wait for it."""
    began = time.perf_counter()
    whole = _batch(stock, recipe, step)
    figures: dict[str, Tensor | float] = {"waited": time.perf_counter() - began}
    epoch = math.ceil(len(stock.passages) / recipe.passages)
    of = recipe.objectives
    now = {name: schedule.at(step, epoch, checks) for name, schedule in of.schedules.items()}
    this = Step(parallel.share(whole), whole, of, now, recipe.seed, step)
    sent, onward = send(wire, this), send_onward(wire, this)
    shared = shared_parts(wire, this, sent, gist)
    figures |= shared
    # No objective may apply to a step's passages: then nothing moves, and that is no error.
    total = 0 * next(readers[0].adapter.layer.parameters()).sum() + this.total(shared)
    for reader in readers:
        parts = reader_parts(reader, this, sent, onward)
        total = total + this.total(parts) / len(readers)
        figures |= {f"{reader.reader}.{name}": part for name, part in parts.items()}
    figures["tokens"] = float(
        sum(answer_tokens(r.lm, passage) for r in readers for passage in this.batch)
    )
    return total, {**figures, "count": 1.0}


@torch.no_grad()
def check_readers(
    readers: Sequence[Reader], passages: Sequence[Passage], rest: Sequence[str] = ()
) -> dict[str, float]:
    """Of each reader on held-out passages: F1 and NLL with its own latents, with another passage's,
    and under the rest of an evaluation's conditions that are named; over all readers, what
    guards.py reads."""
    if len(passages) < 2:
        return {}
    figures: dict[str, float] = {}
    gaps: list[float] = []
    answered: list[list[Answer]] = []
    for reader in readers:
        rows = conditions(reader, passages)
        some = {name: rows[name] for name in ("wire", "foreign_latents", *rest)}
        done = [a for b in evaluate(reader.lm, reader.format, passages, some) for a in b]
        of: dict[str, list[Answer]] = {n: [a for a in done if a.condition == n] for n in some}
        for name, answers in of.items():
            row = summarise(answers)
            figures |= {f"{reader.reader}.{name}.{k}": row[k] for k in ("f1", "nll")}
        pairs = zip(of["foreign_latents"], of["wire"], strict=True)
        gaps += [(other.nll - own.nll) / own.tokens for other, own in pairs]
        answered.append(of["wire"])
    owners = [p.context for p in passages for _ in p.questions]
    nll = [[a.nll for a in row] for row in answered]
    tokens = [[float(a.tokens) for a in row] for row in answered]
    held, low, high = mean_ratio(nll, tokens, owners)
    return {
        **figures,
        "held": held,
        "held_low": low,
        "held_high": high,
        "held_n": float(len(passages)),
        "gap": sum(gaps) / len(gaps),
        "gap_low": bootstrap(gaps, owners * len(readers))[0],
    }


def _folder(recipe: SharedRecipe, setting: dict) -> tuple[Path, str]:
    """The run folder, and the config that it is to hold. Raises what `check_training` raises."""
    out = recipe.out or Path("runs") / recipe.name
    config = json.dumps({**setting, "out": None}, indent=1, default=str)
    check_training(out, config)
    return out, config


def _paragraphs(path: Path) -> list[str]:
    """Blocks of a text file, each cut to about 1,000 characters at a space."""
    pieces = []
    for block in read_text(path).split("\n\n"):
        text, start = " ".join(block.split()), 0
        while len(text) - start > 1000:
            end = text.rfind(" ", start + 500, start + 1000)
            end = start + 1000 if end < 0 else end
            pieces.append(text[start:end])
            start = end + (text[end] == " ")
        pieces.append(text[start:])
    return [piece for piece in pieces if piece]


def _tell(counts: Mapping[str, int]) -> None:
    """One line on stderr of what of the data is not trained on, by kind; none where all is."""
    said = ", ".join(f"{kind} ({count:,})" for kind, count in counts.items() if count)
    if said and parallel.rank() == 0:
        Console(stderr=True).print(
            f"left out: {said}", style="dim", highlight=False, soft_wrap=True
        )


def _briefly_answered(passage: Passage, source: FrozenLM) -> Passage:
    """With those of its questions whose answers are not too long to be trained on."""
    asked = passage.questions
    brief = tuple(q for q in asked if len(source.ids(q.answers[0])) <= LONGEST_ANSWER)
    return Passage(passage.context, brief)


def _batch(stock: Stock, recipe: SharedRecipe, step: int) -> list[Passage]:
    """A step's passages, those of all processes, each with some of its questions, of which the
    step's number draws."""
    lengths = [len(p.context) for p in stock.passages]
    made = []
    for i in bucketed(lengths, recipe.seed, step, recipe.passages):
        passage, draw = stock.passages[i], random.Random(seed_of(recipe.seed, step, i))
        drawn = draw.sample(passage.questions, min(len(passage.questions), recipe.questions))
        made.append(Passage(passage.context, tuple(drawn)))
    return made


def _ready(
    stock: Stock, recipe: SharedRecipe, source: FrozenLM, readers: Sequence[Reader]
) -> Coming:
    """To be told each step; has the texts of the next one tokenised, for all models, while it
    runs."""

    def prepare(step: int) -> None:
        batch = _batch(stock, recipe, step)
        for lm in (source, *(reader.lm for reader in readers)):
            tokenise(lm, batch)

    return ahead(prepare)
