"""What a user types, mistakes first: each is one line on stderr and exit status 2."""

import io
import json
import re
import sys
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch
from test_parallel import in_two_processes
from tiny import tiny_lm

import latentwire.wire.wire as wire_module
from latentwire.__main__ import main
from latentwire.lm import FrozenLM
from latentwire.wire import evaluation
from latentwire.wire.learned.encoders.base import EncoderConfig
from latentwire.wire.learned.shared_wire import SharedConfig, SharedWire
from latentwire.wire.text_wire import TextWire
from latentwire.wire.wire import Wire, WireConfig

ROWS = [
    {"id": "1", "context": "Ada was born in 1815.", "question": "When?", "answers": ["1815"]},
    {"id": "2", "context": "Ada was born in 1815.", "question": "Who?", "answers": ["Ada"]},
    {"id": "3", "context": "The Elbe is a river.", "question": "What?", "answers": ["a river"]},
]


ROOMS = [
    {"id": str(i), "context": f"Room {i} is {c}.", "question": "What?", "answers": [c]}
    for i, c in enumerate("abcdefghijklmnopqrstuvwxyz" * 5)
]
"""As many passages as a training needs."""


@pytest.fixture
def wire(tmp_path, monkeypatch) -> str:
    """A wire's folder whose reader is a tiny model, so that commands run in a second."""
    lm = tiny_lm("llama")
    monkeypatch.setattr(FrozenLM, "from_pretrained", classmethod(lambda *_: lm))
    Wire(lm, WireConfig("tiny-llama", rank=4, window=64)).save_pretrained(tmp_path / "wire")
    return str(tmp_path / "wire")


def run(monkeypatch, capsys, *arguments: str) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["latentwire", *arguments])
    status = status_of_main()
    printed = capsys.readouterr()
    return status, printed.out, printed.err


def status_of_main() -> int:
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def write(path, text: str) -> str:
    path.write_text(text)
    return str(path)


def jsonl(rows) -> str:
    return "".join(json.dumps(r) + "\n" for r in rows)


def test_ask_answers_from_a_file(wire, tmp_path, monkeypatch, capsys):
    context = write(tmp_path / "note.txt", "The Elbe rises in the Giant Mountains. " * 5)
    status, out, _ = run(
        monkeypatch, capsys, "ask", "--context", context, "Where?", "--wire", wire, "--full-text"
    )
    assert status == 0 and "read 195 tokens as 49 latents" in out and "full text:" in out
    more = ("--wire", wire, "--keep", "The .*")
    status, out, _ = run(monkeypatch, capsys, "ask", "--context", context, "Where?", *more)
    assert status == 0 and "read 195 tokens as 195 latents" in out
    more = ("--wire", wire, "--ratio", "8")
    status, out, _ = run(monkeypatch, capsys, "ask", "--context", context, "Where?", *more)
    assert status == 0 and "read 195 tokens as 25 latents" in out


def test_ask_takes_several_questions_and_standard_input(wire, tmp_path, monkeypatch, capsys):
    context = write(tmp_path / "note.txt", "The Elbe rises in the Giant Mountains. " * 5)
    asked, alone = ("ask", "--wire", wire, "--full-text", "--context", context), []
    for question in ("Where?", "Which river?", "How high?"):
        status, out, err = run(monkeypatch, capsys, *asked, question)
        assert status == 0, err
        alone.append(out.splitlines())
    monkeypatch.setattr(sys, "stdin", io.StringIO("Which river?\n\nHow high?\n"))
    status, out, err = run(monkeypatch, capsys, *asked, "Where?", "-")
    assert status == 0, err
    answers, told, read = zip(*alone, strict=True)
    assert out.splitlines() == [*answers, told[0], *read]


