"""F1 of latent codes against bits, channels and the ratio of tokens to slots: table and plot.

    python reproduce/interlingua/curve.py squad_train.jsonl squad_dev.jsonl

gemma3-270m reads the first 100 questions of the second file at 1x, through the bytes of messages.
Bits: the shipped code and decoder, trained at 4 bits, with the levels of other bits. Channels:
codes and decoders in closed form, fitted for each number of channels on the first 600 passages of
the first file, with no training. About two hours on one thread; the same command goes on with a run
that was stopped. Writes curve.json beside this file.
"""

import json
import sys
from copy import copy, deepcopy
from dataclasses import asdict, replace
from functools import partial
from itertools import chain
from pathlib import Path

import torch

from latentwire.evals.harness import Answer, evaluate, summarise
from latentwire.files import write_whole
from latentwire.tasks.qa import by_context, load_questions
from latentwire.train.settings import LoopConfig
from latentwire.wire.codes.config import interlingua
from latentwire.wire.codes.training import train_codes
from latentwire.wire.codes.wire import CodeWire
from latentwire.wire.evaluation import conditions
from latentwire.wire.load import load_wire

HERE, RUNS, READER = Path(__file__).parent, Path("runs/codes-curve"), "gemma3-270m"
QUESTIONS, FITTED, SHIPPED = 100, 600, 4
BITS, CHANNELS = (1, 2, 3, 4, 6), (64, 128, 256, 512)


def with_bits(wire: CodeWire, bits: int) -> CodeWire:
    """The same weights with numbers of other bits."""
    code = deepcopy(wire.code)
    code.config = replace(code.config, bits=bits)
    return CodeWire(code, wire._source, [copy(wire.reader(READER))])


def closed_form(channels: int, data: str) -> CodeWire:
    """A code and a decoder of so many channels, fitted and not trained."""
    recipe, none = interlingua(), LoopConfig(0, 1e-4)
    code = replace(recipe.code, channels=channels)
    out = RUNS / f"{channels}-channels"
    alone = {"readers": (READER,), "hidden": (0,), "attention": none, "answers": none}
    recipe = replace(recipe, code=code, data=data, out=out, fitted=FITTED, **alone)
    return load_wire(train_codes(recipe) / "wire")


def asked(name: str, wire, passages) -> dict[str, float]:
    """The row of a wire's messages; its answers are kept in the run folder."""
    path = RUNS / f"{name}.json"
    if not path.exists():
        reader = wire().reader(READER)
        condition = {"wire": conditions(reader, passages)["wire"]}
        answers = chain(*evaluate(reader.lm, reader.format, passages, condition))
        write_whole(path, json.dumps([asdict(answer) for answer in answers]))
        print(name, flush=True)
    return summarise([Answer.of_record(record) for record in json.loads(path.read_text())])


def main(train: str, dev: str) -> None:
    torch.set_num_threads(1)
    RUNS.mkdir(parents=True, exist_ok=True)
    passages, shipped = by_context(load_questions(dev, QUESTIONS)), load_wire("interlingua")
    found = {"reader": READER, "n": QUESTIONS, "fitted": FITTED, "bits": {}, "channels": {}}
    for bits in sorted(BITS, key=lambda b: abs(b - SHIPPED)):
        made = partial(with_bits, shipped, bits)
        found["bits"][bits] = asked(f"{bits}-bits", made, passages)
    for channels in reversed(CHANNELS):
        made = partial(closed_form, channels, train)
        found["channels"][channels] = asked(f"{channels}-channels", made, passages)
        write_whole(HERE / "curve.json", json.dumps(found, indent=1))


if __name__ == "__main__":
    main(*sys.argv[1:])
