"""The text wire on tiny models: the same bytes, two families, each reader with its own latents."""

import json

import pytest
import torch
from tiny import tiny_lm

from latentwire.evals.harness import Answer, evaluate
from latentwire.evals.metrics import f1
from latentwire.lm import FrozenLM, KVPrefix, Prompt
from latentwire.tasks import qa
from latentwire.tasks.qa import (
    Passage,
    Question,
    answer_ids,
    answers,
    ask,
    question_prompt,
    with_soft_prompt,
)
from latentwire.wire.costs import costs
from latentwire.wire.evaluation import conditions, evaluate_wire
from latentwire.wire.joint import evaluate_readers, joint, losses, lost
from latentwire.wire.learned.shared_wire import SharedWire
from latentwire.wire.load import load_reader, load_wire
from latentwire.wire.message import MessageError
from latentwire.wire.text_message import TextMessage
from latentwire.wire.text_wire import TextWire
from latentwire.wire.wire import Wire, WireConfig, WireError

TEXTS = ["The lighthouse was built in 1759 by John Smeaton.", "Short 😀 one."]
NAMES = ("tiny-llama", "tiny-gemma3")


@pytest.fixture(scope="module")
def lms() -> dict[str, FrozenLM]:
    return {name: tiny_lm(name.removeprefix("tiny-")) for name in NAMES}


def make_wire(lms, **config) -> TextWire:
    torch.manual_seed(0)
    wires = [Wire(lms[n], WireConfig(n, **{"rank": 4, "window": 64, **config})) for n in NAMES]
    for wire in wires:
        torch.nn.init.normal_(wire.scorer.weight)
    return TextWire(lms["tiny-llama"], wires)


def through_bytes(wire: TextWire, texts) -> list[TextMessage]:
    return [TextMessage.from_bytes(m.to_bytes()) for m in wire.send(texts)]


def test_several_questions_are_asked_of_one_message(lms, monkeypatch):
    wire = make_wire(lms)
    (message,) = through_bytes(wire, TEXTS[:1])
    asked = ["Who?", "When was it built, and where does it stand?"]
    for reader in wire.readers:
        prefix = with_soft_prompt(reader.lm, reader.format, reader.receive([message]))
        alone = [answers(reader.lm, [question], prefix)[0] for question in asked]
        assert ask(reader, message, asked) == alone and alone[0] != alone[1]
        monkeypatch.setattr(qa, "ROWS", 1)
        assert ask(reader, message, asked) == alone and ask(reader, message, []) == []
    with pytest.raises(TypeError, match="expected a list of texts"):
        ask(reader, message, "Who?")


def test_asking_builds_no_graph(lms, monkeypatch):
    wire, seen = make_wire(lms).readers[0].wire, []
    monkeypatch.setattr(qa, "answers", lambda _, asked, prefix, *__: seen.append(prefix) or asked)
    assert ask(wire, wire.send(TEXTS[:1])[0], ["Who?"]) == ["Who?"]
    (prefix,) = seen
    assert prefix.ragged and not any(s.keys.requires_grad for s in prefix.ragged)
    assert not any(layer.requires_grad for layer in (*prefix.keys, *prefix.values))


def held(prefix: KVPrefix) -> torch.Tensor:
    """Keys and values of all slots of a cache."""
    return torch.cat([torch.cat([s.keys, s.values], -1) for s in prefix.ragged])


