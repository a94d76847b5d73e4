"""Training of latent codes on tiny models: two families, one family, and a reader that is added."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_codes import TEXT, texts
from tiny import tiny_lm

from latentwire.lm import FrozenLM
from latentwire.tasks.qa import ask
from latentwire.train.settings import LoopConfig, Session
from latentwire.wire.codes.code import CodeConfig
from latentwire.wire.codes.config import CodeRecipe
from latentwire.wire.codes.message import CodeMessage
from latentwire.wire.codes.training import add_code_reader, train_codes
from latentwire.wire.evaluation import conditions, evaluate_wire
from latentwire.wire.folder import WireError
from latentwire.wire.load import load_reader, load_wire, load_with
from latentwire.wire.text_wire import TextWire
from latentwire.wire.wire import Wire, WireConfig

SHORT = LoopConfig(steps=2, lr=1e-3)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with three tiny models, a text wire of two of them, and questions."""
    place = tmp_path_factory.mktemp("codes")
    wires = []
    for family in ("llama", "gemma3", "qwen3"):
        lm = tiny_lm(family)
        lm.model.save_pretrained(place / family)
        lm.tokenizer.save_pretrained(place / family)
        if family != "qwen3":
            name = str(place / family)
            config = WireConfig(name, rank=2)
            wires.append(Wire(FrozenLM.from_pretrained(name), config))
    TextWire(wires[0].lm, wires).save_pretrained(place / "prompts")
    rows = [
        {"id": str(i), "context": text, "question": "Who?", "answers": [text.split()[0]]}
        for i, text in enumerate(texts(14))
    ]
    (place / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return place


def recipe(place: Path, name: str, readers: tuple[str, ...], **fields) -> CodeRecipe:
    names = tuple(str(place / reader) for reader in readers)
    code = CodeConfig(str(place / "llama"), (0, 1, 2), channels=12)
    small = dict(fitted=6, sensitive=2, batch_size=2, held_out=4, ratios=(1, 2), format=SHORT)
    small |= dict(attention=SHORT, answers=SHORT, soft_prompts=str(place / "prompts"))
    return CodeRecipe(
        name,
        code,
        names,
        hidden=(4,) * len(names),
        data=str(place / "data.jsonl"),
        out=place / name,
        dtype="float32",
        **{**small, **fields},
    )


@pytest.fixture(scope="module")
def trained(place) -> Path:
    return train_codes(recipe(place, "both", ("gemma3", "llama")), Session(check_size=2)) / "wire"


def test_both_readers_answer_from_one_message_and_every_control_is_scored(place, trained):
    wire = load_wire(trained)
    (message,) = wire.send([TEXT])
    data = CodeMessage.from_bytes(message.to_bytes())
    assert [len(ask(reader, data, ["Who?", "When?"])) for reader in wire.readers] == [2, 2]
    rows = evaluate_wire(wire.readers[0], str(place / "data.jsonl"), limit=3)["rows"]
    assert {"wire", "text", "zero_latents", "mean_slots", "mismatched_latents"} <= set(rows)


def test_each_stage_moved_what_it_trains_and_nothing_else(place, trained):
    logged = [json.loads(x) for x in (place / "both" / "metrics.jsonl").read_text().splitlines()]
    stages = [row["stage"] for row in logged]
    assert list(dict.fromkeys(stages)) == ["attention", "answers-0", "answers-1"]
    at_end = [row for row in logged if row["step"] == 2]
    assert all(k in at_end[0] for k in ("attention", "outputs", "held_attention", "held"))
    assert all(k in at_end[1] for k in ("kl", "ce", "held_kl_1x", "held_ce_2x", "held"))


def test_a_run_goes_on_and_gives_the_same_wire(place, trained):
    before = load_wire(trained).id
    again = train_codes(recipe(place, "both", ("gemma3", "llama")), Session(check_size=2))
    assert load_wire(again / "wire").id == before


def test_a_wire_is_trained_on_and_messages_of_its_code_stay_readable(place, trained):
    (message,) = load_wire(trained).send([TEXT])
    more = dict(start=str(trained), attention=LoopConfig(steps=0, lr=1e-3))
    run = train_codes(recipe(place, "more", ("gemma3", "llama"), **more), Session(check_size=2))
    assert not (run / "fit-code.safetensors").exists()
    old, new = (load_wire(wire).readers[0] for wire in (trained, run / "wire"))
    assert old.wire.id == new.wire.id and old.id != new.id
    torch.testing.assert_close(old.format, new.format)
    assert len(ask(new, message, ["Who?"])) == 1
    wider = replace(recipe(place, "other", ("llama",), start=str(trained)), hidden=(9,))
    with pytest.raises(WireError, match="the recipe says"):
        train_codes(wider)
    with pytest.raises(WireError, match="no wire of codes"):
        train_codes(recipe(place, "other", ("llama",), start=str(place / "prompts")))


@pytest.mark.parametrize("hidden, readers", [((), ()), ((-8,), ("llama",))])
def test_a_recipe_has_a_reader_and_widths(place, hidden, readers):
    with pytest.raises(ValueError, match="expected at least one reader, and no width below 0"):
        replace(recipe(place, "none", ("llama",)), readers=readers, hidden=hidden)


def test_of_a_wire_one_reader_is_trained_on_and_the_others_stay(place, trained):
    one = recipe(place, "one", ("llama",), start=str(trained))
    old, new = load_wire(trained), load_wire(train_codes(one, Session(check_size=2)) / "wire")
    assert [r.reader for r in new.readers] == [r.reader for r in old.readers]
    assert [a.id == b.id for a, b in zip(old.readers, new.readers, strict=True)] == [True, False]


def test_a_reader_is_added_and_old_messages_stay_readable(place, trained):
    wire = load_wire(trained)
    (message,) = wire.send([TEXT])
    with torch.no_grad():
        before = wire.readers[0].prefix(wire.readers[0].open([message])).ragged
    more = recipe(place, "added", ("qwen3",), attention=LoopConfig(steps=0, lr=1e-3))
    wider = load_wire(add_code_reader(wire, more, Session(check_size=2)) / "wire")
    assert [Path(r.reader).name for r in wider.readers] == ["gemma3", "llama", "qwen3"]
    assert len(ask(wider.readers[2], message, ["Who?"])) == 1
    with torch.no_grad():
        after = wider.readers[0].prefix(wider.readers[0].open([message])).ragged
    for old, new in zip(before, after, strict=True):
        torch.testing.assert_close(old.keys, new.keys)
    with pytest.raises(WireError, match="reads this wire already"):
        add_code_reader(wider, recipe(place, "twice", ("gemma3",)))


def test_a_worker_loads_its_own_reader_alone_and_a_rule_is_refused(place, trained, monkeypatch):
    loaded = []
    real = FrozenLM.from_pretrained.__func__

    def counted(cls, name, *args, **kwargs):
        loaded.append(Path(name).name)
        return real(cls, name, *args, **kwargs)

    monkeypatch.setattr(FrozenLM, "from_pretrained", classmethod(counted))
    reader = load_reader(trained, 2, None, 1)
    assert (loaded, Path(reader.reader).name, reader.ratio) == (["llama"], "llama", 2)
    with pytest.raises(WireError, match="no text to keep"):
        load_with(trained, keep="numbers")


def test_a_reader_without_a_known_soft_prompt_gets_one(place):
    session = Session(check_size=2, mixed_precision="bf16")
    run = train_codes(recipe(place, "alone", ("qwen3",), soft_prompts=None), session)
    (reader,) = load_wire(run / "wire").readers
    assert reader.format.shape == (16, reader.lm.width)
    assert (run / "prompt-0" / "metrics.jsonl").exists()


def test_damaged_folders_are_refused_in_words(place, trained, tmp_path):
    config = json.loads((trained / "config.json").read_text())

    def damaged(change) -> str:
        copy = json.loads(json.dumps(config))
        change(copy)
        for path in trained.iterdir():
            (tmp_path / path.name).write_bytes(path.read_bytes())
        (tmp_path / "config.json").write_text(json.dumps(copy))
        with pytest.raises(WireError) as error:
            load_wire(tmp_path)
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "channels" in damaged(lambda c: c["code"].update(channels=3))
    assert "hidden" in damaged(lambda c: c["readers"][0].update(hidden=10**9))
    assert "sha256" in damaged(lambda c: c.update(sha256="0" * 64))
    assert "hex" in damaged(lambda c: c.update(source_weights="../x"))
    assert "layers" in damaged(lambda c: c["code"].update(layers=[0, 1, 2, 2, 2]))


def test_soft_prompts_and_copies_that_do_not_fit_are_refused(place, trained):
    name = str(place / "llama")
    config = WireConfig(name, rank=2, format_tokens=2)
    Wire(FrozenLM.from_pretrained(name), config).save_pretrained(place / "short")
    wrong = recipe(place, "short-run", ("llama",), soft_prompts=str(place / "short"))
    with pytest.raises(WireError, match="soft prompt of 2 tokens; expected 16"):
        train_codes(wrong)
    other = tiny_lm("llama")
    other.model.get_input_embeddings().weight.data.mul_(1.5)
    copy = FrozenLM(other.model, other.tokenizer, str(place / "llama"))
    with pytest.raises(WireError, match="use that copy"):
        load_wire(trained, {str(place / "llama"): copy})


def test_the_latents_rows_pass_through_bytes(place, trained):
    from latentwire.tasks.qa import by_context, load_questions

    passages = by_context(load_questions(str(place / "data.jsonl"), 4))
    rows = conditions(load_wire(trained).readers[0], passages)
    prefix = rows["wire"]([passages[0].context])
    blank = rows["mean_slots"]([passages[0].context])
    assert prefix.next_position.tolist() == blank.next_position.tolist()
    with pytest.raises(AssertionError):
        torch.testing.assert_close(prefix.ragged[0].values, blank.ragged[0].values)