def test_eval_writes_every_row_and_a_report(wire, tmp_path, monkeypatch, capsys):
    data, folder = write(tmp_path / "d.jsonl", jsonl(ROWS)), tmp_path / "run"
    asked = ("eval", wire, "--data", data, "--json", str(tmp_path / "o.json"), "--run", str(folder))
    status, _, err = run(monkeypatch, capsys, *asked)
    assert status == 0, err
    result = json.loads((tmp_path / "o.json").read_text())
    assert result == json.loads((folder / "results.json").read_text())
    names = ["text", "wire", "evicted", "truncated_tokens", "pruned_tokens", "truncated_bytes"]
    names += ["truncated_zstd", "closed_book", "zero_latents", "mismatched_latents"]
    assert list(result["rows"]) == names
    for row in result["rows"].values():
        assert {"em", "f1", "f1_low", "f1_high", "nll", "first1", "first5"} <= set(row)
    assert list(result["differences"]) == [name for name in names if name != "wire"]
    for name, gain in result["differences"].items():
        mean = result["rows"]["wire"]["f1"] - result["rows"][name]["f1"]
        assert gain["low"] <= gain["mean"] <= gain["high"] and gain["mean"] == pytest.approx(mean)
    assert result["ttft_seconds"] / result["text_ttft_seconds"] == result["ttft_ratio"]
    assert result["kv_bytes"] / result["text_kv_bytes"] == result["kv_ratio"]
    assert result["n"] == 3 and result["latents_out"] < result["tokens_in"]
    assert result["message_bytes"] > 0 and result["text_bytes"] == 20.5
    # A text of one line has nothing to compress; a frame of zstd has 9 bytes of its own.
    assert 20.5 < result["zstd_bytes"] <= 20.5 + 9 and result["bits"] == 16
    assert len((folder / "predictions.jsonl").read_text().splitlines()) == 3 * 10
    assert result["embeds_vs_ids_difference"] == 0 and "keep" not in result
    assert (result["answer_tokens"], result["cut_answers"]) == (20, 0)
    status, _, err = run(monkeypatch, capsys, *asked, "--answer-tokens", "20")
    assert status == 0, err  # the same run, said in full
    assert "<html" in (folder / "report.html").read_text()


def test_eval_counts_the_gold_answers_that_its_budget_cuts(
    wire, shared, tmp_path, monkeypatch, capsys
):
    # The shortest have 5, 4 and 8 tokens, with the space before an answer.
    rows = [{**ROWS[0], "answers": ["eighteen fifteen", "1815"]}, *ROWS[1:]]
    data, out = write(tmp_path / "d.jsonl", jsonl(rows)), tmp_path / "o.json"
    asked = ("--data", data, "--json", str(out), "--answer-tokens", "5")
    status, printed, err = run(
        monkeypatch, capsys, "eval", wire, *asked, "--run", str(tmp_path / "run")
    )
    assert status == 0, err
    result = json.loads(out.read_text())
    assert result["answer_tokens"] == 5 and result["cut_answers"] == pytest.approx(1 / 3)
    said = "Answers: up to 5 tokens; 33.3% of gold answers are longer."
    assert said in printed and said in (tmp_path / "run" / "report.html").read_text()
    answers = (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()
    assert max(len(json.loads(line)["answer"]) for line in answers) <= 5  # a token a character
    status, _, err = run(monkeypatch, capsys, "eval", shared, *asked)
    assert status == 0, err
    for one in json.loads(out.read_text())["readers"].values():
        assert one["answer_tokens"] == 5 and one["cut_answers"] == pytest.approx(1 / 3)
    status, _, err = run(monkeypatch, capsys, "eval", wire, "--data", data, "--answer-tokens", "0")
    assert status == 2 and err == "latentwire: --answer-tokens is 0; expected at least 1\n"


def test_eval_and_ask_by_selectors(wire, shared, tmp_path, monkeypatch, capsys):
    data, out = write(tmp_path / "d.jsonl", jsonl(ROWS)), tmp_path / "o.json"
    also = ("--also", "random", "--also", "key_norm")
    asked = ("--data", data, "--json", str(out))
    status, printed, err = run(monkeypatch, capsys, "eval", wire, *asked, *also)
    assert status == 0, err
    names = ["wire", "evicted", "evicted_by_random", "evicted_by_key_norm"]
    assert list(json.loads(out.read_text())["rows"])[1:5] == names
    assert "eviction alone" in printed and "evicted by key norm" in printed
    for name in (wire, shared):  # none of a wire of codes, which has no cache of the text
        status, _, err = run(monkeypatch, capsys, "eval", name, "--data", data, "--also", "best")
        assert status == 2 and err.count("\n") == 1
        assert "no selector 'best'; expected one of: attention, key_norm" in err
    status, _, err = run(monkeypatch, capsys, "eval", shared, "--data", data, "--also", "random")
    assert status == 2 and "has codes alone" in err and err.count("\n") == 1
    context = write(tmp_path / "note.txt", "The Elbe rises in the Giant Mountains. " * 5)
    model = ("tiny-llama", "--selector", "streaming")
    more = ("--context", context, "Where?", "--wire", *model)
    status, printed, _ = run(monkeypatch, capsys, "ask", *more)
    assert status == 0 and "read 195 tokens as 49 latents" in printed
    status, _, err = run(monkeypatch, capsys, "eval", *model, *asked, "--ratio", "2")
    result = json.loads(out.read_text())
    assert status == 0 and result["ratio"] == 2 and "evicted" not in result["rows"], err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (jsonl([*ROWS[:1], {"id": "9", "context": "c"}]), "line 2: no field 'question'"),
        (jsonl([{**ROWS[0], "context": ""}]), "line 1: field 'context' is empty"),
        (jsonl([{**ROWS[0], "question": " "}]), "question is ' '; expected text"),
        (jsonl([{**ROWS[0], "answers": []}]), "line 1: no answers, as SQuAD 2.0's unanswerable"),
        (jsonl([{**ROWS[0], "answers": "x"}]), "line 1: field 'answers' is str; expected list"),
        ("{not json}\n", "line 1: not JSON"),
        ("", "is empty"),
        (jsonl(ROWS[:2]), "1 passages; expected at least 2"),
        (jsonl([*ROWS, {**ROWS[0], "id": "9", "context": "a\ud800"}]), "half of a surrogate pair"),
        (
            jsonl([*ROWS, {**ROWS[0], "id": "9", "question": "x" * 600}]),
            "has a context length of 512",
        ),
        (jsonl([*ROWS, ROWS[0]]), "two questions have the id '1'; expected one each"),
    ],
)
def test_bad_data(content, message, wire, tmp_path, monkeypatch, capsys):
    data, result = write(tmp_path / "d.jsonl", content), tmp_path / "o.json"
    result.write_text("precious")
    status, _, err = run(monkeypatch, capsys, "eval", wire, "--data", data, "--json", str(result))
    assert status == 2 and message in err and err.count("\n") == 1
    assert result.read_text() == "precious"


