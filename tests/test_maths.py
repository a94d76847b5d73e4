"""Maths problems: reading them, and grading against hand-made cases, right and wrong."""

import json
import sys
import threading
import time
from types import SimpleNamespace

import pytest
import torch

from latentwire.seek.rewards.base import Attempt, Reward, rate
from latentwire.seek.rewards.exact import Exact
from latentwire.tasks.base import DataError, Problem
from latentwire.tasks.maths import INSTRUCTIONS, LONGEST, final_answer, load_maths, same_answer

MATRIX = r"\begin{pmatrix} -7 \\ 16 \\ 5 \end{pmatrix}"

RIGHT = [
    ("1,234", "1234"),
    ("1,000,000", "1000000"),
    (r"11,\! 111", "11111"),
    ("$18.00", "18"),
    (r"\$36", "36"),
    ("$1,234.50", "1234.5"),
    ("-$5", "-5"),
    ("18 dollars", "18"),
    ("12 apples", "12"),
    ("12", "12 apples"),
    (r"10 \text{ cm}", "10"),
    ("10cm", "10"),
    ("864 square inches", r"864 \mbox{ inches}^2"),
    ("60 km/h", "60"),
    ("**5**.", "5"),
    ("Natalia sold 72 clips altogether.", "72"),
    # A percentage is both the number before the sign and its value.
    ("50%", "50"),
    (r"50\%", "0.5"),
    ("0.5", "50%"),
    ("3/4", "0.75"),
    (r"\frac{3}{4}", "3/4"),
    (r"\dfrac34", ".75"),
    ("0.333333", "1/3"),
    ("137.5", r"137 \frac{1}{2}"),
    (r"6.72 \times 10^{-5}", ".0000672"),
    ("025", "25"),
    ("x=5", "5"),
    ("5", "x = 5"),
    ("(1, 2)", "(1,2)"),
    ("2,1", "1, 2"),
    (r"90^\circ", "90"),
    ("90 degrees", r"90^{\circ}"),
    ("25°C", "25"),
    ("evelyn.", r"\text{Evelyn}"),
    ("B", r"\text{(B)}"),
    ("2π", r"2 \pi"),
    (r"1/\sqrt{3}", r"\frac{\sqrt{3}}{3}"),
    ("2.236068", r"\sqrt{5}"),
    ("x^2 + 2x + 1", "(x+1)^2"),
    (r"(-\infty,0]", r"(-\infty, 0]"),
    (r"\begin{pmatrix}-7\\16\\5\end{pmatrix}", MATRIX),
]
WRONG = [
    ("12", "(1,2)"),
    ("12", "1,2"),
    ("(2,1)", "(1,2)"),
    ("[1,2]", "(1,2)"),
    ("123", "1234"),
    ("1,235", "1234"),
    ("12345679", "12345678"),
    ("5", "-5"),
    ("minus 5", "5"),
    ("0.5", "50"),
    ("0.33", "1/3"),
    ("672", ".0000672"),
    (".0000671", ".0000672"),
    ("4 or 5", "4"),
    ("72 clips in 2 months", "72"),
    ("5 million", "5"),
    # Letters that touch a number are no unit.
    ("2", "2ab"),
    ("3", "3x"),
    ("2", r"2\pi"),
    ("23", "2**3"),
    ("y=5", "x=5"),
    ("x=5", "x=6"),
    ("silent", "listen"),
    ("Eve", "Evelyn"),
    ("1/0", "5"),
    (r"\sqrt{3}", r"\sqrt{5}"),
    (r"\begin{pmatrix}-7\\16\\6\end{pmatrix}", MATRIX),
    ("", "5"),
    ("  ", "5"),
    ("5", ""),
    ("", ""),
]


@pytest.mark.parametrize(("given", "gold"), RIGHT)
def test_right(given, gold):
    assert same_answer(given, gold)


@pytest.mark.parametrize(("given", "gold"), WRONG)
def test_wrong(given, gold):
    assert not same_answer(given, gold)


GARBAGE = [
    "\x00",
    "\\",
    r"\frac{",
    "{" * 200,
    "(" * 40 + "1" + ")" * 40,
    "9^{9^{9^{9}}}",
    "2^{100000000}",
    "99999999!",
    r"\binom{100000000}{50000000}",
    "x^" * 100,
    "9" * 290 + "e99",
    "5" * 100_000,
]


