"""The report of made-up runs of seek: what it says of which intervals, and what it shows."""

import json
import re
from itertools import pairwise
from pathlib import Path

import pytest
from rich.console import Console

from latentwire.report.drawing import spread
from latentwire.report.folder import ReportError
from latentwire.report.page import write_report
from latentwire.report.seek import helps, seek_table, verdict


def arm(accuracy: float, tokens: float = 2000.0, **more: float) -> dict[str, float]:
    return {
        "accuracy": accuracy,
        "low": accuracy - 0.03,
        "high": accuracy + 0.03,
        "tokens": tokens,
        **more,
    }


def gap(mean: float, spread: float = 0.04) -> dict[str, float]:
    return {"mean": mean, "low": mean - spread, "high": mean + spread}


RESULTS = {
    "kind": "seek",
    "model": "smollm2-135m",
    "task": "gsm8k_test",
    "reward": "self",
    "n": 500,
    "failures": 0,
    "config": {"steps": 10, "lr": 0.03, "seed": 0},
    "arms": {
        "greedy": arm(0.1, 250.0),
        "seek": arm(0.2),
        "random_sign": arm(0.12),
        "best_of_n": arm(0.14, 1900.0, samples=9.3),
        "pass_at_k": arm(0.3, 1900.0, samples=9.3),
    },
    "differences": {"greedy": gap(0.1), "random_sign": gap(0.08), "best_of_n": gap(0.06)},
    "reroll": {"changed": 0, "of": 500},
    "flips": [0.0, 0.4, 0.5],
    "curves": {
        k: [{"tokens": 250.0, "accuracy": 0.1}, {"tokens": 2000.0, "accuracy": end}]
        for k, end in (("seek", 0.2), ("random_sign", 0.12), ("best_of_n", 0.14))
    },
}


def but(**changed) -> dict:
    """RESULTS with other gaps (by arm) or other entries."""
    gaps = {k: v for k, v in changed.items() if k in RESULTS["differences"]}
    rest = {k: v for k, v in changed.items() if k not in gaps}
    return {**RESULTS, "differences": {**RESULTS["differences"], **gaps}, **rest}


def without(name: str) -> dict:
    parts = {
        k: {a: v for a, v in RESULTS[k].items() if a != name}
        for k in ("arms", "differences", "curves")
    }
    return {**RESULTS, **parts}


def record(i: int, changed: bool = True, **more) -> dict:
    first = {
        "step": 0,
        "reward": -1.0,
        "parts": {"correct": 0.0},
        "flipped": 0,
        "text": f"<b>first</b> {i}",
        "seconds": 0.1,
        "tokens": 250,
        "right": False,
    }
    last = {**first, "step": 1, "reward": 0.0, "text": f"second {i}", "flipped": 3, "right": True}
    end = last if changed else first
    seek = {k: end[k] for k in ("text", "right", "reward")}
    seek |= {"span": [0, 30], "note": "", "failure": None, "trace": [first, last], **more}
    return {"id": f"q{i}", "question": f"How many, {i}?", "gold": str(i), "arms": {"seek": seek}}


