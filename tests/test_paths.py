"""Models in folders of one machine, given elsewhere; and answers with every option."""

import json
from inspect import unwrap
from pathlib import Path

import pytest
import torch
from test_codes import fitted
from test_commands import run
from test_lens import make as make_lens
from test_store import make_wire
from tiny import tiny_lm

from latentwire import CodeWire, Lens, TextWire, Wire, ask, load_wire
from latentwire.lm import FrozenLM, Prompt
from latentwire.lm.loaded import models_given
from latentwire.lm.zoo import ZooError
from latentwire.serve.context import Chat, Contexts
from latentwire.serve.store import Store, wire_id
from latentwire.tasks.qa import Answering, question_prompt
from latentwire.terminal import printable
from latentwire.wire.codes.wire import Source
from latentwire.wire.folder import WireError
from latentwire.wire.load import load_with

TEXTS = ["The lighthouse was finished in 1759 by John Smeaton.", "Ada was born in 1815. " * 3]
ASKED = ["Who finished the lighthouse?", "When was Ada born?"]


def folder_of(family: str, place: Path) -> Path:
    """A tiny model as transformers saves it."""
    lm = tiny_lm(family)
    lm.model.save_pretrained(place)
    lm.tokenizer.save_pretrained(place)
    return place


@pytest.fixture
def model(tmp_path) -> Path:
    return folder_of("llama", tmp_path / "here" / "my-llama")


def moved(folder: Path, place: Path) -> Path:
    place.parent.mkdir()
    return folder.rename(place)


def kinds(folder: Path) -> dict[str, Wire | TextWire | CodeWire]:
    """A wire of each kind whose readers are the model in a folder."""
    wire = Wire.of(folder, "key_norm")
    lm = wire.lm
    return {"slots": wire, "text": TextWire(lm, [wire]), "codes": fitted(lm, lm, 8)}


@pytest.mark.parametrize("kind", ["slots", "text", "codes"])
def test_what_is_saved_names_a_model_and_not_where_it_is(kind, model, tmp_path):
    wire = kinds(model)[kind]
    (message,) = wire.send(TEXTS[:1])
    assert str(tmp_path).encode() not in message.to_bytes()
    wire.save_pretrained(str(tmp_path / "wire"))
    for path in (tmp_path / "wire").rglob("config.json"):
        record = json.loads(path.read_text())
        folders = record.pop("folders", {})
        assert set(folders) <= {"my-llama"} and str(tmp_path) not in json.dumps(record)
    wire = load_wire(tmp_path / "wire")  # from where it was; saved weights are rounded
    (message,) = wire.send(TEXTS[:1])
    assert wire.readers[0].reader == "my-llama"
    there = moved(model, tmp_path / "there" / "another-name")
    with pytest.raises(
        ZooError, match=r"my-llama was in .*here/my-llama.*--reader my-llama=PATH"
    ) as error:
        load_wire(tmp_path / "wire")
    assert "\n" not in str(error.value)
    lms = there if kind == "slots" else {"my-llama": there}
    for again in (
        load_wire(tmp_path / "wire", lms),
        load_with(tmp_path / "wire", readers=[f"my-llama={there}"]),
    ):
        assert again.send(TEXTS[:1])[0].to_bytes() == message.to_bytes()
        assert ask(again.readers[0], message, ASKED) == ask(wire.readers[0], message, ASKED)


def test_a_lens_names_its_model_too(model, tmp_path):
    lens = make_lens()
    lens.lm.name, lens.lm.folder = "my-llama", model
    lens.save_pretrained(str(tmp_path / "lens"))
    there = moved(model, tmp_path / "there" / "x")
    with pytest.raises(ZooError, match="my-llama"):
        Lens.from_pretrained(tmp_path / "lens")
    assert Lens.from_pretrained(str(tmp_path / "lens"), there).lm.name == "x"


@pytest.mark.parametrize("kind", ["slots", "text", "codes"])
def test_a_model_that_a_wire_has_not_is_refused(kind, model, tmp_path):
    kinds(model)[kind].save_pretrained(tmp_path / "wire")
    with pytest.raises(ZooError, match="got a model for 'my-lama'; expected one for my-llama"):
        load_wire(tmp_path / "wire", {"my-lama": tiny_lm("llama")})


@pytest.mark.parametrize("kind", ["slots", "text", "codes"])
def test_type_device_and_ratio_are_options_of_loading(kind, model, tmp_path):
    wire = kinds(model)[kind]
    wire.save_pretrained(tmp_path / "wire")
    again = type(wire).from_pretrained(
        str(tmp_path / "wire"), dtype="bfloat16", device="cpu", ratio=2
    )
    (reader,) = again.readers
    assert (reader.lm.dtype, reader.lm.device.type) == (torch.bfloat16, "cpu")
    assert reader.ratio == 2 and wire.readers[0].ratio != 2


