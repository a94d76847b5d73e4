"""Training a wire of latent codes, and adding a reader to one.

latentwire train interlingua --data squad_train.jsonl
latentwire add-reader runs/interlingua/wire Qwen/Qwen3-8B --data squad_train.jsonl
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latentwire.files import digest
from latentwire.lm import FrozenLM
from latentwire.lm.identity import identity
from latentwire.lm.zoo import name_of
from latentwire.runs.folder import begin_training, check_training, joined_run, training_config
from latentwire.tasks.qa import by_context, in_parts, load_questions
from latentwire.train import parallel
from latentwire.train.settings import Session
from latentwire.wire.codes.code import Code
from latentwire.wire.codes.config import CodeRecipe
from latentwire.wire.codes.reader import CodeReader
from latentwire.wire.codes.stages import Bench, fit, train_answers, train_attention
from latentwire.wire.codes.wire import CodeWire, Source
from latentwire.wire.config import Measured
from latentwire.wire.folder import WireError, folder_of
from latentwire.wire.load import load_wire, soft_prompts_of
from latentwire.wire.training import WireRecipe, train_format
from latentwire.wire.wire import Wire, WireConfig

PROMPT = 16
"""Tokens of a reader's soft prompt."""


def train_codes(recipe: CodeRecipe, session: Session | None = None) -> Path:
    """Run all stages, or what is left of them; the run folder, whose wire/ is the trained wire.

    Raises ValueError for a run folder that holds another run or that another process trains in, and
    WireError for soft prompts that do not fit, before any compute.
    """
    session = session or Session()
    with joined_run(recipe, recipe.batch_size, session) as out:
        check_training(out, _config(recipe))
        names = sorted({recipe.code.source, *recipe.readers})
        lms = {name: FrozenLM.from_pretrained(name, recipe.dtype) for name in names}
        wire = _started(recipe, lms) if recipe.start else _new(recipe, lms)
        prompts = {} if recipe.start else _soft_prompts(recipe, lms)
        begin_training(out, _checked(out, recipe, lms))
        readers = [wire.reader(name) for name in recipe.readers]
        trained = CodeWire(wire.code, Source.of(wire.source), readers)
        bench = _bench(trained, recipe, out, session)
        if recipe.start is None:
            for reader in readers:
                _prompt(bench, reader, prompts.get(reader.reader))
            fit(bench, readers, with_code=True)
        train_attention(bench, readers, with_code=recipe.start is None)
        for reader in readers:
            train_answers(bench, reader)
        if parallel.rank() == 0:
            wire.save_pretrained(out / "wire")
    return out


def add_code_reader(wire: CodeWire, recipe: CodeRecipe, session: Session | None = None) -> Path:
    """Fit and train a decoder for the recipe's reader; code, other readers and messages already
    sent stay as they are. The run folder, whose wire/ has the reader too. With `attention` and
    `answers` of 0 steps the decoder is the closed form alone."""
    session, (name,) = session or Session(), recipe.readers
    if name_of(name) in [reader.reader for reader in wire.readers]:
        raise WireError(f"{name} reads this wire already")
    with joined_run(recipe, recipe.batch_size, session) as out:
        lm = FrozenLM.from_pretrained(name, recipe.dtype)
        lms = {wire.source.name: wire.source, name: lm}
        begin_training(out, _checked(out, recipe, lms, added=name, to=wire.id.hex()))
        reader = CodeReader(lm, recipe.code.channels, recipe.hidden[0], PROMPT)
        more = CodeWire(wire.code.requires_grad_(False), Source.of(wire.source), [reader])
        bench = _bench(more, recipe, out, session)
        _prompt(bench, reader, None)
        fit(bench, [reader], with_code=False)
        train_attention(bench, [reader], with_code=False)
        train_answers(bench, reader)
        if parallel.rank() == 0:
            CodeWire(wire.code, Source.of(wire.source), [*wire.readers, reader]).save_pretrained(
                out / "wire"
            )
    return out