def filled(run: Path, results: dict, records: list[dict] | None = None) -> Path:
    (run / "results.json").write_text(json.dumps(results))
    if records is not None:
        (run / "predictions.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    return run


def page(run: Path, results: dict, records: list[dict] | None = None) -> str:
    return write_report(filled(run, results, records)).read_text("utf-8")


def test_a_search_that_helps():
    assert helps(RESULTS) is True
    assert verdict(RESULTS) == [
        "Seek, at 20.0% (17.0 to 23.0), is better than the greedy answer, 10.0% (7.0 to 13.0): "
        "a difference of +10.0 points (+6.0 to +14.0).",
        "Seek is better than the best of 9.3 samples by the same reward, 14.0% (11.0 to 17.0): "
        "a difference of +6.0 points (+2.0 to +10.0). Both took about 2,000 tokens per problem.",
        "Seek is better than the random-sign control (the same steps, each with the sign of the "
        "reward drawn), 12.0% (9.0 to 15.0): a difference of +8.0 points (+4.0 to +12.0). "
        "The direction of the reward's gradient helps.",
        "The reward is stable: rated a second time, all 500 first answers kept their rating.",
    ]


@pytest.mark.parametrize("key", ["greedy", "best_of_n", "random_sign"])
@pytest.mark.parametrize(
    ("mean", "said"),
    [(0.05, "is better than"), (0.04, "is not shown to be better"), (-0.05, "is worse than")],
)
def test_an_interval_that_holds_zero_shows_nothing(key, mean, said):
    line = verdict(but(**{key: gap(mean)}))[("greedy", "best_of_n", "random_sign").index(key)]
    assert said in line


def test_helps_needs_every_control():
    assert helps(but(greedy=gap(0.01))) is False
    assert helps(but(random_sign=gap(0.01))) is None
    assert helps(but(best_of_n=gap(-0.2))) is None
    assert all(helps(without(k)) is None for k in ("greedy", "random_sign", "best_of_n"))


def test_the_random_sign_does_as_well():
    said = verdict(but(random_sign=gap(0.0)))[2]
    assert "is not shown to be better" in said and "0.0 points (-4.0 to +4.0)" in said
    assert "not shown that the direction of the reward's gradient matters" in said
    assert "does harm" in verdict(but(random_sign=gap(-0.1)))[2]
    assert "which was not run. Whether the direction" in verdict(without("random_sign"))[2]


def test_tokens_that_are_not_equal_are_named():
    arms = {**RESULTS["arms"], "best_of_n": arm(0.14, 1200.0)}
    assert "Seek took more tokens per problem: 2,000 against 1,200." in verdict(but(arms=arms))[1]
    assert helps(but(arms=arms)) is None
    arms = {**RESULTS["arms"], "best_of_n": arm(0.14, 4000.0)}
    assert "best of N" in verdict(but(arms=arms))[1]
    assert "Seek took fewer tokens" in verdict(but(arms=arms))[1]
    assert "which was not run." in verdict(without("best_of_n"))[1]


@pytest.mark.parametrize(
    ("mean", "words"),
    [(0.05, "is better than"), (0.02, "is not shown to be better than"), (-0.1, "is worse than")],
)
def test_exact_is_an_oracle(mean, words):
    arms = {**RESULTS["arms"], "pass_at_k": arm(0.22, samples=10)}
    results = but(reward="exact", arms=arms)
    # Results of an earlier version have no difference to pass@K.
    said = verdict(results)[1]
    assert "oracle" in said and said.endswith("pass@K (here pass@10, 22.0% (19.0 to 25.0)).")
    gaps = {**results["differences"], "pass_at_k": gap(mean)}
    said = verdict({**results, "differences": gaps})[1]
    assert f"Seek {words} pass@10, 22.0% (19.0 to 25.0): a difference of " in said
    said = verdict({**without("pass_at_k"), "reward": "exact"})[1]
    assert said.endswith("pass@K, which was not run.")
    assert not any("oracle" in s for s in verdict(RESULTS))


def test_reroll_failures_and_few_problems():
    said = verdict(but(reroll={"changed": 7, "of": 90}, failures=2, n=100))
    assert "7 of 90 first answers got another rating" in said[3]
    assert said[4] == (
        "2 of 100 searches failed. The best answer that each had until then counts as its answer."
    )
    assert "With 100 problems the intervals are wide" in said[5] and "17.0% and 23.0%" in said[5]
    assert "+6.0 and +14.0 points" in said[5] and len(said) == 6
    assert "is unknown" in verdict(but(reroll={"changed": 0, "of": 0}))[3]


def test_fewer_than_thirty_problems_give_no_verdict():
    few = verdict(but(n=29))
    assert helps(but(n=30)) is True and helps(but(n=29)) is None
    assert few[0] == "Too few for a verdict: 29 problems, and at least 30 are needed."
    assert not any("better" in line for line in few)


def test_a_row_is_one_line_of_a_terminal():
    console = Console(width=80)
    with console.capture() as captured:
        console.print(seek_table(RESULTS))
    _, _, *rows, caption = captured.get().splitlines()
    names = ("greedy", "seek", "random sign", "best of 9.3", "pass@9.3 (oracle)")
    assert all(r.startswith(f"{n} ") for n, r in zip(names, rows, strict=True))
    assert "20.0 (17.0 to 23.0)" in rows[1] and "+10.0 (+6.0 to +14.0)" in rows[0]
    assert caption.rstrip().endswith("Differences in points.")


def test_a_whole_page(tmp_path):
    records = [record(i, changed=i % 2 == 0) for i in range(40)]
    records[0]["arms"]["seek"].update(failure="<i>why</i>", reward=None)
    text = page(tmp_path, RESULTS, records)
    assert text.count("<article>") == 10 and "In 20 of 40 problems" in text and "seed 0" in text
    assert text.count("<svg") == 2 and "greedy" in text and "&lt;b&gt;first&lt;/b&gt;" in text
    assert "<b>first" not in text and "<i>why" not in text and "&lt;i&gt;why" in text
    assert 'class="verdict good"' in text and "lr 0.03" in text and "final answer (step 1)" in text
    assert "or empty: config.json." in text
    assert not re.search(r"https?:|//|@import|<link", text)
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids)) and "#00000" not in text
    assert page(tmp_path, RESULTS, records) == text