def test_eval_with_fewer_bits(wire, tmp_path, monkeypatch, capsys):
    data, sizes = write(tmp_path / "d.jsonl", jsonl(ROWS)), {}
    for bits in (16, 4):
        out = tmp_path / f"{bits}.json"
        arguments = ("eval", wire, "--data", data, "--bits", str(bits), "--json", str(out))
        status, _, err = run(monkeypatch, capsys, *arguments)
        assert status == 0, err
        sizes[bits] = json.loads(out.read_text())["message_bytes"]
    assert sizes[4] < sizes[16]
    status, _, err = run(monkeypatch, capsys, "eval", wire, "--data", data, "--bits", "5")
    assert status == 2 and err == "latentwire: no codec has 5 bits; expected one of 16, 8, 6, 4\n"


def test_bad_context_and_question(wire, tmp_path, monkeypatch, capsys):
    good = write(tmp_path / "good.txt", "A text.")
    (tmp_path / "latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    cases = [
        ((str(tmp_path / "none.txt"), "q"), "no such file"),
        ((write(tmp_path / "empty.txt", " \n"), "q"), "is empty; expected text"),
        ((str(tmp_path / "latin.txt"), "q"), "is not UTF-8 (byte 3)"),
        ((good, " "), "a question is empty"),
        ((good, "why " * 200), "tiny-llama has a context length of 512"),
        ((write(tmp_path / "long.txt", "word " * 500), "q"), "context has 2500 tokens; at most"),
    ]
    for (context, question), message in cases:
        status, _, err = run(
            monkeypatch, capsys, "ask", question, "--context", context, "--wire", wire
        )
        assert status == 2 and message in err and err.count("\n") == 1, err


def test_unknown_wire_and_model(tmp_path, monkeypatch, capsys):
    status, _, err = run(monkeypatch, capsys, "eval", str(tmp_path / "no-wire"))
    assert status == 2 and "is no wire; expected a folder" in err
    status, _, err = run(monkeypatch, capsys, "fetch", "smolm2-135m")
    assert status == 2 and "did you mean 'smollm2-135m'" in err


