"""The stages of a training of latent codes. Each leaves its result in the run folder, from which a
repeated command goes on.

1. `fit`: the code, every reader's linear decoder, and the scorer that says which slots stay, in
   closed form.
2. `attention`: the code and all decoders, from recordings of what attention does.
3. `answers-I`: the decoder of reader I through the frozen reader.

The code is fixed after the second, so that more readers can be added later.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from rich.progress import track
from safetensors.torch import load_file
from torch import Tensor, nn

from latentwire.files import digest, write_whole
from latentwire.tasks.qa import Passage
from latentwire.terminal import terminal
from latentwire.train import parallel
from latentwire.train.batches import shuffled
from latentwire.train.loop import Probe, train
from latentwire.train.settings import LoopConfig, Session
from latentwire.train.step import Loss
from latentwire.wire.codes.answers import answer_losses
from latentwire.wire.codes.attention import attention_losses
from latentwire.wire.codes.config import CodeRecipe
from latentwire.wire.codes.fitting import (
    Fit,
    Sensitivity,
    Sums,
    fit_code,
    fit_decoder,
    reader_cache,
)
from latentwire.wire.codes.reader import CodeReader, Codes, weights
from latentwire.wire.codes.recording import Recorder, own_reading, reader_attention, source_features
from latentwire.wire.codes.scoring import ScoreFit
from latentwire.wire.codes.wire import CodeWire

OUTPUTS = 0.3
"""Weight of what attention reads, beside the attention itself."""


@dataclass(frozen=True)
class Bench:
    """State that all stages share: a wire in training, its recipe, and where things are kept."""

    wire: CodeWire
    recipe: CodeRecipe
    out: Path
    session: Session
    taught: Sequence[Passage]
    """Passages to train on, none with more questions than a step takes."""
    held: Sequence[Passage]

    def features(self, passage: Passage) -> Tensor:
        """The source's features [n, f] of a passage."""
        source = self.wire.source
        record = Recorder(self.out / "recorded" / "source", source)
        return record(
            digest(passage.context),
            lambda: source_features(source, self.wire.code.config, passage.context),
        )["features"]

    def attention(self, reader: CodeReader, passage: Passage) -> dict[str, Tensor]:
        """A reader's attention to a passage's full text."""
        number = self.wire.readers.index(reader)
        record = Recorder(self.out / "recorded" / f"{number}", reader.lm)
        tokens = len(self.features(passage))
        layers = range(len(reader.lm.blocks) if self.recipe.attention.steps else 0)
        return record(
            digest(repr(passage)),
            lambda: reader_attention(
                reader.lm, reader.format, self.wire.source, tokens, passage, layers
            ),
        )

    @property
    def checked(self) -> Sequence[Passage]:
        """The held-out passages that checks look at."""
        return self.held[: self.session.check_size]

    def batch(self, step: int) -> list[Passage]:
        """The passages of one step of this process."""
        order = shuffled(len(self.taught), self.recipe.seed, step, self.recipe.batch_size)
        return list(parallel.share([self.taught[i] for i in order]))


def fit(bench: Bench, readers: Sequence[CodeReader], with_code: bool) -> None:
    """Stage 1. with_code: the code too, from all of the readers; else it stays as it is."""
    wire, recipe = bench.wire, bench.recipe
    parts: dict[str, nn.Module] = {f"reader-{wire.readers.index(r)}": r for r in readers}
    if with_code:
        parts["code"] = wire.code
    if _loaded(bench.out, "fit", parts):
        return
    sums = [Sums(len(wire.code.weight), len(r.decoder.bias)) for r in readers]
    sensitivities = [Sensitivity(reader.lm) for reader in readers]
    console = terminal(stderr=True, quiet=parallel.rank() > 0)
    spread = _spread(bench.taught, recipe.fitted)
    for i, passage in enumerate(track(spread, description="fit", console=console)):
        features = bench.features(passage)
        for reader, one, sensitivity in zip(readers, sums, sensitivities, strict=True):
            ids, owner, text = own_reading(wire.source, len(features), reader.lm, passage.context)
            start = len(reader.lm.frame.prefix)
            one.add(features[owner], reader_cache(reader.lm, text, start))
            if i < recipe.sensitive:
                sensitivity.add(reader.lm, reader.format, passage, text, start)
    if with_code:
        fits = [Fit(*pair) for pair in zip(sums, sensitivities, strict=True)]
        fit_code(wire.code, fits)
    for reader, one, sensitivity in zip(readers, sums, sensitivities, strict=True):
        fit_decoder(wire.code, reader, one, sensitivity)
        scores = ScoreFit(reader)
        for passage in track(spread[: 2 * recipe.sensitive], description="scorer", console=console):
            codes = wire.code(bench.features(passage).float())
            ids, owner, text = own_reading(wire.source, len(codes), reader.lm, passage.context)
            scores.add(codes, passage, ids, owner, text)
        scores.solve()
    _keep(bench.out, "fit", parts)


