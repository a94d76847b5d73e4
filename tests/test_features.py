"""What frozen parts gave, shared by runs and by processes."""

import json
import multiprocessing
import time
import warnings
from dataclasses import replace
from threading import Thread

import pytest
import torch
from test_alarms import quick  # noqa: F401 (a fixture)
from test_recipes import lm  # noqa: F401 (a fixture)

from latentwire.lm.adapters import lora_config
from latentwire.lm.tokenizer import TOKENIZING
from latentwire.runs.features import Features
from latentwire.wire import training as recipes
from latentwire.wire.training import train_wire

ROUNDS = 60


def tensors(number: int) -> dict[str, torch.Tensor]:
    made = torch.arange(20_000, dtype=torch.float32) * number
    return {"a": made.view(100, 200), "b": made[:5].half()}


def write_all(reader, folder, start) -> None:
    """One of several writers of the same entries; each waits for the others, to meet them."""
    features = Features(reader, folder)
    start.wait()
    for number in range(ROUNDS):
        found = features("x", [torch.tensor(number)], lambda n=number: tensors(n))
        assert all(torch.equal(found[k], v) for k, v in tensors(number).items())


def test_processes_that_write_the_same_entries(lm, tmp_path):  # noqa: F811
    fork = multiprocessing.get_context("fork")
    start = fork.Barrier(2)
    pair = [fork.Process(target=write_all, args=(lm, tmp_path, start)) for _ in range(2)]
    for process in pair:
        process.start()
    for process in pair:
        process.join()
    assert [p.exitcode for p in pair] == [0, 0]
    files = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert len(files) == ROUNDS and {p.suffix for p in files} == {".safetensors"}
    features = Features(lm, tmp_path)
    for number in range(ROUNDS):
        found = features("x", [torch.tensor(number)], lambda: pytest.fail("it is there"))
        assert all(torch.equal(found[k], v) for k, v in tensors(number).items())
    assert features.size() == sum(p.stat().st_size for p in files) > ROUNDS * 80_000


def test_an_entry_is_of_all_that_it_follows_from(lm, tmp_path):  # noqa: F811
    features = Features(lm, tmp_path)
    part = torch.tensor([1, 2])

    def ask(of=features, what="x", parts=(part,), answer=1.0):
        return of(what, list(parts), lambda: {"v": torch.tensor(answer)})["v"].item()

    assert ask() == 1.0 and ask(answer=2.0) == 1.0
    others = [(part.float(),), (part[:, None],), (part, part), (part + 1,)]
    assert [ask(parts=p, answer=float(i)) for i, p in enumerate(others, 2)] == [2.0, 3.0, 4.0, 5.0]
    assert ask(what="y", answer=6.0) == 6.0
    with torch.autocast("cpu", torch.bfloat16):
        assert ask(answer=7.0) == 7.0
    # An adapter that is off changes nothing that is computed, and one that is on does.
    on = lm.add_lora("some", lora_config(lm.model.config, 2, 1))
    assert ask(of=Features(lm, tmp_path), answer=9.0) == 1.0
    assert ask(of=Features(on, tmp_path), answer=10.0) == 10.0
    # What a model computes is in its config too.
    lm.model.config.rope_parameters["rope_theta"] *= 2
    assert ask(of=Features(lm, tmp_path), answer=12.0) == 12.0
    lm.model.config.rope_parameters["rope_theta"] /= 2
    lm.model.config._name_or_path = "another/place"
    assert ask(of=Features(lm, tmp_path), answer=13.0) == 1.0
    # One weight of the last block.
    with torch.no_grad():
        list(lm.model.parameters())[-1].view(-1)[-1] += 1e-3
    assert ask(of=Features(lm, tmp_path), answer=8.0) == 8.0


def test_a_damaged_entry_is_made_anew(lm, tmp_path):  # noqa: F811
    features = Features(lm, tmp_path)
    features("x", [], lambda: tensors(3))
    (path,) = tmp_path.rglob("*.safetensors")
    path.write_bytes(path.read_bytes()[:1000])
    assert torch.equal(features("x", [], lambda: tensors(3))["a"], tensors(3)["a"])
    assert features.written == 2 and features.read == 0
    features("x", [], lambda: pytest.fail("it is there"))


def test_a_folder_that_cannot_be_written_costs_only_the_cache(lm, tmp_path):  # noqa: F811
    (tmp_path / "file").write_text("")
    features = Features(lm, tmp_path / "file" / "features")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert torch.equal(features("x", [], lambda: tensors(2))["b"], tensors(2)["b"])
    assert "features are not kept" in str(caught[0].message) and features.written == 0


def test_a_run_that_finds_everything_trains_the_same(lm, quick, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setenv("LATENTWIRE_FEATURES", str(tmp_path / "features"))
    first = train_wire(replace(quick, out=tmp_path / "a"))
    # Nothing frozen is computed again by a run that only differs in what is trained.
    monkeypatch.setattr(recipes, "attention_received", lambda *_: pytest.fail("it is there"))
    monkeypatch.setattr(
        type(lm), "shifted_hidden", forbidden_without_gradient(type(lm).shifted_hidden)
    )
    probes = dict.fromkeys(("check_text", "check_latents"), lambda *_: {})
    for name, probe in probes.items():
        monkeypatch.setattr(recipes, name, probe)
    second = train_wire(replace(quick, out=tmp_path / "b"))
    weights = "wire/wire.safetensors"
    assert (first / weights).read_bytes() == (second / weights).read_bytes()
    losses = [
        [json.loads(row)["loss"] for row in (folder / "metrics.jsonl").open()]
        for folder in (first, second)
    ]
    assert losses[0] == losses[1]


def forbidden_without_gradient(right):
    def predicting(*arguments):
        assert torch.is_grad_enabled(), "the teacher is computed again"
        return right(*arguments)

    return predicting


def test_ids_are_remembered_and_right(lm, monkeypatch):  # noqa: F811
    expected = {t: lm.tokenizer(t, add_special_tokens=False).input_ids for t in ("a", "bc", "a é")}
    monkeypatch.setattr("latentwire.lm.tokenizer.REMEMBERED", 2)
    for _ in range(3):
        for text, ids in expected.items():
            assert lm.tokenize(text).tolist() == ids
    assert len(lm._known) <= 2


def test_threads_do_not_step_over_the_most_texts_that_are_remembered(lm, monkeypatch):  # noqa: F811
    monkeypatch.setattr("latentwire.lm.tokenizer.REMEMBERED", 2)
    lm._known.clear()
    lm.tokenize("first")
    threads = [Thread(target=lm.tokenize, args=(text,)) for text in ("a", "b", "c")]
    with TOKENIZING:
        for thread in threads:
            thread.start()
        time.sleep(0.2)  # until all of them wait for the tokenizer
    for thread in threads:
        thread.join()
    lm.tokenize("last")
    assert len(lm._known) <= 2
