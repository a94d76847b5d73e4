"""A run of seek with its controls: resumable, honest about tokens, one line for a mistake."""

import json
import sys
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import tiny_lm

from latentwire.__main__ import main
from latentwire.lm import seed_of
from latentwire.seek import run as recipe_module
from latentwire.seek.recipe import SeekRecipe, load_task
from latentwire.seek.rewards.base import Rating
from latentwire.seek.rewards.confidence import Confidence
from latentwire.seek.run import best_of_n, run_seek, seek_prompt
from latentwire.seek.search import Seek
from latentwire.seek.thoughts import Thoughts, ThoughtsConfig
from latentwire.tasks.base import DataError, Problem


class ByText:
    """A reward from -0.95 to -0.3 that depends on the text alone."""

    low, high = -1.0, 0.0

    def __call__(self, attempts):
        return [Rating(-0.3 - 0.65 * (sum(map(ord, a.text)) % 97) / 97, {}, 5) for a in attempts]


@pytest.fixture(scope="module")
def lm():
    return tiny_lm("llama")


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    monkeypatch.setitem(recipe_module.REWARDS, "self", lambda lm, task: ByText())
    path = tmp_path / "sums.jsonl"
    rows = [
        {"id": f"s{i}", "question": f"What is {i} + {i}?", "answer": str(2 * i)} for i in range(5)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return SeekRecipe(str(path), steps=3, k=0.5, lr=0.3, max_new_tokens=16, batch=2)


def test_a_run_reports_every_arm_and_what_it_spent(lm, recipe, tmp_path):
    result = run_seek(lm, recipe, tmp_path / "run")
    assert list(result["arms"]) == ["greedy", "seek", "random_sign", "best_of_n", "pass_at_k"]
    assert result["n"] == 5 and result["reroll"] == {"changed": 0, "of": 5}
    records = [json.loads(r) for r in (tmp_path / "run" / "predictions.jsonl").open()]
    for record in records:
        for arm in record["arms"].values():
            rated = [s["reward"] for s in arm["trace"]]
            assert arm["reward"] == max(rated) and arm["trace"][0]["step"] == 0
            assert arm["text"] == arm["trace"][rated.index(max(rated))]["text"]
    spent = sum(s["tokens"] for r in records for s in r["arms"]["seek"]["trace"]) / 5
    assert result["arms"]["seek"]["tokens"] == pytest.approx(spent)
    assert result["curves"]["seek"][-1]["tokens"] == pytest.approx(spent)
    assert json.loads((tmp_path / "run" / "results.json").read_text()) == result


def test_best_of_n_spends_what_the_search_spent_and_not_an_answer_more(lm, recipe):
    problems = load_task(recipe).problems
    found = Seek(lm, ByText(), recipe.search())(problems)
    drawn = best_of_n(lm, ByText(), recipe, found)
    spent, most = sum(f.tokens for f in drawn), sum(f.tokens for f in found)
    assert most - 1 <= spent < most + 2 * (16 + 5)
    again = best_of_n(lm, ByText(), recipe, found)
    assert [f.text for f in again] == [f.text for f in drawn]
    assert all(f.trace[0].text == s.trace[0].text for f, s in zip(drawn, found, strict=True))


def test_an_interrupted_run_goes_on_where_it_stopped(lm, recipe, tmp_path):
    whole = run_seek(lm, recipe, tmp_path / "whole")
    run = tmp_path / "cut"
    run_seek(lm, recipe, run)
    lines = (run / "predictions.jsonl").read_text().splitlines(keepends=True)
    # One whole batch, one record of the next, and half a character.
    kept = "".join(lines[:3]).encode() + b'{"id": "\xc3'
    (run / "predictions.jsonl").write_bytes(kept)
    resumed = run_seek(lm, recipe, run)
    assert {**resumed, "config": 0} == {**whole, "config": 0}
    with pytest.raises(ValueError, match="holds another run"):
        run_seek(lm, replace(recipe, lr=0.1), run)
    (run / "config.json").unlink()
    with pytest.raises(ValueError, match="holds another run"):
        run_seek(lm, recipe, run)
    Path(recipe.data).write_text('{"id": "s0", "question": "Another?", "answer": "1"}\n')
    with pytest.raises(ValueError, match="holds another run"):
        run_seek(lm, recipe, tmp_path / "whole")


def test_two_problems_of_one_id_are_refused(recipe):
    Path(recipe.data).write_text('{"id": "a", "question": "1?", "answer": "1"}\n' * 2)
    with pytest.raises(DataError, match="two problems have the id 'a'"):
        load_task(recipe)


def test_the_curve_of_the_published_search_ends_at_the_answer_it_gives(lm, recipe, tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"id": "a", "question": "1?", "answer": "1"}\n')
    original = replace(recipe, data=str(path), compat="original")
    result = run_seek(lm, original, tmp_path / "run")
    arm = json.loads((tmp_path / "run" / "predictions.jsonl").read_text())["arms"]["seek"]
    assert arm["text"] == arm["trace"][-1]["text"]
    assert result["curves"]["seek"][-1]["accuracy"] == result["arms"]["seek"]["accuracy"]


def test_exact_knows_the_answer_and_a_problem_without_one_fails_alone(lm, recipe, tmp_path):
    path = tmp_path / "some.jsonl"
    path.write_text(
        '{"id": "a", "question": "1+1?", "answer": "2"}\n{"id": "b", "question": "?"}\n'
    )
    result = run_seek(lm, replace(recipe, data=str(path), reward="exact"), tmp_path / "run")
    records = [json.loads(r) for r in (tmp_path / "run" / "predictions.jsonl").open()]
    assert result["failures"] == 1 and "gold" in records[1]["arms"]["seek"]["failure"]
    assert records[0]["arms"]["seek"]["failure"] is None


def test_arc_goes_through_the_whole_path_with_program(lm, recipe, tmp_path):
    pair = {"input": [[1]], "output": [[2]]}
    path = tmp_path / "arc.json"
    path.write_text(json.dumps({"t": {"train": [pair], "test": [pair]}}))
    wide = tiny_lm("llama")
    wide.model.config = deepcopy(wide.model.config)  # tiny models share theirs
    wide.model.config.max_position_embeddings = 4096
    arc = replace(recipe, data=f"arc:{path}", reward="program", section=r"## Description\n(.*)##")
    result = run_seek(wide, arc, tmp_path / "run")
    record = json.loads((tmp_path / "run" / "predictions.jsonl").read_text())
    assert result["n"] == 1 and "no section" in record["arms"]["seek"]["note"]
    assert record["arms"]["seek"]["trace"][0]["reward"] == -1.0


def test_a_run_takes_problems_and_a_reward_of_ones_own(lm, recipe, tmp_path):
    task = load_task(recipe)
    given = replace(recipe, reward="confidence", data="sums")
    with pytest.raises(DataError, match="no such file"):
        run_seek(lm, given, tmp_path / "run")
    result = run_seek(lm, given, tmp_path / "run", task, reward=ByText())
    assert result["reward"] == result["config"]["reward"] == "ByText"
    assert result["arms"] == run_seek(lm, replace(recipe, reward="self"))["arms"]
    with pytest.raises(ValueError, match="reward is ByText there"):
        run_seek(lm, given, tmp_path / "run", task)


def test_thoughts_search_before_the_answer(lm, recipe, tmp_path):
    thoughts = replace(recipe, strategy="thoughts", steps=4, k=0.1, lr=0.03)
    result = run_seek(lm, thoughts, tmp_path / "run")
    assert result["arms"]["random_sign"]["tokens"] > 0 and result["n"] == 5
    found = seek_prompt(lm, thoughts, "What is 2 + 2?")
    assert len(found.trace) == 2 and -1 <= found.trace[1].parts["confidence"] <= 0
    none = seek_prompt(lm, replace(thoughts, steps=0), "What is 2 + 2?")
    assert none.trace[0].text  # placeholders alone are tried too


def test_thoughts_move_along_the_noise_or_with_its_sign_tossed(lm, monkeypatch):
    monkeypatch.setattr("latentwire.seek.thoughts.confidence", lambda logits, k: torch.tensor(-0.4))
    seen, final = [], lm.last_hidden
    monkeypatch.setattr(
        lm, "last_hidden", lambda prompt: (seen.append(prompt.embeds[0]), final(prompt))[1]
    )
    config = ThoughtsConfig(count=2, steps=3, max_new_tokens=4, lr=0.5)
    signs = [1 - 2 * (seed_of(0, "p", step) % 2) for step in range(3)]
    assert -1 in signs[:2]
    for update, by in (("reward", [1, 1]), ("random_sign", signs)):
        seen.clear()
        search = Thoughts(lm, Confidence(lm), replace(config, update=update))
        search([Problem("p", "q", "What is 2 + 2?")])
        generator = torch.Generator().manual_seed(seed_of(0, "p"))
        noise = [torch.randn(2, 32, generator=generator) for _ in range(3)]
        moved = sum(0.5 * 0.6 * sign * n for sign, n in zip(by, noise[:2], strict=False))
        expected = search.start + search.scale * (moved + 0.1 * 0.95**2 * noise[2])
        torch.testing.assert_close(seen[2], expected)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--k", "0"], "0 < k <= 1"),
        (["--batch", "0"], "expected at least 1"),
        (["--reward", "program"], "expected program with arc:"),
        (["--data", "none.jsonl"], "no such file"),
        (["--baseline"], "set samples"),
        (["--json", "nowhere/x.json"], "no folder"),
        (["--reward", "exact", "--prompt", "What?"], "a prompt has none"),
        (["--prompt", "What?", "--run", "x"], "keeps no run"),
        (["--strategy", "thoughts", "--k", "0.5"], "has no k"),
    ],
)
def test_a_mistake_costs_one_line(lm, monkeypatch, capsys, options, said):
    monkeypatch.setattr("latentwire.lm.frozen.FrozenLM.from_pretrained", lambda *_: lm)
    arguments = ["latentwire", "seek", "tiny", "--max-new-tokens", "8", *options]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as stop:
        main()
    err = capsys.readouterr().err
    assert stop.value.code == 2 and said in err and err.count("\n") == 1, err


def test_one_prompt_prints_its_trace(lm, monkeypatch, capsys, recipe):
    monkeypatch.setattr("latentwire.lm.frozen.FrozenLM.from_pretrained", lambda *_: lm)
    options = ["--prompt", "What is 2 + 2?", "--steps", "2", "--max-new-tokens", "24"]
    monkeypatch.setattr(sys, "argv", ["latentwire", "seek", "tiny", *options])
    main()
    printed = capsys.readouterr().out
    assert "step  0: reward" in printed and "tokens flipped" in printed
