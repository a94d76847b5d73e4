"""A run is gone on with only while all that it follows from is the same; each row counts once."""

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Event

import pytest
import torch
from test_commands import run
from test_lens_recipes import recipe as lens_recipe
from test_lens_recipes import text  # noqa: F401 (a fixture)
from test_recipes import data, lm  # noqa: F401 (fixtures)
from test_recipes import recipe as wire_recipe
from test_seek_recipe import recipe  # noqa: F401 (a fixture)
from test_sweep import at_once, reader, small  # noqa: F401 (fixtures)
from tiny import sentence_folder, tiny_lm, tokenizer, write_sentences

import latentwire
from latentwire.files import LOCK, owned
from latentwire.lens.training import train_lens
from latentwire.lm import FrozenLM
from latentwire.lm.identity import basis, identity
from latentwire.lm.sentences import SentenceEncoder
from latentwire.seek.recipe import load_task
from latentwire.seek.run import run_seek
from latentwire.tasks.base import DataError, Task
from latentwire.tasks.qa import load_questions
from latentwire.train.loop import LoopConfig
from latentwire.wire.evaluation import evaluate_wire
from latentwire.wire.learned.encoders.base import EncoderConfig
from latentwire.wire.learned.shared_wire import SharedConfig, SharedWire
from latentwire.wire.sweep import Evaluation, run_sweep
from latentwire.wire.training import train_wire
from latentwire.wire.wire import Wire, WireConfig

CONFIG = WireConfig("tiny-llama", window=64, rank=4, format_tokens=3)


@torch.no_grad()
def nudge(lm: FrozenLM, by: float) -> None:  # noqa: F811
    """Another last norm, which no fingerprint of messages reads."""
    lm.body.norm.weight[-1] += by


def contents(folder: Path) -> dict[Path, bytes]:
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def differing(one: FrozenLM, other: FrozenLM) -> set[str]:
    first, second = identity(one), identity(other)
    return {part for part in first if first[part] != second[part]}


def test_an_identity_sees_every_tensor():
    model = tiny_lm("llama")
    seen = {identity(model)["weights"]}
    tensors = model.model.state_dict()
    for tensor in tensors.values():
        with torch.no_grad():
            tensor.view(-1)[-1] += 1e-3
        seen.add(identity(model)["weights"])
    assert len(seen) == 1 + len(tensors) and any("norm" in name for name in tensors)
    assert differing(tiny_lm("llama"), tiny_lm("llama")) == set()


def test_an_identity_sees_tokenizer_template_config_and_stop_ids():
    def changed(change) -> FrozenLM:
        model = tiny_lm("llama")
        change(model)
        return FrozenLM(model.model, model.tokenizer, model.name)

    for change, part in [
        (lambda m: m.tokenizer.add_tokens(["zebra"]), "tokenizer"),
        (lambda m: setattr(m.tokenizer, "chat_template", "{{ messages }}"), "chat_template"),
        (lambda m: setattr(m.model.generation_config, "eos_token_id", [2, 9]), "stop_ids"),
        (lambda m: m.model.config.rope_parameters.update(rope_theta=5.0), "config"),
    ]:
        assert differing(tiny_lm("llama"), changed(change)) == {part}
    # What a call leaves behind in a tokenizer is no other tokenizer.
    used = tiny_lm("llama")
    used.tokenizer(["a", "bcd"], padding=True, truncation=True, max_length=2)
    used.tokenize("a")
    assert differing(tiny_lm("llama"), used) == set()


def test_an_identity_of_a_sentence_encoder(tmp_path):
    one, same = (SentenceEncoder.from_pretrained(sentence_folder()) for _ in range(2))
    other = SentenceEncoder.from_pretrained(write_sentences(tmp_path, seed=1))
    assert identity(one) == identity(same)
    assert identity(one)["weights"] != identity(other)["weights"]


def test_another_build_is_no_other_release(monkeypatch):
    monkeypatch.setattr(torch, "__version__", "9.1.0+cu128")
    versions = basis({})["versions"]
    assert versions["torch"] == "9.1.0" and versions["latentwire"] == latentwire.__version__
    assert set(versions) == {"latentwire", "torch", "transformers"}