def test_several_messages_are_asked_together_as_a_store_asks_them(tmp_path):
    wire = make_wire()
    messages = wire.send(TEXTS)
    contexts = Contexts(wire, Store(tmp_path / "store"))
    list(contexts.store.add(wire, {"a": TEXTS[0], "b": TEXTS[1]}))
    options = {"max_new_tokens": 7, "temperature": 0.7, "seed": 3, "stop": ["q"]}
    for soft_prompt in (True, False):
        more = {**options, "soft_prompt": soft_prompt}
        stored = contexts.ask([(["a", "b"], question) for question in ASKED], **more)
        assert ask(wire, messages, ASKED, **more) == stored
    assert ask(wire, [m.to_bytes() for m in messages], ASKED) == ask(wire, messages, ASKED)
    assert ask(wire, messages[::-1], ASKED) != ask(wire, messages, ASKED)
    with pytest.raises(ValueError, match="got no message"):
        ask(wire, [], ASKED)


def test_answers_obey_their_options():
    wire = make_wire()
    (message,) = wire.send(TEXTS[:1])
    prefix = wire.receive([message])

    def generated(prompt: Prompt, most: int) -> str:
        """The most probable tokens, each by the logits of all before it at once."""
        ids: list[int] = []
        while len(ids) < most:
            targets = torch.tensor([[*ids, 0]])
            logits = wire.lm.logits(prompt, targets, torch.ones_like(targets, dtype=torch.bool))
            ids.append(int(logits[0, -1].argmax()))
        return wire.lm.tokenizer.decode(ids).strip()

    without = question_prompt(wire.lm, ASKED[:1], prefix)
    within = question_prompt(wire.lm, ASKED[:1], prefix, wire.format)
    options = {"max_new_tokens": 9, "stop": ()}
    assert ask(wire, message, ASKED[:1], soft_prompt=False, **options) == [generated(without, 9)]
    (long,) = ask(wire, message, ASKED[:1], **options)
    assert long == generated(within, 9)
    ended = ask(wire, message, ASKED[:1], max_new_tokens=9, stop=[long[4:6]])
    assert ended == [long[:4].strip()]
    hot = {"max_new_tokens": 30, "temperature": 2.0}
    once = ask(wire, message, ASKED[:1] * 2, **hot, seed=1)
    assert once[0] != once[1] and once == ask(wire, message, ASKED[:1] * 2, **hot, seed=1)
    assert once != ask(wire, message, ASKED[:1] * 2, **hot, seed=2)
    assert (Answering().longest, Answering().ends) == (20, ("\n",))
    assert (Answering(False).longest, Answering(False).ends) == (256, ())
    for wrong in ({"max_new_tokens": 0}, {"temperature": -1.0}):
        with pytest.raises(ValueError, match="expected"):
            ask(wire, message, ASKED, **wrong)
    with pytest.raises(TypeError, match="stop is one text"):
        ask(wire, message, ASKED, stop="\n")


def test_the_command_reads_documents_and_messages_by_another_path(
    model, tmp_path, monkeypatch, capsys
):
    wire = Wire.of(model, "key_norm")
    wire.save_pretrained(tmp_path / "wire")
    there = moved(model, tmp_path / "there" / "m")
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text(TEXTS[0])
    messages = wire.send(TEXTS)
    Path("b.message").write_bytes(messages[1].to_bytes())
    both = ("--context", "a.txt", "--context", "b.message", "--wire", "wire")
    status, _, err = run(monkeypatch, capsys, "ask", *ASKED, *both)
    assert status == 2 and "--reader my-llama=PATH" in err
    options = ("--no-soft-prompt", "--max-new-tokens", "5", "--stop", "q")
    more = ("--reader", str(there), *options)
    status, out, err = run(monkeypatch, capsys, "ask", *ASKED, *both, *more)
    said = ask(wire, messages, ASKED, soft_prompt=False, max_new_tokens=5, stop=["q"])
    assert (status, err) == (0, "")
    tokens = sum(len(wire.lm.tokenize(text)) for text in TEXTS)
    latents = sum(wire.latents(text) for text in TEXTS)
    assert f"my-llama read {tokens} tokens as {latents} latents" in out
    assert out.split("my-llama read")[0].split() == "\n".join(map(printable, said)).split()
    status, _, err = run(monkeypatch, capsys, "ask", *ASKED, *both, *more, "--full-text")
    assert status == 2 and "a message has no text" in err
    for command in (("chat",), ("compress", "a.txt", "--store", "s")):
        where = ("--wire", "wire", "--reader", str(there))
        given = (*command, *where, *(("--context", "a.txt") if command == ("chat",) else ()))
        monkeypatch.setattr("builtins.input", lambda _: "")
        status, out, err = run(monkeypatch, capsys, *given)
        assert (status, err) == (0, ""), command
    stored = ("--store", "s", "--doc", "a.txt", "--wire", "wire", "--reader", str(there))
    status, out, err = run(monkeypatch, capsys, "ask", *ASKED, *stored)
    assert status == 0 and f"as {wire.latents(TEXTS[0])} latents" in out, err


