"""Training a lens: decoder and encoder together, in two resumable stages.

1. warm: supervised. The decoder learns to write the last tokens up to and including an activation's
   own, or what a file of pairs says of it; the encoder to rebuild the activation from that text.
2. joint: refinement on the decoder's own explanations, by GRPO (several samples of each activation,
   rewarded by how well the encoder rebuilds it) or through straight-through Gumbel samples. The
   encoder goes on learning from what the decoder really says.

    latentwire lens train smollm2 --text text.txt --out runs/lens-smollm2
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from latentwire.files import owned, write_whole
from latentwire.lens.activations import (
    Dump,
    Statistics,
    Text,
    at,
    draw,
    dump,
    read_documents,
    split,
    statistics,
    stream,
    tokenized,
)
from latentwire.lens.checks import LensError, check_layer, check_places
from latentwire.lens.config import Data, LensRecipe, Rates
from latentwire.lens.decoder import DecoderConfig
from latentwire.lens.encoder import EncoderConfig
from latentwire.lens.lens import Lens, LensConfig
from latentwire.lens.steps import Source, joint_loss, read_pairs, warm_loss
from latentwire.lens.training_checks import check_lens
from latentwire.lm import FrozenLM
from latentwire.lm.identity import identity
from latentwire.lm.soft_prompt import soft_prompt_rate
from latentwire.runs.folder import (
    begin_training,
    check_training,
    joined_run,
    training_config,
)
from latentwire.train import parallel
from latentwire.train.batches import shuffled
from latentwire.train.loop import LoopConfig, Session, train
from latentwire.train.schedules import Schedule


def smollm2() -> LensRecipe:
    """smollm2-135m, the middle of its 30 blocks: the shipped lens."""
    decoder = DecoderConfig(layers=16, lora=8, max_new_tokens=12)
    return LensRecipe(
        "lens-smollm2",
        LensConfig("smollm2-135m", 15, decoder, EncoderConfig(lora=8)),
        data=Data(documents=4, positions=8),
        warm=LoopConfig(steps=320, lr=1e-3, save_every=25),
        joint=LoopConfig(steps=36, lr=2e-4, warmup=4, save_every=4),
        rates=Rates(projections=Schedule(0.1)),
    )


RECIPES = {"smollm2": smollm2}


def train_lens(recipe: LensRecipe, session: Session | None = None) -> Path:
    """Run both stages, or what is left of them; the run folder, whose lens/ is the trained lens and
    whose held_out.txt has the documents that it has not seen.

    Raises ValueError for a run folder that holds another run, before any compute, or that another
    process trains in.
    """
    session = session or Session()
    with joined_run(recipe, recipe.data.documents, session) as out:
        return _train(recipe, session, out)


def config_of(recipe: LensRecipe, models: Mapping[str, dict[str, Any]] | None = None) -> str:
    """Describe all that a training follows from; models as `training_config` takes them."""
    pairs = [recipe.data.pairs] if recipe.data.pairs else []
    return training_config(recipe, [*recipe.text, *pairs], models)


def _train(recipe: LensRecipe, session: Session, out: Path) -> Path:
    if parallel.all_check() and recipe.refine == "gumbel":
        raise LensError(
            "gumbel takes gradients through a generation, whose passes FSDP2 needs to be the same "
            "in every process; use --refine grpo, or launch without FSDP"
        )
    check_training(out, config_of(recipe))
    if not recipe.text:
        raise LensError("no text to train on; expected --text FILE...")
    documents, held_out = split(read_documents(recipe.text), recipe.data.held_out)
    if len(documents) < recipe.data.documents:
        raise LensError(
            f"{len(documents)} training documents for steps of {recipe.data.documents}; give more "
            "--text, or a smaller --data.documents"
        )
    lm = FrozenLM.from_pretrained(recipe.lens.model, recipe.lens.dtype)
    config = config_of(recipe, {recipe.lens.model: identity(lm)})
    check_training(out, config)
    check_layer(recipe.lens.layer, lm)
    check_places(recipe.lens.decoder.layers, lm)
    texts = tokenized(lm, documents, recipe.data.window, recipe.data.skip)
    pairs = read_pairs(lm, recipe.data.pairs) if recipe.data.pairs else []
    first = parallel.rank() == 0
    if first:
        begin_training(out, config)
        write_whole(out / "held_out.txt", "\n\n".join(held_out) + "\n")
    lens = Lens(lm, recipe.lens, _measured(lm, texts, recipe, out))
    if recipe.data.fitted and not (out / "warm.safetensors").exists():
        lens.decoder.fit(recipe.lens.layer, _sample(texts, recipe.data.fitted, recipe.seed))
    checked = [d for d in held_out if len(lm.tokenize(d)) > recipe.data.skip][: session.check_size]
    held = tokenized(lm, checked, recipe.data.window, recipe.data.skip) if checked else []
    places = draw(held, recipe.data.positions, recipe.seed)
    source, epoch = _source(lm, texts, recipe), max(1, len(texts) // recipe.data.documents)
    embedding = soft_prompt_rate(lm)
    parallel.sharded(lm)  # not before: what is measured above is not measured by every process
    stage = partial(
        train,
        folder=out,
        rate=lambda part, step: recipe.rates.of(part, step, epoch, embedding),
        probe=lambda: check_lens(lens, places),
        session=session,
    )
    warm = warm_loss(lens, source, texts, pairs, recipe)
    stage("warm", lens.tensors(), warm, recipe.warm)
    if recipe.refine != "none":
        joint = joint_loss(lens, source, texts, recipe, epoch)
        stage("joint", lens.tensors(), joint, recipe.joint)
    if first:
        lens.save_pretrained(out / "lens")
    return out


def _source(lm: FrozenLM, texts: Sequence[Text], recipe: LensRecipe) -> Source:
    """The source of a step's activations: the LM, or a dump, which is made if there is none."""
    layer, folder = recipe.lens.layer, recipe.data.dump
    if folder is None:
        return partial(at, lm, layer)
    if parallel.rank() == 0:
        with owned(folder):
            if not (folder / "index.json").exists():
                dump(lm, layer, texts, folder)
    # The others wait for the first, and not in a collective, which ends after ten minutes on GPUs.
    while not (folder / "index.json").exists():
        time.sleep(0.1)
    return Dump(lm, layer, texts, folder).at


def _measured(lm: FrozenLM, texts: Sequence[Text], recipe: LensRecipe, out: Path) -> Statistics:
    """Mean and scale of the training activations, measured once and kept in the run folder."""
    path = out / "statistics.safetensors"
    if not path.exists():
        chosen = _sample(texts, recipe.data.measured, recipe.seed)
        found = statistics(stream(lm, recipe.lens.layer, chosen))
        scales = torch.tensor([found.norm, found.spread], dtype=torch.float64)
        kept = {"mean": found.mean.cpu(), "scales": scales}
        if parallel.rank() == 0:
            write_whole(path, save(kept))
    else:
        try:
            kept = load_file(path)
        except SafetensorError:
            raise LensError(
                f"{path} is truncated or damaged; remove it, and it is made anew"
            ) from None
    mean = kept["mean"].to(lm.device)
    parallel.as_first([mean])
    norm, spread = parallel.of_first(kept["scales"].tolist())
    return Statistics(mean, norm, spread)


def _sample(texts: Sequence[Text], count: int, seed: int) -> list[Text]:
    return [texts[i] for i in shuffled(len(texts), seed, 0, min(count, len(texts)))]