@pytest.mark.parametrize("given", GARBAGE, ids=lambda text: text[:12].strip("\x00"))
def test_garbage_is_wrong_quickly(given):
    same_answer("x", r"\sqrt{5}")  # sympy is imported
    before = time.perf_counter()
    assert not same_answer(given, r"\sqrt{5}")
    assert time.perf_counter() - before < 3
    # An answer that is too heavy to compare may still be the gold one, letter for letter.
    assert same_answer(given, given) == (len(given) <= LONGEST)


def test_grading_in_a_thread():
    """math-verify's timeouts are signals, which raise anywhere but in the main thread."""
    got = []
    pairs = [(r"1/\sqrt{3}", r"\frac{\sqrt{3}}{3}"), (r"\sqrt{3}", r"\sqrt{5}"), ("9^{9^{9}}", "x")]
    thread = threading.Thread(target=lambda: got.extend(same_answer(*pair) for pair in pairs))
    thread.start()
    thread.join(20)
    assert got == [True, False, False]


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"So it is \boxed{72}.", "72"),
        (r"\boxed{1} no, \boxed{2}", "2"),
        (r"\boxed{\frac{\sqrt{3}}{4}} cm", r"\frac{\sqrt{3}}{4}"),
        (r"\boxed{\{1\pm\sqrt{5},-2\}}", r"\{1\pm\sqrt{5},-2\}"),
        (r"\boxed{\left\{ 3 \right.}", r"\left\{ 3 \right."),
        # A box that is empty or never closes is none.
        (r"\boxed{5}, put within \boxed{}", "5"),
        (r"\boxed{5} and \boxed{\frac{1}{2", "5"),
        (r"a stray { before \boxed{7}", "7"),
        # Without one: the last number.
        ("5-3=2 apples", "2"),
        ("#### 1,234", "1,234"),
        ("It costs -$5.50.", "-$5.50"),
        (r"that is \frac{3}{4} of it", r"\frac{3}{4}"),
        ("50% of 3/4", "3/4"),
        (r"\boxed{12", "12"),
        ("no idea", None),
        ("", None),
    ],
)
def test_final_answer_in_a_box(text, answer):
    assert final_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ('{"thought process": "5+4", "final answer": "9"}', "9"),
        ('```json\n{"thought process": "5+4",\n "final answer": 9\n}\n```', "9"),
        ('{"final answer": 9, "thought process": "5+4"}', "9"),
        ("{'thought process': '5+4', 'final answer': '9'}", "9"),
        ("{'final answer': 'Evelyn's', 'n': 3}", "Evelyn's"),
        ('{"Final_Answer": "1,234 dollars"}', "1,234 dollars"),
        (r'{"final answer": "\\frac{3}{4}"}', r"\frac{3}{4}"),
        (r'{"final answer": "\frac{3}{4}"}', r"\frac{3}{4}"),
        (r'{"final answer": "\\boxed{5}"}', "5"),
        (r'{"final answer": \frac{3}{4}}', r"\frac{3}{4}"),
        ('{"final answer": [1, 2]}', "1, 2"),
        ('{"thought process": "5", "final answer": "12 app', "12 app"),
        ('{"thought process": "5+4=9, so', "9"),
        ('{"thought process": "5+4=9", "final answer": ""}', "9"),
        ('{"thought process": "5+4=9", "final answer": null}', "9"),
        ('{"final answer": "1"} wait {"final answer": "2"}', "2"),
        ("no idea", None),
    ],
)
def test_final_answer_in_json(text, answer):
    assert final_answer(text, "json") == answer


def write(path, *rows):
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return str(path)