def train_attention(bench: Bench, readers: Sequence[CodeReader], with_code: bool) -> None:
    """Stage 2. with_code: the code is trained with the decoders."""
    code = bench.wire.code

    def losses(passages: Sequence[Passage]) -> dict[str, Tensor]:
        features = [bench.features(p) for p in passages]
        codes, sizes = code(_as_trained(torch.cat(features))), [len(x) for x in features]
        each = []
        for reader in readers:
            keys, values = (x.split(sizes, 2) for x in reader.decoder(codes))
            recorded = (bench.attention(reader, p) for p in passages)
            for k, v, of in zip(keys, values, recorded, strict=True):
                each.append(attention_losses(reader, k, v, of))
        return {name: torch.stack([one[name] for one in each]).mean() for name in each[0]}

    def total(parts: dict[str, Tensor]) -> Tensor:
        return parts["attention"] + OUTPUTS * parts["outputs"]

    def loss(step: int) -> tuple[Tensor, dict[str, Tensor]]:
        parts = losses(bench.batch(step))
        return total(parts), parts

    def probe() -> dict[str, float]:
        parts = losses(bench.checked)
        each = {f"held_{name}": value.item() for name, value in parts.items()}
        return {**each, "held": total(parts).item()}

    trained = {}
    for reader in readers:
        trained |= _trained(bench, reader)
    if with_code:
        trained |= {f"code.{name}": p for name, p in code.named_parameters()}
    _run(bench, "attention", trained, loss, probe)
    code.requires_grad_(False)


def train_answers(bench: Bench, reader: CodeReader) -> None:
    """Stage 3."""
    ratios, code = bench.recipe.ratios, bench.wire.code

    def losses(passages: Sequence[Passage], ratio: int) -> dict[str, Tensor]:
        with torch.no_grad():
            codes = [Codes(code(bench.features(p).float())) for p in passages]
        teacher = torch.cat([bench.attention(reader, p)["teacher"] for p in passages])
        return answer_losses(reader.at(ratio), passages, codes, teacher)

    def loss(step: int) -> tuple[Tensor, dict[str, Tensor]]:
        turn, of = divmod(step, len(ratios))  # a passage at every ratio, once it is recorded
        parts = losses(bench.batch(turn), ratios[of])
        return torch.stack(list(parts.values())).sum(), parts

    def probe() -> dict[str, float]:
        found = {f"{ratio}x": losses(bench.checked, ratio) for ratio in ratios}
        each = {f"held_{n}_{at}": v.item() for at, of in found.items() for n, v in of.items()}
        return {**each, "held": sum(each.values()) / len(ratios)}

    number = bench.wire.readers.index(reader)
    _run(bench, f"answers-{number}", _trained(bench, reader), loss, probe)


def _trained(bench: Bench, reader: CodeReader) -> dict[str, Tensor]:
    """The tensors of a decoder that gradients train."""
    part = f"reader-{bench.wire.readers.index(reader)}"
    named = {f"{part}.decoder.{name}": p for name, p in reader.decoder.named_parameters()}
    return {name: p for name, p in named.items() if p.requires_grad and p.numel()}


def _run(bench: Bench, stage: str, trained: dict[str, Tensor], loss: Loss, probe: Probe) -> None:
    """Train one stage, as long and as fast as the recipe says of its kind."""
    config: LoopConfig = getattr(bench.recipe, stage.partition("-")[0])
    train(
        stage, trained, loss, config, bench.out, probe=torch.no_grad()(probe), session=bench.session
    )


def _as_trained(features: Tensor) -> Tensor:
    """Features as autocast computes with them, or in float32 where it is off."""
    return features if torch.is_autocast_enabled(features.device.type) else features.float()


def _spread(passages: Sequence[Passage], count: int) -> list[Passage]:
    """So many passages from all of the file: neighbours are often of one article."""
    return list(islice(passages, 0, None, max(1, len(passages) // count)))[:count]


def _loaded(out: Path, name: str, parts: dict[str, nn.Module]) -> bool:
    """Fill modules from an earlier run's files, if all of them are there."""
    paths = {part: out / f"{name}-{part}.safetensors" for part in parts}
    if not all(path.exists() for path in paths.values()):
        return False
    for part, module in parts.items():
        module.load_state_dict({k: v.float() for k, v in load_file(paths[part]).items()})
    return True


def _keep(out: Path, name: str, parts: dict[str, nn.Module]) -> None:
    if parallel.rank() == 0:
        for part, module in parts.items():
            write_whole(out / f"{name}-{part}.safetensors", weights(module))