def test_a_model_that_needs_another_package(tmp_path, monkeypatch, capsys):
    lm = tiny_lm("llama")
    lm.model.save_pretrained(tmp_path)
    lm.tokenizer.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (tmp_path / "config.json").write_text(json.dumps(config))
    capsys.readouterr()
    status, _, err = run(monkeypatch, capsys, "doctor", str(tmp_path))
    assert status == 2 and "cannot be loaded as a causal LM" in err and "optimum" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("layers", [10**9, 2**62])
def test_layers_of_a_config_are_compared_with_the_weights_first(
    layers, tmp_path, monkeypatch, capsys
):
    lm = tiny_lm("llama")
    lm.model.save_pretrained(tmp_path)
    lm.tokenizer.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": layers}))
    capsys.readouterr()
    status, _, err = run(monkeypatch, capsys, "doctor", str(tmp_path))
    assert status == 2 and f"config.json has {layers} layers, and the weights have 30 ten" in err
    assert err.count("\n") == 1


def test_a_gpu_that_is_too_small_is_one_line(wire, tmp_path, monkeypatch, capsys):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nSee docs.")

    monkeypatch.setattr(Wire, "encode", full)
    context = write(tmp_path / "note.txt", "The Elbe rises in the Giant Mountains.")
    status, _, err = run(monkeypatch, capsys, "ask", "--context", context, "--wire", wire, "Where?")
    assert status == 2 and err.count("\n") == 1
    assert err.startswith("latentwire: CUDA out of memory.")


def test_training_refuses_another_runs_folder_before_any_compute(tmp_path, monkeypatch, capsys):
    data = write(tmp_path / "d.jsonl", jsonl(ROWS))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    (tmp_path / "other").mkdir()
    checkpoint = safetensors.torch.save({}, metadata={"run": "another", "step": "3"})
    (tmp_path / "other" / "slots.safetensors").write_bytes(checkpoint)
    monkeypatch.setattr(wire_module, "FrozenLM", None)
    for arguments, message in [
        (("--out", str(tmp_path / "run")), "another config; give another run folder"),
        (
            ("--out", str(tmp_path / "other")),
            "another recipe; remove it, or give another run folder",
        ),
        (("--gradient-accumulation", "3"), "expected a multiple of 3"),
        (("--trackers", "comet"), "--trackers"),
        (("--out", str(tmp_path / "new")), "2 passages; expected at least 104"),
    ]:
        status, _, err = run(monkeypatch, capsys, "train", "smollm2-4x", "--data", data, *arguments)
        assert status == 2 and message in err and err.count("\n") == 1, err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("smolm2-4x",), "unknown recipe 'smolm2-4x' (did you mean 'smollm2-4x'?): expected one"),
        (("smollm2-4x", "--slots.stps", "3"), "did you mean --slots.steps?"),
        (("smollm2-4x", "--slots.steps", "x"), "parsing --slots.steps: invalid literal for int"),
        (("smollm2-4x", "--slots.steps", "-1"), "steps is -1; expected at least 0"),
        (("smollm2-4x", "--format.lr", "-1"), "lr is -1.0; expected more than 0"),
        (("smollm2-4x", "--check-every", "0"), "check_every is 0; expected at least 1"),
        (("smollm2-4x", "--gradient-accumulation", "0"), "gradient_accumulation is 0; expected"),
        (("smollm2-4x", "--stop-on", "colapse"), "--stop-on"),
        (("smollm2-4x", "--data", "none.jsonl"), "none.jsonl: no such file"),
        (
            ("smollm2-4x", "--wire.window", "500", "--batch-size", "1", "--held-out", "1"),
            "room for",
        ),
    ],
)
def test_a_recipe_that_cannot_be_trained(arguments, message, wire, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    if "--data" not in arguments:
        arguments += ("--data", write(tmp_path / "d.jsonl", jsonl(ROWS)))
    status, _, err = run(monkeypatch, capsys, "train", *arguments)
    assert status == 2 and message in err and err.count("\n") == 1, err
    assert not (tmp_path / "runs").exists()  # which would refuse the recipe, once mended


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("", "Expected one of {ask, eval, "),
        ("nope", "Unrecognized options: nope"),
        ("eval --nope", "Unrecognized options: --nope"),
        ("ask", "got no question; expected one"),
        ("add-reader default", "MODEL Zoo name"),
        ("lens eval default", "Missing from latentwire lens eval: --text"),
        ("sweep", "Missing from latentwire sweep: GRID.py"),
        ("seek smollm2-135m --steps x", "Error parsing --steps: "),
        ("bench train --steps x", "Error parsing --steps: "),
    ],
)
def test_what_no_command_takes_is_one_line(arguments, said, monkeypatch, capsys):
    status, out, err = run(monkeypatch, capsys, *arguments.split())
    assert status == 2 and not out and said in err and err.count("\n") == 1, err


