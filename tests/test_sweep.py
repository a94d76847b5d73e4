"""Grids of trainings, and work handed out by Ray: a local one of two workers."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import jobs
import pytest
import torch
from ray import cloudpickle
from ray.cluster_utils import Cluster
from test_commands import run
from test_recipes import data, recipe  # noqa: F401 (data: a fixture)
from tiny import tiny_lm

from latentwire.__main__ import main
from latentwire.evals import harness
from latentwire.lm import FrozenLM
from latentwire.report.sweep import matrix
from latentwire.runs.workers import on_ray, run_isolated
from latentwire.train.loop import LoopConfig
from latentwire.wire import sweep as sweeps
from latentwire.wire.learned.config import SharedRecipe
from latentwire.wire.learned.encoders import ENCODERS
from latentwire.wire.learned.encoders.base import EncoderConfig
from latentwire.wire.learned.injectors import INJECTORS
from latentwire.wire.learned.objectives import Objectives
from latentwire.wire.learned.shared_wire import SharedConfig, SharedWire
from latentwire.wire.learned.training import load_models, train_shared
from latentwire.wire.sweep import KINDS, Evaluation, load_grid, run_sweep
from latentwire.wire.text_wire import TextWire
from latentwire.wire.training import WireRecipe
from latentwire.wire.wire import Wire, WireConfig, WireError

TIMES = {f"{name}ttft_{unit}" for name in ("", "encode_") for unit in ("ratio", "seconds")}
TIMES |= {"text_ttft_seconds"}


@pytest.fixture(scope="module")
def ray():
    """The address of a Ray with two workers."""
    # A machine that runs all tests at once is slow to start one.
    os.environ["RAY_raylet_start_wait_time_s"] = "300"  # noqa: SIM112
    started = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 2,
            "include_dashboard": False,
            "object_store_memory": 80 * 2**20,
        },
    )
    cloudpickle.register_pickle_by_value(jobs)  # its workers do not see the tests' folder
    yield started.address
    started.shutdown()


@pytest.fixture(scope="module")
def reader(tmp_path_factory) -> str:
    """A tiny model in a folder, which every process can load."""
    folder, lm = tmp_path_factory.mktemp("models") / "tiny", tiny_lm("llama")
    lm.model.save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def small(reader, data) -> WireRecipe:  # noqa: F811
    made = recipe(data, None)
    loop = LoopConfig(steps=2, lr=0.01, warmup=1)
    return replace(made, wire=replace(made.wire, reader=reader), format=loop, slots=loop)


@pytest.fixture
def at_once(monkeypatch):
    """Members run in this process."""

    def in_turn(job, arguments, _address):
        for name, given in arguments.items():
            job(*given)
            yield name, None

    monkeypatch.setattr(sweeps, "run_isolated", in_turn)


def without_times(result):
    return {k: v for k, v in result.items() if k not in TIMES}


@pytest.mark.parametrize("by", ["here", "ray"])
def test_a_killed_job_stops_no_other(by, request, tmp_path):
    address = request.getfixturevalue("ray") if by == "ray" else None
    asked = {text: (tmp_path / text, text) for text in ("a", "die", "b")}
    ended = dict(run_isolated(jobs.do, asked, address))
    assert set(ended) == set(asked) and ended["a"] is ended["b"] is None
    assert ended["die"] and "\n" not in ended["die"]
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"a": "a", "b": "b"}


def test_a_worker_that_died_begins_again_however_large_its_work(ray, tmp_path, capfd):
    build = partial(jobs.doubling, tmp_path / "died", "x" * 1_000_000)
    assert list(on_ray(ray, object)(build, [1, 2, 3, 4])) == [2, 4, 6, 8]
    assert (tmp_path / "died").exists()
    assert "arguments in the object store" not in capfd.readouterr().err


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_sweep_that_is_stopped_stops_its_member_once(sent, tmp_path):
    code = (
        "import pathlib, jobs; from latentwire.runs.workers import run_isolated; "
        f"list(run_isolated(jobs.wait, {{'a': (pathlib.Path({str(tmp_path)!r}),)}}, None))"
    )
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    sweep = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path},
        # What runs in the background of a shell ignores Ctrl-C, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while not (tmp_path / "began").exists():
        assert sweep.poll() is None
        time.sleep(0.05)
    sweep.send_signal(sent)
    assert sweep.wait(60) == (143 if sent == signal.SIGTERM else -signal.SIGINT)
    # It was waited for, and its second signal, which ends a training at once, did not come.
    assert (tmp_path / "came").read_text() == "15"


def test_members_fail_alone_and_are_tried_again(small, at_once, tmp_path):
    late = tmp_path / "late.jsonl"
    grid = {"late": replace(small, data=str(late)), "whole": small}
    asked, said = Evaluation(small.data, limit=4, bits=(16, 4)), []
    first = run_sweep(grid, tmp_path / "s", asked, said=said.append)
    assert "no such file" in first["members"]["late"]["error"]
    whole = first["members"]["whole"]
    assert whole["error"] is None and set(whole["evaluations"]) == {"16", "4"}
    assert said[0].startswith("late: DataError") and said[1] == "whole: done"
    log = tmp_path / "s" / "whole" / "metrics.jsonl"
    trained = log.read_text(), log.stat().st_mtime_ns

    late.write_text(Path(small.data).read_text())
    again = run_sweep(grid, tmp_path / "s", asked, said=said.append)
    assert said[2:] == ["whole: done before", "late: done"]
    assert trained == (log.read_text(), log.stat().st_mtime_ns)
    assert again["members"]["whole"] == whole
    # The two differ in where their data is, and in nothing else.
    one, two = (again["members"][n]["evaluations"]["4"] for n in grid)
    assert one["rows"] == two["rows"] and one["bits"] == 4
    assert again == json.loads((tmp_path / "s" / "results.json").read_text())


def test_what_members_are_asked_is_read_before_any_is_trained(small, tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        run_sweep({"a": small}, tmp_path / "s", Evaluation(str(tmp_path / "none.jsonl")))
    assert not (tmp_path / "s").exists()


def test_a_member_that_is_asked_something_else_is_run_again(small, at_once, tmp_path):
    said, out = [], tmp_path / "s"
    run_sweep({"a": small}, out, Evaluation(small.data, limit=4), said=said.append)
    other = run_sweep({"a": small}, out, Evaluation(small.data, limit=6), said=said.append)
    assert said == ["a: done"] * 2 and other["members"]["a"]["evaluations"]["16"]["n"] == 6
    changed = replace(small, seed=5)
    result = run_sweep({"a": changed}, out, Evaluation(small.data), said=said.append)
    assert "holds a run with another config" in result["members"]["a"]["error"]


@pytest.fixture
def learned(reader, small) -> SharedRecipe:
    sizes = EncoderConfig(window=32, width=64, layers=1)
    wire = SharedConfig((reader,), reader, "pca", "embeddings", sizes, trunk_layers=1)
    return SharedRecipe(
        "tiny", wire, data=(small.data,), format=small.format, train=small.format, batch_size=2,
        objectives=Objectives(piece=8), held_out=2, fitted=2,
    )  # fmt: skip


def test_shared_members_beside_one_of_another_kind(small, learned, at_once, tmp_path, monkeypatch):
    monkeypatch.setenv("LATENTWIRE_FEATURES", str(tmp_path / "features"))  # of no other test
    first = train_shared(replace(learned, out=tmp_path / "first")) / "wire"
    begun = replace(learned, init_from=str(first))
    deep = replace(begun, wire=replace(learned.wire, injector="deep_prefix"))
    grid, said = {"a": begun, "b": deep, "c": small}, []
    decoded = []
    answers = harness._answers
    monkeypatch.setattr(
        harness,
        "_answers",
        lambda lm, name, *rest: decoded.append(name) or answers(lm, name, *rest),
    )
    asked = Evaluation(small.data, limit=4)
    result = run_sweep(grid, tmp_path / "s", asked, said=said.append)
    assert said == ["a: done", "b: done", "c: done"]
    assert result["factors"] == {
        "a": {"encoder": "pca", "injectors": "embeddings"},
        "b": {"encoder": "pca", "injectors": "deep_prefix"},
        "c": {},
    }
    evaluations = {name: member["evaluations"] for name, member in result["members"].items()}
    assert {name: list(made) for name, made in evaluations.items()} == {
        "a": ["4"],
        "b": ["4"],
        "c": ["16"],
    }
    name = Path(learned.wire.readers[0]).name
    one, two = (evaluations[n]["4"]["readers"][name]["rows"] for n in "ab")
    assert one["wire"] != two["wire"]
    # Both have the first wire's soft prompt, and what says nothing of latents was asked once.
    for condition in ("text", "closed_book", "truncated_tokens", "truncated_bytes"):
        assert one[condition] == two[condition]
    assert [decoded.count(c) for c in ("truncated_bytes", "zero_latents")] == [2, 3]
    formats = [SharedWire.from_pretrained(f).readers[0].format for f in
               (first, tmp_path / "s" / "a" / "wire", tmp_path / "s" / "b" / "wire")]  # fmt: skip
    assert torch.equal(formats[0], formats[1]) and torch.equal(formats[0], formats[2])
    log = [json.loads(line) for line in (tmp_path / "s" / "a" / "metrics.jsonl").open()]
    assert {row["stage"] for row in log} == {"wire"}

    again = run_sweep(grid, tmp_path / "s", asked, said=said.append)
    assert said[3:] == ["a: done before", "b: done before", "c: done before"] and again == result
    with pytest.raises(ValueError, match="a: its codes have 4 bits; got 16: leave out --bits"):
        run_sweep(grid, tmp_path / "t", Evaluation(small.data, bits=(16, 4)))
    assert not (tmp_path / "t").exists()


def test_the_grid_of_the_table_has_every_encoder_and_every_way_in(monkeypatch):
    monkeypatch.setenv("TRAIN", "train.jsonl")
    monkeypatch.setenv("STEPS", "2")
    grid = load_grid(Path(__file__).parents[1] / "reproduce" / "wire-table" / "grid.py")
    cells = {
        (r.wire.encoder, r.wire.injector) for r in grid.values() if isinstance(r, SharedRecipe)
    }
    assert cells == {(encoder, way) for encoder in ENCODERS for way in INJECTORS}
    factors = {name: KINDS[type(recipe)].factors(recipe) for name, recipe in grid.items()}
    table = matrix({"factors": factors, "members": {name: {} for name in grid}}, [])
    assert len(table) == 1 + len(ENCODERS) and {len(row) for row in table} == {1 + len(INJECTORS)}


def test_a_wire_that_a_recipe_cannot_be_begun_with(learned, tmp_path):
    first = tmp_path / "first"
    SharedWire(learned.wire, load_models({learned.wire.source}, "float32")).save_pretrained(first)
    for begun, change, message in (
        ("nowhere", {}, "nowhere is no wire; expected a folder"),
        (first, {"format_tokens": 3}, "with 16 soft tokens; expected 3, as the recipe says"),
        (first, {"readers": ("other",)}, "expected one that has a soft prompt of other too"),
    ):
        wire = replace(learned.wire, **change)
        given = replace(learned, wire=wire, init_from=str(begun), out=tmp_path / "out")
        with pytest.raises(WireError, match=message):
            train_shared(given)
        assert not (tmp_path / "out").exists()


GRID = """
from dataclasses import replace
from latentwire.wire.training import WireRecipe
from latentwire.report.sweep import matrix
from latentwire.train.loop import LoopConfig
from latentwire.wire.wire import WireConfig

