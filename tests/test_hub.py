"""A saved wire or lens on the Hugging Face hub: what is uploaded, its model card, and mistakes."""

import hashlib
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import ModelCard
from tiny import tiny_lm

import latentwire
from latentwire import push_to_hub
from latentwire.card import save_card
from latentwire.lm import FrozenLM
from latentwire.wire.wire import Wire, WireConfig

DATA = Path(latentwire.__file__).parent / "data"
SMOLLM2, GEMMA3 = "HuggingFaceTB/SmolLM2-135M-Instruct", "google/gemma-3-270m"
SHIPPED = {
    "wires/reader-0": [SMOLLM2],
    "wires": [SMOLLM2, GEMMA3],
    "interlingua": [SMOLLM2, GEMMA3],
    "lens": [SMOLLM2],
}
WIRE_RESULTS = {
    "reader": "smollm2-135m", "data": "/home/me/squad_dev.jsonl", "n": 200, "ratio": 4,
    "rows": {
        "text": {"f1": 0.473, "f1_low": 0.4097, "f1_high": 0.5374},
        "mismatched_latents": {"f1": 0.031, "f1_low": 0.0128, "f1_high": 0.0542},
    },
}  # fmt: skip
LENS_RESULTS = {
    "model": "smollm2-135m", "n": 500, "fve": 0.608, "fve_low": 0.587, "fve_high": 0.631,
    "controls": {"zero": {"fve": -1.195, "fve_low": -1.225, "fve_high": -1.166}},
    "references": {},
}  # fmt: skip


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """A folder in place of the hub, which gets of an upload what the hub would."""
    there = tmp_path / "hub"

    class Api:
        def create_repo(self, repo_id, *, private, exist_ok):
            assert exist_ok
            (there / repo_id).mkdir(parents=True, exist_ok=True)

        def upload_folder(self, *, repo_id, folder_path):
            shutil.copytree(folder_path, there / repo_id, dirs_exist_ok=True)
            return SimpleNamespace(commit_url=f"hub/{repo_id}/commit/1")

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    return there


def copied(name: str, folder: Path) -> Path:
    return Path(shutil.copytree(DATA / name, folder / "saved"))


@pytest.mark.parametrize("name", SHIPPED)
def test_a_saved_folder_is_uploaded_whole_with_a_card(name, hub, tmp_path):
    folder = copied(name, tmp_path)
    saved = {str(p.relative_to(folder)): p for p in folder.rglob("*") if p.is_file()}
    (folder / "results.json").write_text("{}")
    (folder / "predictions.jsonl").write_text("{}")
    assert push_to_hub(folder, "me/mine") == "hub/me/mine/commit/1"
    there = {str(p.relative_to(hub / "me/mine")): p for p in hub.rglob("*") if p.is_file()}
    assert set(there) == {*saved, "README.md"}
    for file, path in saved.items():
        digests = [hashlib.sha256(p.read_bytes()).digest() for p in (path, there[file])]
        assert digests[0] == digests[1], file
    card = ModelCard.load(there["README.md"])
    assert card.data.base_model == SHIPPED[name] and card.data.library_name == "latentwire"
    assert "None yet." in card.text and "/home/" not in card.content


@pytest.mark.parametrize(
    ("name", "results", "row"),
    [
        ("wires/reader-0", WIRE_RESULTS, "| mismatched latents | 3.1 (1.3 to 5.4) |"),
        ("wires", {"readers": {"a": WIRE_RESULTS, "b": WIRE_RESULTS}}, "b: 200 questions of squad"),
        ("wires/reader-0", WIRE_RESULTS, "200 questions of squad_dev.jsonl, 4 tokens in per"),
        ("lens", LENS_RESULTS, "| zero | -1.20 (-1.23 to -1.17) |"),
        ("lens", LENS_RESULTS, "500 activations"),
    ],
)
def test_the_card_holds_the_evaluation(name, results, row, tmp_path):
    path = tmp_path / "results.json"
    path.write_text(json.dumps(results))
    assert row in save_card(copied(name, tmp_path), "me/mine", path).read_text()


def test_a_card_that_somebody_wrote_is_kept_until_there_are_results(hub, tmp_path):
    folder, results = copied("lens", tmp_path), tmp_path / "results.json"
    (folder / "README.md").write_text("My own words.")
    push_to_hub(folder, "me/mine")
    assert (hub / "me/mine/README.md").read_text() == "My own words."
    results.write_text(json.dumps(LENS_RESULTS))
    push_to_hub(folder, "me/mine", results)
    assert "0.61 (0.59 to 0.63)" in (hub / "me/mine/README.md").read_text()


def test_the_snippet_of_a_card_loads_and_asks(tmp_path, monkeypatch, capsys):
    lm = tiny_lm("llama")
    Wire(lm, WireConfig("me/tiny-llama", rank=4, window=64)).save_pretrained(tmp_path / "saved")
    monkeypatch.setattr(FrozenLM, "from_pretrained", classmethod(lambda *_: lm))
    card = save_card(tmp_path / "saved", "me/mine").read_text()
    (snippet,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    exec(snippet.replace("me/mine", str(tmp_path / "saved")), {})
    assert capsys.readouterr().out.startswith("me/tiny-llama [")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"reader": "/home/me/model"}, "'/home/me/model', a folder of this machine"),
        ({"reader": 5}, "names no model"),
        ({"reader": None}, "names no model"),
    ],
)
def test_folders_that_nobody_could_load(change, said, hub, tmp_path):
    folder = copied("wires/reader-0", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(ValueError, match=said) as refused:
        push_to_hub(folder, "me/mine")
    assert "\n" not in str(refused.value) and not hub.exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [("[1]", "cannot be read as results"), ("{}", "KeyError: 'controls'"), ("", "Expecting value")],
)
def test_results_that_are_none(content, said, hub, tmp_path):
    path = tmp_path / "results.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=said) as refused:
        push_to_hub(copied("lens", tmp_path), "me/mine", path)
    assert "\n" not in str(refused.value) and not hub.exists()


def test_no_folder_and_a_hub_that_refuses(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="holds no wire and no lens"):
        push_to_hub(tmp_path, "me/mine")

    def refuse(*_, **__):
        raise OSError("401 Client Error:\nUnauthorized for url")

    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", refuse)
    with pytest.raises(ValueError, match=r"cannot push to 'me/mine'.*HF_TOKEN") as refused:
        push_to_hub(copied("lens", tmp_path), "me/mine")
    assert "\n" not in str(refused.value)