@pytest.mark.parametrize("as_squad", [True, False])
def test_hub_data_is_read_from_a_folder(as_squad, tmp_path):
    from latentwire.tasks.qa import load_questions

    rows = [{**r, "answers": {"text": r["answers"]} if as_squad else r["answers"]} for r in ROWS]
    (tmp_path / "squad").mkdir()
    write(tmp_path / "squad" / "train.jsonl", jsonl(rows))
    loaded = load_questions(f"hub:{tmp_path / 'squad'}")
    assert [q.answers for q in loaded] == [("1815",), ("Ada",), ("a river",)]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"answers": "Paris"}, "answers are 'Paris'; expected a list of non-empty strings"),
        ({"answers": [" "]}, "answers are [' ']; expected a list of non-empty strings"),
        ({"answers": {"text": []}}, "no answers, as SQuAD 2.0's unanswerable questions have none"),
        ({"context": " "}, "context is ' '; expected text"),
    ],
)
def test_hub_data_is_checked_like_a_file(change, said, tmp_path):
    from latentwire.tasks.qa import load_questions

    (tmp_path / "odd").mkdir()
    write(tmp_path / "odd" / "train.jsonl", jsonl([{**ROWS[0], **change}]))
    with pytest.raises(ValueError, match=re.escape(f"row {ROWS[0]['id']!r}: {said}")):
        load_questions(f"hub:{tmp_path / 'odd'}")


@pytest.fixture
def shared(tmp_path, monkeypatch) -> str:
    """The folder of a shared wire with two tiny readers, untrained."""
    lms = {name: tiny_lm(name.removeprefix("tiny-")) for name in ("tiny-llama", "tiny-gemma3")}
    lms["tiny-qwen3"] = tiny_lm("qwen3")
    monkeypatch.setattr(
        FrozenLM, "from_pretrained", classmethod(lambda cls, name, *_, **__: lms[name])
    )
    sizes = EncoderConfig(window=64, width=64, layers=1)
    config = SharedConfig(
        ("tiny-llama", "tiny-gemma3"), "tiny-llama", sizes=sizes, trunk_layers=1, format_tokens=2
    )
    SharedWire(config, lms).save_pretrained(tmp_path / "shared")
    return str(tmp_path / "shared")


def test_eval_at_another_ratio(wire, shared, tmp_path, monkeypatch, capsys):
    data, out = write(tmp_path / "d.jsonl", jsonl(ROWS)), tmp_path / "o.json"
    more = ["--data", data, "--ratio", "2", "--json", str(out)]
    status, _, err = run(monkeypatch, capsys, "eval", wire, *more)
    assert status == 0, err
    result = json.loads(out.read_text())
    assert result["ratio"] == 2 and result["latents_out"] == (11 + 10) / 2
    status, _, err = run(monkeypatch, capsys, "eval", shared, *more)
    assert status == 2 and "has learned codes, which have one ratio alone" in err
    status, _, err = run(monkeypatch, capsys, "eval", wire, *more[:2], "--ratio", "0")
    assert status == 2 and "ratio is 0" in err