def test_a_hub_models_name_stays_where_a_folder_has_it_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder_of("llama", tmp_path / "acme" / "tiny")
    lm = tiny_lm("llama")
    wire = Wire.of(FrozenLM(lm.model, lm.tokenizer, "hub/tiny"), "key_norm")
    wire.save_pretrained("wire")
    config = Path("wire/config.json")
    config.write_text(config.read_text().replace("hub/tiny", "acme/tiny"))
    again = load_wire("wire")
    again.save_pretrained("again")
    record = json.loads(Path("again/config.json").read_text())
    assert again.reader == record["reader"] == "acme/tiny" and "folders" not in record


def test_a_folder_that_is_gone_is_no_other_model_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    wire = Wire.of(folder_of("llama", tmp_path / "here" / "m"), "key_norm")
    wire.save_pretrained("wire")
    moved(tmp_path / "here" / "m", tmp_path / "there" / "m")
    folder_of("qwen3", tmp_path / "m")
    with pytest.raises(ZooError, match=r"m was in .*here/m, which is not here"):
        load_wire("wire")


def test_two_models_of_one_name_are_no_wire(tmp_path):
    one, other = (FrozenLM.from_pretrained(folder_of("llama", tmp_path / x / "m")) for x in "ab")
    with torch.no_grad():
        other.model.get_input_embeddings().weight[0] += 1
    other = FrozenLM(other.model, other.tokenizer, str(tmp_path / "b" / "m"))
    wire, code = Wire.of(one, "key_norm"), fitted(one, one, 8)
    with pytest.raises(WireError, match="two models of one name, m"):
        TextWire(other, [wire])
    with pytest.raises(WireError, match="two models of one name, m"):
        CodeWire(code.code, Source.of(other), code.readers)
    assert wire_id(wire) != wire_id(Wire.of(other, "key_norm"))


def test_readers_that_came_under_one_name_stay_apart(tmp_path):
    one, other = (make_wire(family) for family in ("llama", "gemma3"))
    wire = TextWire(one.lm, [one, other])
    one.lm.name = other.lm.name = "m"
    contexts = Contexts(wire, Store(tmp_path / "store"))
    assert contexts.models == ["tiny-llama", "tiny-gemma3"]
    list(contexts.store.add(wire, {"a": TEXTS[0]}))
    (message,) = wire.send(TEXTS[:1])
    for reader in wire.readers:
        said = contexts.ask([(["a"], question) for question in ASKED], reader.reader)
        assert said == ask(reader, message, ASKED)


def test_an_answer_is_cut_to_the_room_that_is_left():
    wire = make_wire()
    (message,) = wire.send(TEXTS[:1])
    room = wire.lm.context_length
    (said,) = ask(wire, message, ASKED[:1], soft_prompt=False, max_new_tokens=10 * room, stop=())
    assert said


@pytest.mark.parametrize(
    "options",
    [{"temperature": float("nan")}, {"temperature": 1e9}, {"stop": [""]}, {"max_new_tokens": -1}],
)
def test_options_out_of_range_are_refused_everywhere(options, tmp_path):
    wire = make_wire()
    contexts = Contexts(wire, Store(tmp_path / "store"))
    list(contexts.store.add(wire, {"a": TEXTS[0]}))
    for asking in (
        lambda: ask(wire, wire.send(TEXTS[:1])[0], ASKED, **options),
        lambda: contexts.ask([(["a"], "Who?")], **options),
        lambda: Chat(contexts, ["a"], **options),
    ):
        with pytest.raises(ValueError, match="expected"):
            asking()


@pytest.mark.parametrize("given", [["m=a", "m=b"], [""], ["m="], ["=a"], ["a", "b"]])
def test_values_of_the_option_that_name_no_model(given):
    with pytest.raises(ZooError, match="--reader is"):
        models_given(given)


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ({"dtype": "float16"}, "dtype is 'float16'"),
        ({"device": "nonsense"}, "device is 'nonsense'"),
    ],
)
def test_a_number_type_or_device_that_is_not_there(option, said, model):
    with pytest.raises(ZooError, match=said) as error:
        unwrap(FrozenLM.from_pretrained.__func__)(FrozenLM, model, **option)
    assert "\n" not in str(error.value)