def test_reading_a_file(tmp_path):
    source = write(
        tmp_path / "mine.jsonl",
        {"id": "a", "question": "What is {6} times 12?", "answer": "6*12 = <<6*12=72>>72\n#### 72"},
        "",
        {"problem": r"What is $\frac{1}{2}$?", "answer": 0.5, "unique_id": "m/1"},
        {"question": "Two?", "answer": 2},
        {"id": 7, "question": "Nobody knows?"},
    )
    task = load_maths(source)
    assert task.name == "mine"
    assert [p.id for p in task.problems] == ["a", "m/1", "mine-4", "7"]
    assert [p.gold for p in task.problems] == ["72", "0.5", "2", None]
    first, *_, unknown = task.problems
    assert task.grade(first, r"\boxed{72}") and not task.grade(first, r"\boxed{73}")
    assert task.grade(first, "so it is 72") and not task.grade(first, "so it is 72", False)
    assert not task.grade(first, "") and not task.grade(unknown, r"\boxed{72}")
    assert [p.id for p in load_maths(source, limit=2).problems] == ["a", "m/1"]


@pytest.mark.parametrize("form", INSTRUCTIONS)
def test_a_prompt_has_the_question_word_for_word(tmp_path, form):
    question = 'If $f(x) = \\frac{1}{x}$, is "{0}" {x}?\n 50% '
    source = write(tmp_path / "a.jsonl", {"question": question, "answer": "1"})
    (problem,) = load_maths(source, form=form).problems
    assert problem.question == question and problem.prompt.startswith(question + "\n\n")
    keys = {"boxed": [r"\boxed{}"], "json": ['"thought process"', '"final answer"']}
    assert all(key in problem.prompt for key in keys[form])


def test_json_form_grades_json(tmp_path):
    source = write(tmp_path / "a.jsonl", {"question": "?", "answer": "9"})
    task = load_maths(source, form="json")
    text = '{"thought process": "I try 8, then 9, then 10", "final answer": "9"} of 10'
    assert task.grade(task.problems[0], text)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"answer": "1"}, "line 3: no text in field 'question'"),
        ({"question": " ", "answer": "1"}, "line 3: no text in field 'question'"),
        ({"question": "?", "answer": ["1"]}, "line 3: field 'answer' is list"),
        ({"question": "?", "answer": "so " * 200}, "line 3: field 'answer' has 599 characters"),
        ("{", "line 3: not JSON"),
    ],
)
def test_a_bad_row_is_named(tmp_path, row, message):
    source = write(tmp_path / "a.jsonl", {"question": "?", "answer": "1"}, "", row)
    with pytest.raises(DataError, match=message):
        load_maths(source)


def test_bad_sources(tmp_path):
    with pytest.raises(DataError, match="is empty"):
        load_maths(write(tmp_path / "a.jsonl"))
    with pytest.raises(DataError, match=r"no such file; expected FILE.jsonl or one of"):
        load_maths(str(tmp_path / "b.jsonl"))


def test_the_hub(monkeypatch):
    asked = []

    def load_dataset(*args, **kwargs):
        asked.append((args, kwargs))
        return [{"question": f"{n}?", "answer": f"so\n#### {n}"} for n in range(5)]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    task = load_maths("gsm8k", limit=2)
    assert asked == [(("openai/gsm8k", "main"), {"split": "test"})]
    assert [(p.id, p.gold) for p in task.problems] == [("gsm8k-1", "0"), ("gsm8k-2", "1")]


def test_the_hub_out_of_reach(monkeypatch):
    def load_dataset(*args, **kwargs):
        raise ConnectionError("no route")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    with pytest.raises(DataError, match=r"aime .*no route; give a FILE.jsonl instead"):
        load_maths("aime")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"needs datasets: pip install .*or give a FILE.jsonl"):
        load_maths("math500")


def test_exact(tmp_path):
    task = load_maths(write(tmp_path / "a.jsonl", {"question": "6*12?", "answer": "72"}))
    reward: Reward = Exact(task.grade)
    ids = torch.tensor([1, 2])
    (known,), unknown = task.problems, Problem("u", "?", "?")
    attempts = [
        Attempt(known, ids, r"\boxed{72.0}"),
        Attempt(unknown, ids, r"\boxed{72}"),
        Attempt(known, ids, r"\boxed{73}"),
    ]
    right, none, wrong = rate(reward, attempts)
    assert (reward.low, reward.high) == (-1.0, 0.0)
    assert right.value == reward.high and wrong.value == reward.low
    assert right.failure is None and wrong.failure is None
    assert none.failure and "'u' has no gold answer" in none.failure
