"""`--dtype`: which number type it chooses, and agreement in bfloat16."""

import pytest
import torch
from tiny import CONFIGS, tiny_lm

from latentwire.cli.command_line import chosen_dtype
from latentwire.lm import FrozenLM, Greedy
from latentwire.lm.devices import fast_dtype
from latentwire.lm.doctor import ROUNDING, logits_equal_hugging_face, make_case, rounding
from latentwire.wire.load import load_with
from latentwire.wire.wire import Wire, WireConfig


@pytest.mark.parametrize(
    ("has", "expected"),
    [
        ({"avx512_f": True, "avx512_bf16": False}, "float32"),
        ({"avx512_bf16": True}, "bfloat16"),
        ({"amx_bf16": True}, "bfloat16"),
        ({}, "float32"),
    ],
)
def test_auto_is_bfloat16_where_the_cpu_has_instructions_for_it(monkeypatch, has, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert fast_dtype("cpu") == chosen_dtype("auto") == expected
    assert [chosen_dtype(asked) for asked in (None, "float32", "bfloat16")] == [
        None,
        "float32",
        "bfloat16",
    ]


def test_a_wires_reader_is_loaded_in_the_number_type_that_is_asked_for(tmp_path, monkeypatch):
    lm, asked = tiny_lm("llama"), []
    Wire(lm, WireConfig(lm.name, window=64, rank=2, format_tokens=2)).save_pretrained(tmp_path)

    def loaded(name, dtype="float32", device=None):
        asked.append(dtype)
        return lm

    monkeypatch.setattr(FrozenLM, "from_pretrained", loaded)
    for dtype in (None, "float32", "bfloat16"):
        load_with(tmp_path, dtype=dtype)
    assert asked == ["float32", "float32", "bfloat16"]


@pytest.mark.parametrize("ragged", [False, True], ids=["row", "ragged"])
@pytest.mark.parametrize("kind", ["ids", "prefix", "ragged"])
@pytest.mark.parametrize("family", list(CONFIGS))
@torch.no_grad()
def test_in_bfloat16_logits_are_hugging_faces_but_for_its_own_rounding(family, kind, ragged):
    lm = tiny_lm(family, torch.bfloat16)
    assert logits_equal_hugging_face(lm, kind, ragged) <= ROUNDING * rounding(lm)
    out = lm.generate(make_case(lm, kind, ragged).prompt, Greedy(), 4, ())
    assert out.log_probs.isfinite().all() and out.embeds.dtype == torch.bfloat16