def _new(recipe: CodeRecipe, lms: Mapping[str, FrozenLM]) -> CodeWire:
    source = lms[recipe.code.source]
    sizes = zip(recipe.readers, recipe.hidden, strict=True)
    readers = [CodeReader(lms[n], recipe.code.channels, h, PROMPT) for n, h in sizes]
    config = replace(recipe.code, source=source.name)
    code = Code(config, source.width).to(source.device)
    return CodeWire(code, Source.of(source), readers)


def _started(recipe: CodeRecipe, lms: Mapping[str, FrozenLM]) -> CodeWire:
    """The wire that training goes on from, with readers that the recipe leaves as they are. Raises
    WireError for one of another shape."""
    wire = load_wire(str(recipe.start), lms)
    if not isinstance(wire, CodeWire):
        raise WireError(f"{recipe.start} is no wire of codes; expected one to go on from")
    sizes = tuple(wire.reader(name).decoder.hidden for name in recipe.readers)
    named = replace(recipe.code, source=lms[recipe.code.source].name)
    if (wire.code.config, sizes) != (named, recipe.hidden):
        raise WireError(
            f"{recipe.start} has a code of {wire.code.config} and decoders of {sizes}; the recipe "
            f"says {recipe.code} and {recipe.hidden}"
        )
    wire.code.requires_grad_(False)
    for reader in wire.readers:
        reader.format.requires_grad_(False)
    return wire


def _bench(wire: CodeWire, recipe: CodeRecipe, out: Path, session: Session) -> Bench:
    passages = by_context(load_questions(recipe.data, least=recipe.held_out + recipe.batch_size))
    kept = len(passages) - recipe.held_out
    taught, held = (in_parts(p, recipe.questions) for p in (passages[:kept], passages[kept:]))
    longest = len(wire.source.tokenize(max((p.context for p in taught), key=len)))
    for reader in wire.readers:
        reader.measured = Measured(longest, max(recipe.ratios))
    return Bench(wire, recipe, out, session, taught, held)


def _prompt(bench: Bench, reader: CodeReader, known: Tensor | None) -> None:
    """Give a reader its soft prompt: one that is known, or trained with the full text as context,
    as every wire's is."""
    recipe, number = bench.recipe, bench.wire.readers.index(reader)
    if known is None:
        wire = Wire(reader.lm, WireConfig(reader.reader, dtype=recipe.dtype, format_tokens=PROMPT))
        same = ("name", "data", "format", "batch_size", "questions", "held_out", "seed")
        of_wire = WireRecipe(wire=wire.config, **{field: getattr(recipe, field) for field in same})
        folder = bench.out / f"prompt-{number}"
        train_format(wire, bench.taught, of_wire, folder, bench.checked, bench.session)
        known = wire.format
    with torch.no_grad():
        reader.format.copy_(known)
    reader.format.requires_grad_(False)


def _soft_prompts(recipe: CodeRecipe, lms: Mapping[str, FrozenLM]) -> dict[str, Tensor]:
    """Soft prompts by reader, from the wire that the recipe names. Raises WireError for one of
    another length."""
    if recipe.soft_prompts is None:
        return {}
    known = soft_prompts_of(recipe.soft_prompts, lms)
    if wrong := [name for name, prompt in known.items() if len(prompt) != PROMPT]:
        raise WireError(
            f"{recipe.soft_prompts} has a soft prompt of {len(known[wrong[0]])} tokens; expected "
            f"{PROMPT}"
        )
    return known


def _config(
    recipe: CodeRecipe, models: Mapping[str, dict[str, Any]] | None = None, **beside: Any
) -> str:
    """All that a training follows from; models and beside as `training_config` takes them."""
    named = {"soft_prompts": recipe.soft_prompts, "start": recipe.start}
    digests = {
        field: sorted(digest(path.read_bytes()) for path in folder_of(name).rglob("config.json"))
        for field, name in named.items()
        if name is not None
    }
    return training_config(recipe, [recipe.data], models, **digests, **beside)


def _checked(out: Path, recipe: CodeRecipe, lms: Mapping[str, FrozenLM], **beside: Any) -> str:
    config = _config(recipe, {name: identity(lm) for name, lm in lms.items()}, **beside)
    check_training(out, config)
    return config