# Of the 57 and 56 tokens of two windows, 16 and 12 are digits, which come on top of an eighth.
@pytest.mark.parametrize(
    ("several", "ratio", "keep", "latents"),
    [(False, 2, None, (29 + 28) / 2), (True, 8, "numbers", (8 + 16 + 7 + 12) / 2)],
)
def test_needles_at_any_ratio_and_with_spans_kept(
    several, ratio, keep, latents, wire, shared, tmp_path, monkeypatch, capsys
):
    data, out = write(tmp_path / "d.jsonl", jsonl(ROWS)), tmp_path / "o.json"
    if several:
        lms = [FrozenLM.from_pretrained(name) for name in ("tiny-llama", "tiny-gemma3")]
        wires = [Wire(lm, WireConfig(lm.name, rank=4, window=64)) for lm in lms]
        TextWire(lms[0], wires).save_pretrained(tmp_path / "text")
        wire = str(tmp_path / "text")
    monkeypatch.setattr(evaluation, "NEEDLE_TOKENS", 2)
    asked = ["eval", wire, "--data", data, "--needles", "number", "--json", str(out)]
    more = [] if keep is None else ["--keep", keep]
    status, _, err = run(monkeypatch, capsys, *asked, "--ratio", str(ratio), *more)
    assert status == 0, err
    result = json.loads(out.read_text())
    for reader in result["readers"].values() if several else [result]:
        assert (reader["ratio"], reader["needles"], reader["n"]) == (ratio, "number", 2)
        assert reader.get("keep") == keep and reader["latents_out"] == latents
        assert reader["embeds_vs_ids_difference"] == 0 and "pruned_tokens" in reader["rows"]


def test_spans_that_cannot_be_kept(wire, shared, monkeypatch, capsys):
    status, _, err = run(monkeypatch, capsys, "eval", wire, "--keep", "a(")
    assert status == 2 and "'a(' does not compile" in err and err.count("\n") == 1
    status, _, err = run(monkeypatch, capsys, "eval", shared, "--keep", "a")
    assert status == 2 and "only a wire of slots can keep spans as text" in err


def test_a_shared_wire_is_asked_and_scored_by_every_reader(shared, tmp_path, monkeypatch, capsys):
    data = write(tmp_path / "d.jsonl", jsonl(ROWS))
    status, out, _ = run(
        monkeypatch, capsys, "eval", shared, "--data", data, "--json", str(tmp_path / "o.json"),
        "--run", str(tmp_path / "run"),
    )  # fmt: skip
    assert status == 0 and out.count("truncated") + out.count("equal bytes") >= 2
    result = json.loads((tmp_path / "o.json").read_text())
    for i, name in enumerate(("tiny-llama", "tiny-gemma3")):
        assert "truncated_bytes" in result["readers"][name]["rows"]
        assert (tmp_path / "run" / f"reader-{i}" / "report.html").exists()
    context = write(tmp_path / "note.txt", "The Elbe rises in the Giant Mountains. ")
    status, out, _ = run(
        monkeypatch, capsys, "ask", "--context", context, "Where?", "--wire", shared
    )
    assert status == 0
    assert all(f"{n} read 39 tokens as 10 latents" in out for n in ("tiny-llama", "tiny-gemma3"))
    status, _, err = run(monkeypatch, capsys, "eval", shared, "--data", data, "--bits", "8")
    assert status == 2 and err == "latentwire: this wire's codes have 4 bits; got 8\n"


def test_a_reader_is_added_from_the_command_line(shared, tmp_path, monkeypatch, capsys):
    data = write(tmp_path / "d.jsonl", jsonl(ROOMS))
    status, out, err = run(
        monkeypatch, capsys, "add-reader", shared, "tiny-qwen3", "--data", data,
        "--run", str(tmp_path / "run"), "--steps", "1", "--format-steps", "1",
    )  # fmt: skip
    assert status == (3 if "alarm: " in out else 0), err  # of one step
    assert "target tokens/s" in out
    added = SharedWire.from_pretrained(tmp_path / "run" / "wire")
    assert added.config.readers == ("tiny-llama", "tiny-gemma3", "tiny-qwen3")
    assert added.id == SharedWire.from_pretrained(shared).id and "added:" in out
    said = " ".join(out.split())
    for name in ("tiny-llama, there before", "tiny-gemma3, there before", "tiny-qwen3, added"):
        assert re.search(rf"- {name}: -?\d\.\d\d \(.* on 24 passages held out", said), said
    status, _, err = run(
        monkeypatch, capsys, "add-reader", shared, "tiny-llama", "--data", data,
        "--run", str(tmp_path / "no"),
    )  # fmt: skip
    assert status == 2 and err == "latentwire: tiny-llama reads this wire already\n"
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("kind", ["one", "shared"])
def test_a_reader_is_added_in_parts_of_a_step(kind, shared, tmp_path, monkeypatch, capsys):
    data = write(tmp_path / "d.jsonl", jsonl(ROOMS))
    wire = shared
    if kind == "one":
        wire = str(tmp_path / "one")
        lm = FrozenLM.from_pretrained("tiny-llama")
        Wire(lm, WireConfig("tiny-llama", rank=4, window=64)).save_pretrained(Path(wire))
    asked = ["add-reader", wire, "tiny-qwen3", "--data", data, "--run", str(tmp_path / "run")]
    asked += ["--steps", "1", "--format-steps", "1", "--batch-size", "2"]
    status, _, err = run(monkeypatch, capsys, *asked, "--gradient-accumulation", "3")
    assert status == 2 and "2 rows a step" in err and not (tmp_path / "run").exists()
    given = ("--gradient-accumulation", "2", "--mixed-precision", "bf16")
    status, out, err = run(monkeypatch, capsys, *asked, *given, "--gradient-checkpointing")
    assert status == (3 if "alarm: " in out else 0), err
    assert json.loads((tmp_path / "run" / "config.json").read_text())["batch_size"] == 2


