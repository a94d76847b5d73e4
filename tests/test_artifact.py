"""What a saved folder may not make its loader do: allocate, wait, read elsewhere, run code, ask."""

import hashlib
import io
import json
import os
import sys

import pytest
import torch
from safetensors.torch import load, save
from test_fuzz import KINDS, LM, folders, load_wire  # noqa: F401
from test_fuzz import load as load_kind
from tiny import tokenizer

from latentwire.lens.activations import Dump, dump, tokenized
from latentwire.lens.checks import LensError
from latentwire.lens.decoder import Decoder
from latentwire.lens.encoder import Encoder
from latentwire.lm import FrozenLM
from latentwire.lm.zoo import ZooError
from latentwire.reading import parse_json, read_regular
from latentwire.train.checkpoints import CheckpointError, Checkpoints
from latentwire.wire.corrector import ResidualCorrector
from latentwire.wire.folder import WireError
from latentwire.wire.learned import shared_wire as shared

ERRORS = {kind: LensError if kind == "lens" else WireError for kind in KINDS}


@pytest.fixture
def folder(request, tmp_path, folders):  # noqa: F811
    """A copy of a good artifact of the kind that a test names."""
    kind = request.node.callspec.params["kind"]
    for path in folders[kind].rglob("*.*"):
        place = tmp_path / path.relative_to(folders[kind])
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(path.read_bytes())
    return tmp_path


def change(folder, **values) -> None:
    config = folder / "config.json"
    record = json.loads(config.read_text())
    for name, value in values.items():
        *above, last = name.split("__")
        inner = record
        for part in above:
            inner = inner[part]
        inner[last] = value
    config.write_text(json.dumps(record))


def never(*_, **__):
    raise AssertionError("made before it was compared with the weights")


@pytest.mark.parametrize(
    ("kind", "values", "said"),
    [
        ("wire", {"rank": 3_000_000}, "rank is 3000000, and slots.down has shape"),
        ("wire", {"format_tokens": 10**9}, "format_tokens is 1000000000, and format has"),
        ("wire", {"ratio": 10**30}, "ratio is 10000000000000000"),
        ("wire", {"rank": True}, "rank is True; expected a whole number"),
        ("shared wire", {"config__trunk_layers": 10**9}, "trunk_layers is 1000000000, and the"),
        ("shared wire", {"config__sizes__layers": 10**9}, "layers is 1000000000, and the"),
        ("shared wire", {"config__sizes__width": 10**8}, "width is 100000000, and widen.weight"),
        ("shared wire", {"config__sizes__ratio": 2**20, "config__sizes__window": 2**20}, "ratio"),
        ("shared wire", {"config__format_tokens": 10**9}, "format_tokens of reader 0 is 1000"),
        ("shared wire", {"config__ways_in": ["lora"]}, "ways_in is a field that this release does"),
        ("lens", {"encoder__before": 10**9}, "encoder.before is 1000000000, and encoder.before"),
        ("lens", {"decoder__lora": 10**6}, "decoder.lora is 1000000, and"),
        ("lens", {"decoder__own_copy": True}, "own_copy is a field that this release does not"),
        ("lens", {"decoder__max_new_tokens": 10**9}, "max_new_tokens is 1000000000"),
        ("lens", {"decoder__template": "x" * 5000 + "{activation}"}, "template has 5012 char"),
        ("lens", {"spread": 0.0}, "spread of the activations is 0.0; expected more than 0"),
        ("lens", {"norm": float("nan")}, "norm is nan; expected a finite number"),
        ("text wire", {"wires": ["reader-0"] * 10**4}, "no name twice"),
    ],
)
def test_numbers_are_compared_with_the_weights_first(kind, values, said, folder, monkeypatch):
    change(folder, **values)
    for part in (ResidualCorrector, Decoder, Encoder):
        monkeypatch.setattr(part, "__init__", never)
    monkeypatch.setattr(shared, "transformer", never)
    with pytest.raises(ERRORS[kind], match=said.replace(".", r"\.")):
        load_kind(kind, folder)


@pytest.mark.parametrize("name", ["/dev/zero", "../other.safetensors", "a/b", "", "..", "x\0"])
@pytest.mark.parametrize("kind", ["shared wire", "text wire"])
def test_names_of_files_are_plain(kind, name, folder):
    value = {name: "0" * 64} if kind == "shared wire" else [name]
    change(folder, **{"sha256" if kind == "shared wire" else "wires": value})
    with pytest.raises(WireError, match=r"names that save gives files|is not a plain file name"):
        load_kind(kind, folder)


@pytest.mark.parametrize("name", ["config.json", "weights"])
@pytest.mark.parametrize("how", ["pipe", "device", "folder"])
@pytest.mark.parametrize("kind", ["wire", "shared wire", "lens"])
def test_only_regular_files_are_read(kind, name, how, folder):
    weights = sorted(folder.glob("*.safetensors"))[0]
    path = folder / name if name == "config.json" else weights
    path.unlink()
    {"pipe": os.mkfifo, "device": lambda p: p.symlink_to("/dev/zero"), "folder": os.mkdir}[how](
        path
    )
    with pytest.raises(ERRORS[kind], match="not a regular file"):
        load_kind(kind, folder)