loop = LoopConfig(steps=2, lr=0.01, warmup=1)

def grid():
    base = WireRecipe("tiny", WireConfig({reader!r}, window=64, rank=4, format_tokens=3),
        data={data!r}, format=loop, slots=loop, scorer_passages=4, batch_size=2, held_out=2)
    made = {{f"{{n}}x": replace(base, wire=replace(base.wire, ratio=n)) for n in (2, 4)}}
    return made | {{"none": replace(base, data="none.jsonl")}}
"""


def test_a_sweep_on_ray(ray, reader, data, tmp_path, monkeypatch, capsys):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    Path("grid.py").write_text(GRID.format(reader=reader, data=data))
    asked = ["sweep", "grid.py", "--data", data, "--ray", ray, "--json", "o.json"]
    status, out, err = run(monkeypatch, capsys, *asked)
    assert status == 1, err
    result = json.loads(Path("o.json").read_text())
    assert [bool(m["error"]) for m in result["members"].values()] == [False, False, True]
    assert "none: DataError: none.jsonl: no such file" in out
    latents = [result["members"][n]["evaluations"]["16"]["latents_out"] for n in ("2x", "4x")]
    assert latents[0] > latents[1]
    page = Path("runs/grid/report.html").read_text()
    assert page.count("<svg") == 2 and "none.jsonl: no such file" in page


@pytest.mark.parametrize("readers", [1, 2])
def test_evaluation_on_ray_equals_that_of_one_process(
    readers,
    ray,
    reader,
    data,  # noqa: F811
    tmp_path,
    monkeypatch,
    capsys,
):
    def made(name: str) -> Wire:
        wire = Wire(FrozenLM.from_pretrained(name), WireConfig(name, rank=4, window=64))
        torch.manual_seed(0)
        torch.nn.init.normal_(wire.slots.up, std=0.05)
        return wire

    wire = made(reader)
    if readers == 2:  # of messages that are text in a code of the first one's
        shutil.copytree(reader, tmp_path / "second")
        wire = TextWire(wire.lm, [wire, made(str(tmp_path / "second"))])
    wire.save_pretrained(tmp_path / "wire")
    found = []
    for name, more in (("one", ()), ("many", ("--ray", ray))):
        folder = tmp_path / name
        asked = ["eval", str(tmp_path / "wire"), "--data", data, "--run", str(folder), *more]
        status, _, err = run(monkeypatch, capsys, *asked)
        assert status == 0, err
        parts = [folder] if readers == 1 else [folder / f"reader-{i}" for i in range(readers)]
        for part in parts:
            result = json.loads((part / "results.json").read_text())
            found.append((without_times(result), (part / "predictions.jsonl").read_bytes()))
    assert found[:readers] == found[readers:]


def test_seek_on_ray_equals_that_of_one_process(ray, reader, tmp_path, monkeypatch):
    path = tmp_path / "sums.jsonl"
    rows = [{"id": f"{i}", "question": f"{i} + {i}?", "answer": str(2 * i)} for i in range(4)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = ["--data", str(path), "--reward", "confidence", "--steps", "2", "--batch", "2"]
    common += ["--k", "0.5"]
    found = []
    for name, more in (("one", ()), ("many", ("--ray", ray))):
        run_folder = str(tmp_path / name)
        asked = ["seek", reader, *common, "--max-new-tokens", "12", "--run", run_folder, *more]
        monkeypatch.setattr(sys, "argv", ["latentwire", *asked])
        main()
        records = [json.loads(r) for r in (tmp_path / name / "predictions.jsonl").open()]
        for step in (s for r in records for arm in r["arms"].values() for s in arm["trace"]):
            step.pop("seconds")
        found.append((records, json.loads((tmp_path / name / "results.json").read_text())))
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no such file; expected Python with grid"),
        ("grid = {}", "grid is {}; expected {name: recipe}"),
        ("x = 1", "grid is None"),
        ("grid = {", "SyntaxError"),
        ("grid = {'a': 3}", "a is a int; expected a WireRecipe or SharedRecipe"),
        ("grid = {'../a': 3}", "expected a name that a folder can have"),
    ],
)
def test_a_grid_that_is_none(text, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    if text is not None:
        Path("grid.py").write_text(text)
    status, _, err = run(monkeypatch, capsys, "sweep", "grid.py")
    assert status == 2 and message in err and err.count("\n") == 1
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("address", "missing", "message"),
    [
        ("local", True, "--ray needs Ray: pip install ray"),
        ("127.0.0.1:1", False, "no Ray answers there"),
        ("nonsense", False, "no Ray answers there"),
    ],
)
def test_no_ray(address, missing, message, small, tmp_path, monkeypatch, capsys):
    if missing:
        monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.chdir(tmp_path)
    Path("grid.py").write_text(GRID.format(reader=small.wire.reader, data=small.data))
    status, _, err = run(monkeypatch, capsys, "sweep", "grid.py", "--ray", address)
    assert status == 2 and message in err and err.count("\n") == 1
