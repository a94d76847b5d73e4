"""A wire in lm-evaluation-harness: the real harness on a tiny model and a local file. It is 330 MB
with what it needs, so it is no part of `make install`; without it these tests are left out."""

import json
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from test_commands import ROWS
from tiny import tiny_lm

from latentwire.evals.baselines import closed_book, full_text
from latentwire.evals.metrics import f1
from latentwire.lm import FrozenLM, Prompt
from latentwire.tasks.qa import answers, ask, question_ids
from latentwire.wire.wire import Wire, WireConfig

lm_eval = pytest.importorskip("lm_eval", reason="needs pip install 'latentwire[lm-eval]'")
tasks = pytest.importorskip("lm_eval.tasks")

from latentwire.lm_eval import WireLM  # noqa: E402

EXAMPLES = Path(__file__).parent.parent / "examples" / "lm_eval"


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A saved wire of a tiny model, and questions."""
    lm = tiny_lm("llama")
    monkeypatch.setattr(FrozenLM, "from_pretrained", classmethod(lambda *_: lm))
    torch.manual_seed(0)
    wire = Wire(lm, WireConfig("tiny-llama", rank=4, window=64))
    torch.nn.init.normal_(wire.scorer.weight)
    wire.save_pretrained(tmp_path / "wire")
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    return tmp_path


def run(folder, task, **arguments):
    data = {"data": str(folder / "rows.jsonl")}
    manager = tasks.TaskManager(include_path=str(EXAMPLES), include_defaults=False, metadata=data)
    given = {"wire": str(folder / "wire"), **arguments}
    return lm_eval.simple_evaluate(
        "latentwire", given, [task], task_manager=manager, bootstrap_iters=0, batch_size=2
    )


def test_the_harness_asks_what_ask_answers_and_full_text_stands_beside_it(folder):
    wire = Wire.from_pretrained(folder / "wire")
    expected = {"latents": [], "full_text": [], "closed_book": []}
    for row in ROWS:
        (message,) = wire.at(2).send([row["context"]])
        expected["latents"] += ask(wire.at(2), message, [row["question"]])
        for name, condition in {"full_text": full_text, "closed_book": closed_book}.items():
            prefix = condition(wire.lm)([row["context"]])
            given = answers(wire.lm, [row["question"]], prefix, soft_prompt=wire.format)
            expected[name] += given
    assert len({tuple(given) for given in expected.values()}) == 3
    for condition, given in expected.items():
        out = run(folder, "latentwire_qa", condition=condition, ratio=2)
        samples = out["samples"]["latentwire_qa"]
        assert [sample["filtered_resps"][0] for sample in samples] == given
        mean = sum(f1(a, r["answers"]) for a, r in zip(given, ROWS, strict=True)) / len(ROWS)
        assert out["results"]["latentwire_qa"]["f1,none"] == pytest.approx(mean)


def test_a_needle_is_asked_for(folder):
    out = run(folder, "latentwire_needle", condition="truncated")
    asked = out["samples"]["latentwire_needle"]
    assert len(asked) == 2  # passages
    assert all(s["doc"]["answers"][0] in s["arguments"][0][0] for s in asked)
    assert out["results"]["latentwire_needle"]["copied,none"] == 0


def test_a_mistake_costs_one_line(folder, monkeypatch, capsys):
    asked = ["lm_eval", "run", "--model", "latentwire", "--include_path", str(EXAMPLES)]
    asked += ["--tasks", "latentwire_qa", "--metadata", f"data={folder}/rows.jsonl"]
    monkeypatch.setattr(sys, "argv", [*asked, "--model_args", f"wire={folder}/wire,condition=half"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_module("latentwire.lm_eval", run_name="__main__")
    assert stop.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("latentwire: condition is 'half'")


def test_without_the_harness_its_command_says_what_it_needs(monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "lm_eval.__main__", raising=False)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(SystemExit) as stop:
        runpy.run_module("latentwire.lm_eval", run_name="__main__")
    assert stop.value.code == 2
    words = "latentwire.lm_eval needs lm_eval: pip install 'latentwire[lm-eval]'"
    assert capsys.readouterr().err == f"latentwire: {words}\n"


def requests(*args):
    return [SimpleNamespace(args=one, task_name="boolq") for one in args]


def test_continuations_are_scored_behind_latents(folder):
    model = WireLM(wire=str(folder / "wire"), batch_size=3)
    wire, lm = model.reader, model.reader.lm
    asked = [
        (f"{row['context']}\n\n{row['question']}", answer)
        for row in ROWS
        for answer in (" yes", " no, never")
    ]
    scored = model.loglikelihood(requests(*asked), disable_tqdm=True)
    for (context, answer), (score, greedy) in zip(asked, scored, strict=True):
        document, question = context.split("\n\n")
        prefix = wire.receive(wire.send([document]))
        ids = lm.tokenize(lm.frame.answer_prefix + answer.strip())
        prompt = Prompt.of(lm, [[wire.format, question_ids(lm, question)]], prefix)
        whole = lm.last_hidden(prompt.append(lm.embed(ids)[None], torch.ones(1, len(ids)).bool()))
        logits = lm.head(whole[0, -len(ids) - 1 : -1]).double()
        expected = logits.log_softmax(-1)[torch.arange(len(ids)), ids].sum()
        assert score == pytest.approx(float(expected.detach()), abs=1e-4)
        assert greedy == bool((logits.argmax(-1) == ids).all())


def test_a_request_without_a_document_is_refused_and_another_separator_taken(folder):
    options = {"until": ["\n"], "max_gen_toks": 3}
    model = WireLM(wire=str(folder / "wire"))
    with pytest.raises(ValueError, match=r"boolq has no document before .* separator="):
        model.generate_until(requests(("Ada was born. When?", options)), disable_tqdm=True)
    with pytest.raises(ValueError, match="greedily"):
        model.generate_until(requests(("a\n\nb", {"do_sample": True})), disable_tqdm=True)
    with pytest.raises(ValueError, match="no document"):
        model.loglikelihood_rolling(requests(("a",)))
    wrong = {"condition": "half", "reader": "gpt2", "dtype": "int3", "soft_prompt": "no"}
    for name, bad in {**wrong, "batch_size": "0", "separator": ""}.items():
        with pytest.raises(ValueError, match=f"{bad!r}; expected|is empty; expected"):
            WireLM(wire=str(folder / "wire"), **{name: bad})
    with pytest.raises(ValueError, match="models are on cpu"):
        WireLM(wire=str(folder / "wire"), device="cuda:1")
    WireLM(wire=str(folder / "wire"), device="cuda:0")  # the harness's, where none was asked for
    model = WireLM(wire=str(folder / "wire"), separator="\\nWhat")
    (answer,) = model.generate_until(requests(("Ada.\n\nBob.\nWhat now?", options)), True)
    (message,) = model.reader.send(["Ada.\n\nBob."])
    assert ask(model.reader, message, ["What now?"])[0].startswith(answer)
