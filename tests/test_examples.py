"""Each script of examples/ as a user runs it, on the real small models."""

import re
import runpy
import sys
import warnings
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
QUIET = (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning)
"""Warnings that Python shows no user."""


@pytest.fixture
def printed(monkeypatch, capsys):
    """What a script prints, given its name and arguments, if it warns of nothing."""

    def run(name: str, *arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for kind in QUIET:
                warnings.simplefilter("ignore", kind)
            runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        said = capsys.readouterr()
        assert "Warning" not in said.err
        return said.out

    return run


def test_one_text_is_compressed_once_and_asked_twice(printed):
    out = printed("compress_and_ask.py")
    assert "smollm2-135m read 215 tokens and keeps 54" in out
    assert "out of the lake? Desaguadero" in out and "islands made of? totora" in out


def test_two_families_read_one_message(printed):
    out = printed("two_readers.py", str(EXAMPLES / "lighthouse.txt"))
    assert "gemma3-270m: John Smeaton" in out and "smollm2-135m: John Smeaton" in out


def test_an_answer_is_searched_by_a_reward_of_the_script(printed):
    out = printed("search.py", "Name the largest planet of the solar system.")
    rewards = [float(r) for r in re.findall(r"reward (-?[\d.]+),", out)]
    assert len(rewards) == 4 and all(-1 <= r <= 0 for r in rewards)
    assert float(re.findall(r"best, (-?[\d.]+):", out)[0]) == max(rewards) > rewards[0]


def test_an_activation_is_explained_and_edited(printed):
    out = printed("explain_and_edit.py")
    own, other = (float(x) for x in re.findall(r"explains? (-?[\d.]+)", out))
    assert 1 > own > other > 0
    before, after = re.findall(r"(?:as it is|edited): (.*)", out)
    assert before != after


def test_activations_of_another_tool_are_explained_as_the_lens_s_own(printed):
    out = printed("explain_activations.py", "She put the cake into the")
    token, share, words = re.findall(r"^'(.*)', explained (-?[\d.]+): '(.*)'$", out, re.M)[-1]
    whole = printed("explain_and_edit.py")  # its last token, by the lens's own reading
    assert token == " the" and f"activation of ' the': {words!r}" in whole
    assert f"its words explain {share} of its variance" in whole


@pytest.mark.parametrize("script", sorted(EXAMPLES.glob("*.py")), ids=lambda p: p.name)
def test_a_script_is_short_and_says_how_to_run_it(script):
    text = script.read_text()
    assert 20 <= len(text.splitlines()) <= 50
    assert (
        f"python examples/{script.name}" in text
        and f'"{script.name}"' in Path(__file__).read_text()
    )