def test_an_evaluation_of_a_reader_that_was_replaced_is_refused(lm, data, tmp_path):  # noqa: F811
    wire, folder = Wire(lm, CONFIG), tmp_path / "run"
    first = evaluate_wire(wire, data, 8, folder)
    kept = contents(folder)
    nudge(lm, 0.5)
    refused = (
        r"run holds another run \(models.reader.weights is \w+ there, \w+ here\); give another"
    )
    with pytest.raises(ValueError, match=refused):
        evaluate_wire(wire, data, 8, folder)
    assert contents(folder) == kept
    nudge(lm, -0.5)
    assert evaluate_wire(wire, data, 8, folder)["rows"] == first["rows"]
    other = FrozenLM(lm.model, tokenizer(), lm.name)
    other.tokenizer.add_tokens(["born"])
    with pytest.raises(ValueError, match=r"models.reader.tokenizer is"):
        evaluate_wire(Wire(other, CONFIG), data, 8, folder)


def test_what_was_trained_for_one_reader_counts(lm, data, tmp_path):  # noqa: F811
    sizes = EncoderConfig(window=32, width=64, layers=1)
    config = SharedConfig(("tiny-llama",), "tiny-llama", sizes=sizes, trunk_layers=1)
    (reader,) = SharedWire(config, {"tiny-llama": lm}).eval().readers  # noqa: F811
    evaluate_wire(reader, data, 4, tmp_path / "run")
    wire_id = reader.id
    with torch.no_grad():
        reader.format[0, 0] += 1
    assert reader.id == wire_id  # messages are the same
    with pytest.raises(ValueError, match=r"another run \(trained is \w+ there, \w+ here\)"):
        evaluate_wire(reader, data, 4, tmp_path / "run")


def test_rows_that_two_processes_left_count_once(lm, data, tmp_path):  # noqa: F811
    wire, folder = Wire(lm, CONFIG), tmp_path / "run"
    whole = evaluate_wire(wire, data, out=folder)
    path = folder / "predictions.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    # A passage has two questions: of the last, the last row of the last condition is missing.
    path.write_text("".join(lines[:7] + lines[:-1]))
    again = evaluate_wire(wire, data, out=folder)
    assert again["n"] == whole["n"] == 16

    def asked(rows: list[str]) -> list[tuple[str, str]]:
        return sorted((row["condition"], row["id"]) for row in map(json.loads, rows))

    assert asked(path.read_text().splitlines()) == asked(lines)


def test_a_training_on_other_weights_or_releases_is_refused(lm, data, tmp_path, monkeypatch):  # noqa: F811
    loop = LoopConfig(steps=1, lr=0.01, warmup=1)
    asked = replace(wire_recipe(data, tmp_path / "run"), format=loop, slots=loop)
    train_wire(asked)
    kept = contents(tmp_path / "run")
    nudge(lm, 0.5)
    with pytest.raises(ValueError, match=r"another config \(models.tiny-llama.weights is"):
        train_wire(asked)
    nudge(lm, -0.5)
    monkeypatch.setattr(latentwire, "__version__", "9.0")
    with pytest.raises(ValueError, match=r"\(versions.latentwire is 0.1.0 there, 9.0 here\)"):
        train_wire(asked)
    assert contents(tmp_path / "run") == kept
    monkeypatch.undo()
    log = tmp_path / "run" / "metrics.jsonl"
    log.write_text(log.read_text() * 2)  # as two trainings in one folder left it
    monkeypatch.setattr(FrozenLM, "from_pretrained", classmethod(lambda *_: lm))
    train_wire(asked)
    assert log.read_bytes() == kept[log]


def test_a_search_of_another_model_or_answer_key_is_refused(lm, recipe, tmp_path):  # noqa: F811
    folder = tmp_path / "run"
    first = run_seek(lm, recipe, folder)
    kept = contents(folder)
    nudge(lm, 0.5)
    with pytest.raises(ValueError, match=r"another run \(models.model.weights is"):
        run_seek(lm, recipe, folder)
    assert contents(folder) == kept
    nudge(lm, -0.5)
    path = folder / "predictions.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:2] + lines[:2] + lines[2:3]))
    again = run_seek(lm, recipe, folder)
    assert {**again, "curves": 0} == {**first, "curves": 0}
    assert [json.loads(line)["id"] for line in path.open()] == [f"s{i}" for i in range(5)]