def test_two_families_read_the_same_bytes_each_as_its_own_wire_reads_the_text(lms):
    wire = make_wire(lms)
    messages = through_bytes(wire, TEXTS)
    for reader in wire.readers:
        read, own = reader.receive(messages), reader.wire.prefix(reader.wire.encode(TEXTS))
        assert torch.equal(held(read), held(own)) and len(read.ragged) == len(reader.lm.blocks)
        assert torch.equal(read.next_position, own.next_position)
        slots = torch.stack([s.lengths for s in read.ragged]).sum((0, 2))
        latents = (slots // (len(reader.lm.blocks) * reader.lm.kv_shape[0])).tolist()
        costs = [reader.cost(text) for text in TEXTS]
        assert costs == list(zip(latents, [len(m.to_bytes()) for m in messages], strict=True))


def test_every_reader_is_timed_with_decoding(lms, monkeypatch):
    wire, decoded = make_wire(lms), []
    decode = wire.code.decode
    monkeypatch.setattr(wire.code, "decode", lambda m: decoded.extend(m) or decode(m))
    asked = [Passage(text, (Question("q", text, "Who?", ("A",)),)) for text in TEXTS]
    for reader in wire.readers:
        decoded.clear()
        costs(reader, asked)
        assert len(decoded) == 2 * len(asked)  # with the message at hand, and encoding counted


def test_each_reader_keeps_as_text_what_its_own_wire_keeps(lms):
    wire = make_wire(lms)
    mixed = wire.keeping("numbers")
    messages = through_bytes(wire, TEXTS)
    assert messages == through_bytes(mixed, TEXTS)
    for plain, reader in zip(wire.readers, mixed.readers, strict=True):
        own = reader.wire.prefix(plain.wire.keeping("numbers").encode(TEXTS))
        assert torch.equal(held(reader.receive(messages)), held(own))
        assert not torch.equal(held(plain.receive(messages)), held(own))
        assert reader.keep == "numbers" and plain.keep is None


def test_at_ratio_one_and_without_a_residual_the_wire_is_the_text(lms):
    wire = make_wire(lms, ratio=1)
    passages = [Passage(t, (Question("q", t, "Who built it?", ("John",)),)) for t in TEXTS]
    for reader in wire.readers:
        rows = conditions(reader, passages)
        made = evaluate(
            reader.lm, reader.format, passages, {n: rows[n] for n in ("text", "wire")}, 4
        )
        answers = [a for batch in made for a in batch]
        text, latents = ([a for a in answers if a.condition == name] for name in ("text", "wire"))
        for a, b in zip(text, latents, strict=True):
            assert a.nll == pytest.approx(b.nll, abs=1e-4) and a.answer == b.answer


def test_it_is_saved_and_loaded_whole(lms, tmp_path):
    wire = make_wire(lms)
    wire.save_pretrained(tmp_path)
    loaded = load_wire(tmp_path, lms)
    assert isinstance(loaded, TextWire)
    assert [r.reader for r in loaded.readers] == list(NAMES)
    messages = through_bytes(wire, TEXTS)
    for one in wire.readers:
        one.wire.load_state_dict(
            {k: v.bfloat16().float() for k, v in one.wire.state_dict().items()}
        )
    for ours, theirs in zip(wire.readers, loaded.readers, strict=True):
        assert torch.equal(held(ours.receive(messages)), held(theirs.receive(messages)))


def test_a_source_in_bfloat16_is_loaded_again_in_float32(lms, tmp_path, monkeypatch):
    make_wire(lms).save_pretrained(tmp_path)
    found = {**lms, "tiny-llama": tiny_lm("llama", torch.bfloat16)}
    monkeypatch.setattr(FrozenLM, "from_pretrained", classmethod(lambda cls, name, **_: lms[name]))
    loaded = TextWire.from_pretrained(tmp_path, found)
    assert loaded.code.lm.dtype == torch.float32
    assert loaded.readers[0].lm.dtype == torch.bfloat16
    assert loaded.texts(through_bytes(make_wire(lms), TEXTS)) == TEXTS


def test_a_worker_loads_no_reader_but_its_own(lms, tmp_path, monkeypatch):
    make_wire(lms).save_pretrained(tmp_path)
    loaded = []

    def load(cls, name, *_, **__):
        loaded.append(name)
        return lms[name]

    monkeypatch.setattr(FrozenLM, "from_pretrained", classmethod(load))
    assert load_reader(tmp_path, 5, None, 0).reader == NAMES[0] and loaded == [NAMES[0]]
    second = load_reader(tmp_path, 5, None, 1)
    assert (second.reader, second.ratio) == (NAMES[1], 5)


def test_folders_that_hold_no_such_wire(lms, tmp_path):
    make_wire(lms).save_pretrained(tmp_path)
    record = json.loads((tmp_path / "config.json").read_text())
    with pytest.raises(WireError, match="is no wire; expected a folder"):
        load_wire(tmp_path / "nowhere")
    with pytest.raises(WireError, match=r"is not a shared wire's"):
        SharedWire.from_pretrained(tmp_path)
    for change, said in (
        ({"format_version": 2}, "text wire format 2; expected 1"),
        ({"wires": ["reader-7"]}, "is no wire"),
        ({"wires": 3}, "wires is 3; expected a list"),
        ({"source": None}, "source is None; expected text"),
        ({"kind": []}, "is not a text wire's"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({**record, **change}))
        with pytest.raises(WireError, match=said):
            TextWire.from_pretrained(tmp_path, lms)
    assert load_wire(tmp_path / "reader-0", lms["tiny-llama"]).lm is lms["tiny-llama"]
    with pytest.raises(WireError, match="none of them twice"):
        TextWire(lms["tiny-llama"], [])


def test_readers_are_scored_with_every_control(lms, tmp_path):
    data = tmp_path / "d.jsonl"
    rows = [
        {"id": str(i), "context": t, "question": "Who?", "answers": [t[: i + 3]]}
        for i, t in enumerate(TEXTS)
    ]
    data.write_text("".join(json.dumps(r) + "\n" for r in rows))
    wire = make_wire(lms)
    results = evaluate_readers(wire, str(data), out=tmp_path / "run")["readers"]
    sent = sum(len(m.to_bytes()) for m in wire.send(TEXTS)) / 2
    for i, name in enumerate(NAMES):
        result = results[name]
        assert set(result["rows"]) >= {"text", "wire", "truncated_bytes", "zero_latents"}
        assert result["message_bytes"] == sent and "bits" not in result
        assert result["source"] == lms["tiny-llama"].fingerprint
        assert result["rows"]["zero_latents"]["nll"] != result["rows"]["wire"]["nll"]
        assert result["rows"]["mismatched_latents"]["nll"] != result["rows"]["wire"]["nll"]
        assert (tmp_path / "run" / f"reader-{i}" / "results.json").exists()
    with pytest.raises(MessageError, match="to the letter; got codes of 8 bits"):
        evaluate_readers(wire, str(data), bits=8)
    assert set(evaluate_readers(wire, str(data))["joint"]) >= {"f1_low", "agreement", "oracle_f1"}


@torch.no_grad()
def test_readers_are_scored_in_a_folder_of_their_own(lms, tmp_path):
    wire, data = make_wire(lms), tmp_path / "d.jsonl"
    rows = [{"id": t, "context": t, "question": "Who?", "answers": ["John"]} for t in TEXTS]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    evaluate_wire(wire.readers[0].wire, str(data), out=tmp_path / "one")
    before = (tmp_path / "one" / "results.json").read_bytes()
    with pytest.raises(ValueError, match="holds another run"):
        evaluate_readers(wire, str(data), out=tmp_path / "one")
    assert (tmp_path / "one" / "results.json").read_bytes() == before


def test_together_readers_choose_by_the_sum_of_their_mean_log_probabilities(lms):
    wire = make_wire(lms)
    passages = [Passage(t, (Question(f"q{i}", t, "Who?", (t[:5],)),)) for i, t in enumerate(TEXTS)]
    words = [["The l", "short one"], ["John", "Short"]]
    said = [
        [
            Answer("wire", f"q{i}", t, "Who?", (t[:5],), w, 0.0, f1(w, (t[:5],)), 0.0, 1, 0.0, 0.0)
            for i, (t, w) in enumerate(zip(TEXTS, row, strict=True))
        ]
        for row in words
    ]
    chosen = []
    for i, text in enumerate(TEXTS):
        sums = []
        for word in (row[i] for row in words):
            means = []
            for reader in wire.readers:
                lm = reader.lm
                prefix = reader.wire.prefix(reader.wire.encode([text]))
                prompt = question_prompt(lm, ["Who?"], with_soft_prompt(lm, reader.format, prefix))
                targets = answer_ids(lm, word)[None]
                log_probs = lm.logits(prompt, targets)[0].log_softmax(-1)
                means.append(log_probs.gather(1, targets[0][:, None]).mean())
            sums.append(sum(means))
        chosen.append(words[0][i] if sums[0] > sums[1] else words[1][i])
    scores = joint(wire.readers, passages, said)
    golds = [(t[:5],) for t in TEXTS]
    assert scores["f1"] == sum(f1(c, g) for c, g in zip(chosen, golds, strict=True)) / 2
    assert (scores["n"], scores["agreement"], scores["oracle_f1"]) == (2, 0.0, 1.0)
    said[1] = said[0]
    assert joint(wire.readers, passages, said)["agreement"] == 1.0


def test_what_latents_lose_is_the_difference_of_hugging_faces_own_scores(lms):
    wire = make_wire(lms, ratio=2)
    passages = [Passage(t, (Question("q", t, "Who built it?", ("John",)),)) for t in TEXTS]

    def score(reader, prefix, answer):
        lm = reader.lm
        asked = torch.cat([lm.tokenize("\n\nWho built it?"), lm.frame.suffix])
        rest = torch.cat([reader.format, lm.embed(torch.cat([asked, answer]))])
        logits = lm.head(lm.last_hidden(Prompt.of(lm, [[rest]], prefix)))[0, -len(answer) - 1 : -1]
        return logits.log_softmax(-1).gather(1, answer[:, None]).sum()

    for name, made in losses(wire.readers, passages).items():
        reader = next(r for r in wire.readers if r.reader == name)
        lm = reader.lm
        answer = torch.cat(
            [lm.tokenize(f"{lm.frame.answer_prefix}John"), torch.tensor(lm.stop_ids[:1])]
        )
        found = {a.context: a for a in made}
        for text in TEXTS:
            head = lm.prefill(
                Prompt.from_ids(lm, [torch.cat([lm.frame.prefix, lm.tokenize(text)])])
            )
            latents = reader.receive(through_bytes(wire, [text]))
            with torch.no_grad():
                less = score(reader, head, answer) - score(reader, latents, answer)
            assert found[text].nll == pytest.approx(less.item(), abs=1e-4)
            assert found[text].tokens == len(answer)
    assert "not compared: none of the last 24 passages" in lost(wire.readers, "tiny-llama", [])[0]
