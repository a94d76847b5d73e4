"""Wires say where they were never measured, and `latentwire fit` makes one of any model."""

import json
import re
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_codes import fitted
from test_commands import run
from test_recipes import data, lm, recipe  # noqa: F401 (fixtures)
from test_store import make_wire
from tiny import tiny_lm

from latentwire.tasks.qa import ask
from latentwire.terminal import printable
from latentwire.train.loop import LoopConfig
from latentwire.wire import config
from latentwire.wire.codes.wire import CodeWire
from latentwire.wire.config import Measured, read_config
from latentwire.wire.folder import WireError, folder_of
from latentwire.wire.training import train_wire
from latentwire.wire.wire import Wire

LONG = (
    "a text is longer than the 20 tokens that this wire was trained on; how well .* never measured"
)
HIGH = "this wire was trained at up to 8x and is asked for more; how well .* never measured"


@pytest.fixture(autouse=True)
def nothing_told():
    config._warn_once.cache_clear()


def test_a_longer_text_and_a_higher_ratio_are_told_once_and_saved(tmp_path):
    wire = make_wire()
    wire.measured = Measured(20, 8)
    wire.save_pretrained(tmp_path)
    wire = Wire.from_pretrained(tmp_path, wire.lm)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        wire.at(8).send(["Ada was born."])
        assert not told
        for text in ("Ada was born in 1815.", "The Elbe is a long river."):
            wire.at(9).send([text])
    assert [
        bool(re.match(words, str(one.message)))
        for words, one in zip((LONG, HIGH), told, strict=True)
    ] == [True] * 2


@pytest.mark.parametrize("measured", [None, -1, "x", {"tokens": -5}, {"ratio": float("nan")}])
def test_a_damaged_record_is_refused_and_a_folder_without_one_warns_of_nothing(tmp_path, measured):
    wire = make_wire()
    wire.save_pretrained(tmp_path)
    record = json.loads((tmp_path / "config.json").read_text())
    assert "measured" not in record
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Wire.from_pretrained(tmp_path, wire.lm).at(99).send(["Ada was born in 1815."])
    (tmp_path / "config.json").write_text(json.dumps({**record, "measured": measured}))
    with pytest.raises(WireError, match=r"(measured|tokens)\S* is .*; expected") as error:
        Wire.from_pretrained(tmp_path, wire.lm)
    assert "\n" not in str(error.value)


def test_a_wire_of_codes_tells_too(tmp_path):
    wire = fitted(tiny_lm("llama"), tiny_lm("qwen3"), 8)
    (message,) = wire.send(["Ada was born in 1815."])
    (reader,) = wire.readers
    reader.measured = Measured(20, 8)
    wire.save_pretrained(tmp_path)
    lms = {one.name: one for one in (wire.source, reader.lm)}
    (reader,) = CodeWire.from_pretrained(tmp_path, lms).at(9).readers
    with pytest.warns(UserWarning, match=HIGH), pytest.warns(UserWarning, match=LONG):
        reader.receive([message])


@pytest.mark.parametrize("name", ["default", "shared"])
def test_shipped_wires_say_what_they_were_trained_on(name):
    folder = folder_of(name)
    for reader in (folder,) if name == "default" else sorted(folder.glob("reader-*")):
        assert read_config(reader)["measured"] == {"tokens": 512, "ratio": 16}


def test_the_shipped_codes_too():
    record = json.loads((folder_of("interlingua") / "config.json").read_text())
    assert [r["measured"] for r in record["readers"]] == [{"tokens": 600, "ratio": 4}] * 2


def test_a_training_records_its_longest_text_and_its_highest_ratio(lm, data, tmp_path):  # noqa: F811
    nothing = LoopConfig(steps=0, lr=1.0)
    made = replace(recipe(data, tmp_path / "run"), format=nothing, slots=nothing, ratios=(2, 6))
    wire = Wire.from_pretrained(train_wire(made) / "wire", lm)
    contexts = {json.loads(line)["context"] for line in Path(data).read_text().splitlines()}
    assert wire.measured == Measured(max(len(lm.tokenize(c)) for c in contexts), 6)


def test_fit_makes_a_wire_that_ask_eval_and_serve_take(lm, data, tmp_path, monkeypatch, capsys):  # noqa: F811
    folder = str(tmp_path / "fitted")
    asked = ["fit", "tiny-llama", "--data", data, "--run", folder, "--passages", "4"]
    status, out, err = run(monkeypatch, capsys, *asked, "--window", "64")
    assert (status, out) == (0, f"fitted: {folder}/wire\n"), err
    wire = Wire.from_pretrained(f"{folder}/wire", lm)
    assert wire.config.rank == wire.config.format_tokens == 0 and wire.ratio == 4
    assert wire.scorer.weight.abs().sum() > 0
    text = "Ada was born in 1815."
    (message,) = wire.send([text])
    expected = ask(wire, message, ["Who?"])[0]
    (tmp_path / "a.txt").write_text(text)
    status, out, err = run(
        monkeypatch,
        capsys,
        "ask",
        "--wire",
        f"{folder}/wire",
        "--context",
        f"{tmp_path}/a.txt",
        "Who?",
    )
    assert status == 0 and out.startswith(printable(expected)), err
    plain = Wire.of(lm, "key_norm").send([text])[0].latents
    assert not torch.equal(message.latents.positions, plain.positions)
    status, out, err = run(
        monkeypatch, capsys, "eval", f"{folder}/wire", "--data", data, "--limit", "4"
    )
    assert status == 0 and "wire" in out, err
    status, _, err = run(monkeypatch, capsys, *asked, "--window", "64", "--ratio", "0")
    assert status == 2 and "ratio is 0" in err and len(err.splitlines()) == 1