def test_a_lens_of_another_model_is_refused(text, tmp_path, monkeypatch):  # noqa: F811
    def load(by: float) -> None:
        def loaded(*_) -> FrozenLM:  # a new one each time: a training adds adapters
            model = tiny_lm("llama")
            nudge(model, by)
            return model

        monkeypatch.setattr(FrozenLM, "from_pretrained", loaded)

    load(0.0)
    given = lens_recipe(text, tmp_path / "run", warm=LoopConfig(steps=1, lr=0.01, warmup=1))
    given = replace(given, refine="none", data=replace(given.data, dump=tmp_path / "dump"))
    train_lens(given)
    load(0.5)
    with pytest.raises(ValueError, match=r"another config \(models\..*weights is"):
        train_lens(given)
    with pytest.raises(ValueError, match="was dumped with weights"):
        train_lens(replace(given, out=tmp_path / "other"))
    load(0.0)
    assert train_lens(given) == given.out


def test_a_sweep_over_another_model_is_refused(small, at_once, tmp_path):  # noqa: F811
    model = tmp_path / "model"
    shutil.copytree(small.wire.reader, model)
    grid = {"a": replace(small, wire=replace(small.wire, reader=str(model)))}
    asked, out = Evaluation(small.data, limit=4), tmp_path / "s"
    first = run_sweep(grid, out, asked)
    assert first["members"]["a"]["error"] is None
    kept = contents(out)
    changed = FrozenLM.from_pretrained(str(model))
    nudge(changed, 0.5)
    changed.model.save_pretrained(model)
    with pytest.raises(
        ValueError, match=r"s/a holds a run with another config \(models\..*weights"
    ):
        run_sweep(grid, out, asked)
    assert contents(out) == kept


ROWS = [
    {"id": "1", "context": "The tram is blue.", "question": "Which colour?", "answers": ["blue"]},
    {"id": "2", "context": "Eve lives in Bonn.", "question": "Where?", "answers": ["Bonn"]},
    {"id": "1", "context": "Eve lives in Bonn.", "question": "Who?", "answers": ["Eve"]},
]


def test_two_questions_of_one_id_are_refused(lm, tmp_path, monkeypatch, capsys):  # noqa: F811
    path, folder = tmp_path / "d.jsonl", tmp_path / "run"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    with pytest.raises(DataError, match=r"d.jsonl: two questions have the id '1'; expected one"):
        evaluate_wire(Wire(lm, CONFIG), str(path), out=folder)
    assert not folder.exists()
    assert len(load_questions(str(path), limit=2)) == 2
    status, _, err = run(monkeypatch, capsys, "train", "smollm2-4x", "--data", str(path))
    assert status == 2 and "two questions have the id '1'" in err and err.count("\n") == 1


def test_a_given_task_with_an_id_twice_is_refused(lm, recipe):  # noqa: F811
    whole = load_task(recipe)
    twice = Task("sums", whole.problems[:1] * 2, whole.grade)
    with pytest.raises(DataError, match="sums: two problems have the id 's0'"):
        run_seek(lm, recipe, task=twice)


@contextmanager
def held_elsewhere(folder: Path) -> Iterator[None]:
    taken, done = Event(), Event()

    def hold() -> None:
        with owned(folder):
            taken.set()
            done.wait()

    with ThreadPoolExecutor(1) as pool:
        pool.submit(hold)
        taken.wait()
        try:
            yield
        finally:
            done.set()


@pytest.mark.parametrize(
    "command",
    [
        "eval default --data {data} --run run",
        "eval shared --data {data} --run run",
        "train smollm2-4x --data {data} --out run",
        "train shared-4x --data {data} --out run",
        "lens train smollm2 --text d.txt --out run",
        "seek smollm2-135m --data sums.jsonl --reward confidence --run run",
        "sweep grid.py --data {data} --run run",
    ],
)
def test_a_folder_in_use_is_refused_before_a_model_is_loaded(
    command,
    data,  # noqa: F811
    tmp_path,
    monkeypatch,
    capsys,
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(FrozenLM, "from_pretrained", None)
    grid = "from latentwire.wire.recipe import smollm2_4x\ngrid = {'a': smollm2_4x()}\n"
    Path("grid.py").write_text(grid)
    Path("d.txt").write_text("One document.\n\nAnother document.\n")
    Path("sums.jsonl").write_text('{"question": "1 + 1?", "answer": "2"}\n')
    with held_elsewhere(Path("run")):
        status, out, err = run(monkeypatch, capsys, *command.format(data=data).split())
        assert [p.name for p in Path("run").iterdir()] == [LOCK]
    assert status == 2 and not out and err.count("\n") == 1, err
    assert "run is in use by another process; wait until that ends" in err