def test_a_reader_is_added_by_two_processes(shared, tmp_path, monkeypatch):
    data, save = write(tmp_path / "d.jsonl", jsonl(ROOMS)), SharedWire.save_pretrained
    asked = ["add-reader", shared, "tiny-qwen3", "--data", data, "--run", str(tmp_path / "run")]
    few = ["--steps", "1", "--format-steps", "1", "--batch-size", "2"]
    monkeypatch.setattr(sys, "argv", ["latentwire", *asked, *few])
    # The second process would be at the folder before it is whole.
    monkeypatch.setattr(SharedWire, "save_pretrained", lambda *a: (time.sleep(2), save(*a)))

    def one(rank: int) -> None:
        assert status_of_main() in ((0, 3) if rank == 0 else (0,))

    assert in_two_processes(one) == [0, 0]
    assert len(SharedWire.from_pretrained(tmp_path / "run" / "wire").readers) == 3


def test_a_training_of_no_steps_is_no_mistake(shared, tmp_path, monkeypatch, capsys):
    data, wire = write(tmp_path / "d.jsonl", jsonl(ROOMS)), str(tmp_path / "one")
    lm = FrozenLM.from_pretrained("tiny-llama")
    Wire(lm, WireConfig("tiny-llama", rank=4, window=64)).save_pretrained(Path(wire))
    asked = ["--data", data, "--out", str(tmp_path / "run"), "--wire.reader", "tiny-llama"]
    asked += ["--wire.rank", "4", "--wire.window", "64", "--held-out", "4"]
    asked += ["--format.steps", "0", "--slots.steps", "0", "--init-from", wire]
    status, out, err = run(monkeypatch, capsys, "train", "smollm2-4x", *asked)
    assert status == 0 and "trained: " in out, err


def test_a_wire_of_one_reader_gets_another(shared, tmp_path, monkeypatch, capsys):
    data = write(tmp_path / "d.jsonl", jsonl(ROOMS))
    lm = FrozenLM.from_pretrained("tiny-llama")
    Wire(lm, WireConfig("tiny-llama", rank=4, window=64)).save_pretrained(tmp_path / "one")
    asked = ["tiny-gemma3", "--data", data, "--run", str(tmp_path / "run")]
    few = ["--steps", "1", "--format-steps", "1", "--dtype", "bfloat16"]
    status, out, err = run(monkeypatch, capsys, "add-reader", str(tmp_path / "one"), *asked, *few)
    made = str(tmp_path / "run" / "text-wire")
    assert status == (3 if "alarm: " in out else 0), err
    assert f"added: {made}" in out.replace("\n", "")
    recipe = json.loads((tmp_path / "run" / "config.json").read_text())
    assert recipe["ratios"] == [4, 8, 16] and recipe["wire"]["dtype"] == "bfloat16"
    assert recipe["batch_size"] == 4
    context = write(tmp_path / "note.txt", "The Elbe rises in the Giant Mountains. ")
    status, out, _ = run(monkeypatch, capsys, "ask", "--context", context, "Where?", "--wire", made)
    assert status == 0
    assert all(f"{n} read 39 tokens as 10 latents" in out for n in ("tiny-llama", "tiny-gemma3"))
    status, _, err = run(monkeypatch, capsys, "add-reader", made, *asked)
    assert status == 2 and err == "latentwire: tiny-gemma3 reads this wire already\n"