def test_what_is_missing_is_left_out(tmp_path):
    text = page(tmp_path, {**without("random_sign"), "flips": [], "config": None})
    assert "or empty: predictions.jsonl, config.json." in text and "How far" not in text
    assert text.count("<svg") == 1 and "<article>" not in text
    text = page(
        tmp_path, RESULTS, [record(0, changed=False), {**record(1, trace=[]), "gold": None}]
    )
    assert "In 0 of 2 problems" in text and "<article>" not in text


def test_one_problem_with_nothing_right(tmp_path):
    none = {**arm(0.0, 0.0), "low": 0.0, "high": 0.0}
    curves = {"seek": [{"tokens": 0.0, "accuracy": 0.0}], "best_of_n": []}
    results = but(arms={"greedy": none, "seek": none}, curves=curves, flips=[0.0], n=1)
    assert "With 1 problem the intervals" in page(tmp_path, results)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (
            {"arms": {"greedy": arm(0.1)}},
            "results.json: expected an object as arms.seek, got nothing",
        ),
        ({"reroll": 3}, "results.json: expected an object as reroll, got 3"),
        ({"flips": [None]}, "results.json: expected a number as flips[0], got null"),
        ({"n": 1.5}, "results.json: expected a whole number as n, got 1.5"),
        (  # a number that JSON holds and no plot
            {"flips": [10**20]},
            f"results.json: expected a number as flips[0], got {10**20}",
        ),
    ],
)
def test_damaged_results(tmp_path, changed, said):
    with pytest.raises(ReportError) as error:
        write_report(filled(tmp_path, {**RESULTS, **changed}))
    assert str(error.value) == f"{tmp_path}/{said}"


def test_damaged_predictions(tmp_path):
    bad = record(1)
    del bad["arms"]["seek"]["trace"][1]["text"]
    with pytest.raises(ReportError) as error:
        write_report(filled(tmp_path, RESULTS, [record(0), bad]))
    where = f"{tmp_path}/predictions.jsonl, line 2"
    assert str(error.value) == f"{where}: expected text as arms.seek.trace[1].text, got nothing"


def test_names_keep_their_distance_and_stay_near():
    assert spread([0.0, 10.0, 20.0], 5.0) == [0.0, 10.0, 20.0]
    assert spread([10.0, 10.0, 30.0], 4.0) == pytest.approx([8.0, 12.0, 30.0])
    placed = spread([1.0, 1.0, 1.0, 2.0], 3.0)
    assert all(b - a >= 3.0 - 1e-9 for a, b in pairwise(placed))
