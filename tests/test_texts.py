"""One text where a list of texts is wanted is refused, wherever lists come in."""

from functools import cache
from pathlib import Path

import pytest
import torch
from tiny import sentence_folder, tiny_lm

from latentwire.evals import baselines
from latentwire.lens.activations import Statistics, split, tokenized
from latentwire.lens.lens import Lens, LensConfig
from latentwire.lm import Greedy, Prompt
from latentwire.lm.sentences import SentenceEncoder
from latentwire.tasks.qa import Question, answers, ask
from latentwire.train.schedules import Schedule
from latentwire.train.trackers import check_trackers, tracked
from latentwire.wire.codes.code import Code, CodeConfig
from latentwire.wire.codes.config import CodeRecipe
from latentwire.wire.codes.reader import CodeReader
from latentwire.wire.codes.wire import CodeWire, Source
from latentwire.wire.compressed_kv import head_of
from latentwire.wire.learned.config import SharedRecipe
from latentwire.wire.learned.encoders.base import EncoderConfig
from latentwire.wire.learned.shared_wire import SharedConfig, SharedWire
from latentwire.wire.text_wire import TextWire
from latentwire.wire.wire import Wire, WireConfig


@cache
def lm():
    return tiny_lm("llama")


@cache
def wire():
    return Wire(lm(), WireConfig("tiny-llama", rank=4, window=64))


@cache
def shared():
    sizes = EncoderConfig(window=64, width=16, layers=1)
    return SharedWire(SharedConfig(("tiny-llama",), "tiny-llama", sizes=sizes), {lm().name: lm()})


@cache
def codes():
    reader = CodeReader(lm(), 6, 4, 3)
    return CodeWire(Code(CodeConfig("tiny-llama", (0, 2), 6), 32), Source.of(lm()), [reader])


def checked(kind, **fields):
    """A dataclass's own check of its fields; in tests beartype would see them before it."""
    value = object.__new__(kind)
    vars(value).update(fields)
    value.__post_init__()


def sentences():
    return SentenceEncoder.from_pretrained(sentence_folder())


def lens():
    return Lens(lm(), LensConfig("tiny-llama", 1), Statistics(torch.zeros(32), 1.0, 1.0))


def prompt():
    return Prompt.from_ids(lm(), [lm().tokenize("a")])


CALLS = {
    "Wire.send": lambda text: wire().send(text),
    "Wire.encode": lambda text: wire().encode(text),
    "TextWire.send": lambda text: TextWire(lm(), [wire()]).send(text),
    "TextReader.send": lambda text: TextWire(lm(), [wire()]).readers[0].send(text),
    "SharedWire.send": lambda text: shared().send(text),
    "SharedWire.encode": lambda text: shared().encode(text),
    "SharedWire": lambda text: shared()(text),
    "SharedWire.fit": lambda text: shared().fit(text),
    "SharedWire.calibrate": lambda text: shared().calibrate(shared().adapters[0], text),
    "Reader.send": lambda text: shared().readers[0].send(text),
    "Prompt.from_text": lambda text: Prompt.from_text(lm(), text),
    "Prompt.from_chat": lambda text: Prompt.from_chat(lm(), text),
    "generate": lambda text: lm().generate(prompt(), Greedy(), 2, stop_strings=text),
    "SentenceEncoder": lambda text: SentenceEncoder.from_pretrained(sentence_folder()).vectors(
        text
    ),
    "ask": lambda text: ask(wire(), wire().send(["some context"])[0], text),
    "answers": lambda text: answers(lm(), text, head_of(lm())),
    "Lens.reconstruct": lambda text: lens().reconstruct(text),
    "tokenized": lambda text: tokenized(lm(), text, 64, 0),
    "split": lambda text: split(text, 0.5),
    "check_trackers": lambda text: check_trackers(text),
    "tracked": lambda text: tracked(text, Path(), "train", 0).__enter__(),
    "Schedule.parse": lambda text: Schedule.parse(text),
    "full_text": lambda text: baselines.full_text(lm())(text),
    "truncated": lambda text: baselines.truncated(lm(), len)(text),
    "truncated_bytes": lambda text: baselines.truncated_bytes(lm(), len)(text),
    "truncated_zstd": lambda text: baselines.truncated_zstd(lm(), len)(text),
    "pruned": lambda text: baselines.pruned(lm(), len)(text),
    "replayed": lambda text: baselines.replayed(lm())(text),
    "Question": lambda text: checked(Question, answers=text),
    "SharedConfig.readers": lambda text: checked(SharedConfig, readers=text),
    "SharedRecipe.data": lambda text: checked(SharedRecipe, data=text),
    "CodeRecipe.readers": lambda text: checked(CodeRecipe, readers=text),
    "CodeWire.send": lambda text: codes().send(text),
    "CodeReader.send": lambda text: codes().readers[0].send(text),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=list(CALLS))
def test_one_text_is_refused_in_one_line(call):
    with pytest.raises(TypeError) as error:
        call("A dog is brown, and this text is longer.")
    assert str(error.value).endswith("such as ['A dog is brown, and ']")
    assert "one text; expected a list of texts" in str(error.value)
    assert "\n" not in str(error.value)