@pytest.mark.parametrize("kind", ["wire", "shared wire", "code wire", "lens"])
def test_a_file_that_no_memory_can_hold_is_refused(kind, folder):
    os.truncate(sorted(folder.glob("*.safetensors"))[0], 1 << 43)  # a hole takes no room on a disk
    with pytest.raises(ERRORS[kind], match=r"no memory for them|bytes; expected at most"):
        load_kind(kind, folder)


def test_a_config_is_small(tmp_path):
    (tmp_path / "config.json").write_bytes(b" " * (1 << 20) + b"{}")
    with pytest.raises(WireError, match="1048578 bytes; expected at most 1048576"):
        load_wire(tmp_path)
    with pytest.raises(OSError, match="not a regular file"):
        read_regular(tmp_path)


@pytest.mark.parametrize("bad", ["int8", "bool", "complex64", "nan", "inf", "too large"])
@pytest.mark.parametrize("kind", ["wire", "shared wire", "lens"])
def test_weights_are_finite_floating_numbers(kind, bad, folder):
    path = sorted(folder.glob("*.safetensors"))[0]
    state = load(path.read_bytes())
    name = sorted(state)[0]
    if bad in ("int8", "bool", "complex64"):
        state[name] = state[name].to(getattr(torch, bad))
    else:
        value = {"nan": float("nan"), "inf": float("inf"), "too large": 1e300}[bad]
        state[name] = torch.full(state[name].shape, value, dtype=torch.float64)
    data = save(state)
    path.write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    change(
        folder,
        **({f"sha256__{path.name}": digest} if kind == "shared wire" else {"sha256": digest}),
    )
    said = f"{path.name}: {name} (is {bad}; expected floating|has NaN or infinite values)"
    with pytest.raises(ERRORS[kind], match=said):
        load_kind(kind, folder)


@pytest.mark.parametrize(
    ("state", "metadata", "said"),
    [
        (
            {"value/w": torch.ones(3, dtype=torch.int8)},
            {"step": "0"},
            "torch.int8; expected torch.float32",
        ),
        ({"value/w": torch.tensor([1.0, torch.nan, 1.0])}, {"step": "0"}, "NaN or infinite"),
        ({"value/w": torch.ones(3)}, {"step": "-1"}, "is of step '-1'; expected a number"),
        ({"value/w": torch.ones(3)}, None, "is of step ''; expected a number"),
    ],
)
def test_checkpoints_are_checked_before_they_are_copied(tmp_path, state, metadata, said):
    weight = torch.zeros(3, requires_grad=True)
    (tmp_path / "stage.safetensors").write_bytes(save(state, metadata=metadata))
    with pytest.raises(CheckpointError, match=said):
        Checkpoints(tmp_path, "stage").load({"w": weight}, torch.optim.AdamW([weight]))
    assert not weight.any()


def test_shards_of_a_dump_are_plain_names(tmp_path):
    texts = tokenized(LM, ["A text of some tokens."], window=40, skip=2)
    dump(LM, 1, texts, tmp_path)
    index = json.loads((tmp_path / "index.json").read_text())
    for name in ("/etc/passwd", "../x"):
        (tmp_path / "index.json").write_text(json.dumps({**index, "shards": {name: 1}}))
        with pytest.raises(LensError, match="is not a plain file name"):
            Dump(LM, 1, texts, tmp_path)


CODE = """
open({mark!r}, "w").close()
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
class Config(LlamaConfig):
    model_type = "outside"
"""


@pytest.mark.parametrize("place", ["config.json", "tokenizer_config.json"])
def test_code_of_a_model_is_refused_without_a_question(tmp_path, monkeypatch, capsys, place):
    mark, folder = tmp_path / "ran", tmp_path / "model"
    LM.model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    (folder / "outside.py").write_text(CODE.format(mark=str(mark)))
    record = json.loads((folder / place).read_text())
    named = {"AutoConfig": "outside.Config", "AutoModelForCausalLM": "outside.LlamaForCausalLM"}
    named["AutoTokenizer"] = [None, "outside.PreTrainedTokenizerFast"]
    record |= {"auto_map": named, "tokenizer_class": "OutsideTokenizer"}
    if place == "config.json":
        record["model_type"] = "outside"
    (folder / place).write_text(json.dumps(record))
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 9))
    asked = []
    monkeypatch.setattr("builtins.input", lambda *said: asked.append(said) or "y")
    with pytest.raises(ZooError, match=r"it needs code of its own, which is never run") as caught:
        FROM_PRETRAINED(str(folder))
    assert not mark.exists() and not asked and "\n" not in str(caught.value)


FROM_PRETRAINED = FrozenLM.from_pretrained


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
        ("1" * 5000, "Exceeds the limit"),
        ('{"id": "\\ud83d"}', "half of a surrogate pair"),
        (b"\xff", "not UTF-8 at byte 0"),
        ("{\n}}", "Extra data, line 2"),
    ],
)
def test_json_that_is_refused(text, said):
    with pytest.raises(ValueError, match=said) as caught:
        parse_json(text)
    assert "\n" not in str(caught.value)
    assert parse_json('{"id": "\\ud83d\\ude00 \\\\ud83d"}') == {"id": "😀 \\ud83d"}
