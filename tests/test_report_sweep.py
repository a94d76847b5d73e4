"""The report on made-up sweeps: where each condition stands, and what is said of it."""

import copy
import json
import re

import pytest
from rich.console import Console
from test_report import fill, row, with_f1

from latentwire.report.folder import ReportError
from latentwire.report.page import write_report
from latentwire.report.sweep import matrix, reference_rows, scored, sweep_rows, sweep_table, verdict
from latentwire.report.sweep_plots import cost, cost_plot


def evaluated(f1: float, latents: float, message: float) -> dict:
    return {**with_f1(wire=f1), "latents_out": latents, "message_bytes": message}


SWEEP = {
    "kind": "sweep",
    "data": "squad_dev.jsonl",
    "limit": 500,
    "members": {
        "2x": {"error": None, "evaluations": {"16": evaluated(0.50, 75.6, 1.8e6)}},
        "4x": {
            "error": None,
            "alarms": {"waiting": "data waits <b>"},
            "evaluations": {"16": evaluated(0.30, 38.1, 312.0)},
        },
        "8x": {"error": "FloatingPointError: loss is nan at step 3"},
        "16x": {},
    },
}


def test_the_words():
    assert verdict(SWEEP) == [
        "2 of 4 members are done.",
        "Failed; the same command tries again: 8x.",
        "Not run yet: 16x.",
        "The highest F1 is that of 2x, 50.0% (47.0 to 53.0). It was chosen among all on the "
        "questions that it is scored on, so expect somewhat less on others.",
        "Above no text, zero latents and another example's latents, by the paired difference: all.",
        "Above the text truncated to as many tokens: all.",
        "Above the text truncated to as many bytes: none.",
    ]
    assert verdict({**SWEEP, "members": {"a": {}}}) == [
        "0 of 1 members are done.",
        "Not run yet: a.",
    ]


def test_bits_and_readers_are_named_where_they_differ():
    bits = copy.deepcopy(SWEEP)
    bits["members"]["2x"]["evaluations"]["4"] = evaluated(0.4, 75.6, 5e5)
    assert [s.label for s in scored(bits)] == ["2x, 16 bit", "2x, 4 bit", "4x, 16 bit"]
    readers = {name: {**evaluated(0.4, 30, 250), "reader": name} for name in ("smol", "gemma")}
    shared = {**SWEEP, "members": {"m": {"evaluations": {"own": {"readers": readers}}}}}
    assert [(s.label, s.reader) for s in scored(shared)] == [
        ("m, smol", "smol"),
        ("m, gemma", "gemma"),
    ]


@pytest.mark.parametrize(
    ("condition", "tokens", "size"),
    [
        ("text", 151.2, 780.0),
        ("text_zstd", None, 460.0),
        ("wire", 75.6, 195.0),
        ("mismatched_latents", 75.6, 195.0),
        # Half of the tokens are half of the bytes, and a quarter of the bytes of the tokens.
        ("truncated_tokens", 75.6, 390.0),
        ("truncated_bytes", 37.8, 195.0),
        ("pruned_tokens", 75.6, 390.0),
        # 195 of the 460 bytes that zstd makes of all tokens.
        ("truncated_zstd", 151.2 * 195 / 460, 195.0),
    ],
)
def test_where_each_condition_stands(condition, tokens, size):
    one = evaluated(0.5, 75.6, 195.0)
    assert cost(one, condition, "tokens") == pytest.approx(tokens)
    assert cost(one, condition, "bytes") == pytest.approx(size)
    # A message larger than its text leaves all of the text.
    assert cost(evaluated(0.5, 75.6, 1e6), "truncated_bytes", "bytes") == pytest.approx(780.0)
    assert cost({}, condition, "bytes") is None


def test_a_whole_page(tmp_path):
    path = write_report(fill(tmp_path, results_json=json.dumps(SWEEP), config_json="{}"))
    page = path.read_text(encoding="utf-8")
    assert page.count("<svg") == 2 and page.count("<tr") == 1 + 4
    for name in ("full text", "truncated to equal tokens", "truncated to equal bytes", "wire"):
        assert page.count(f">{name}</text>") == 2, name
    for name in ("closed book (no text)", "zero latents (control)"):
        assert page.count(f">{name}</text>") == 2, name
    assert "full text after zstd -19" in page and "loss is nan" in page
    assert "data waits &lt;b&gt;" in page and "#00000" not in page
    assert not re.search(r"https?:|//|@import|<link", page)
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert write_report(tmp_path).read_text(encoding="utf-8") == page


def test_a_sweep_that_has_just_begun(tmp_path):
    begun = {**SWEEP, "members": {"a": {}}}
    page = write_report(fill(tmp_path, results_json=json.dumps(begun))).read_text("utf-8")
    assert "<svg" not in page and "Not run yet: a." in page


def crossed() -> dict:
    made = copy.deepcopy(SWEEP)
    parts = [("pca", "embeddings"), ("pca", "lora"), ("utf8", "embeddings"), ("utf8", "a + lora")]
    made["factors"] = {
        name: {"encoder": e, "injectors": w}
        for name, (e, w) in zip(made["members"], parts, strict=True)
    }
    return made


def test_members_crossed_by_their_factors():
    made = crossed()
    assert matrix(made, scored(made)) == [
        ["encoder / injectors", "embeddings", "lora", "a +\nlora"],
        ["pca", "50.0\n(47.0 to 53.0)\nNLL 1.50", "30.0\n(27.0 to 33.0)\nNLL 1.70", ""],
        ["utf8", "failed", "", "not run yet"],
    ]
    made["factors"]["16x"] = made["factors"]["2x"]  # they differ in something else
    assert matrix(made, scored(made)) == [] == matrix(SWEEP, scored(SWEEP))


def test_references_are_ranges_where_members_differ():
    made = crossed()
    made["members"]["4x"]["evaluations"]["16"]["rows"]["zero_latents"] = row(0.07)
    of = {name: cells for name, *cells in reference_rows(scored(made))}
    assert "wire" not in of and of["full text"] == ["60.0 (57.0 to 63.0)", "1.40"]
    assert of["zero latents (control)"][0] == "7.0 to 10.0"
    assert reference_rows([]) == []


def test_a_page_of_crossed_members(tmp_path):
    page = write_report(fill(tmp_path, results_json=json.dumps(crossed()))).read_text("utf-8")
    assert page.count("<svg") == 2 and page.count("<table") == 3
    assert '<th scope="col">a +<br>lora</th>' in page and "NLL 1.50</td>" in page


def test_of_wires_at_one_place_only_the_highest_is_named():
    found = scored({**SWEEP, "members": {n: {"evaluations": {"16": evaluated(f, 75.6, 195.0)}}
                    for n, f in (("a", 0.2), ("b", 0.4), ("c", 0.3))}})  # fmt: skip
    drawn = cost_plot(found, "tokens", "x")
    assert [f">{n}</text>" in drawn for n in "abc"] == [False, True, False]


def test_few_questions_give_no_verdict_on_any_member():
    few = copy.deepcopy(SWEEP)
    for member in ("2x", "4x"):
        few["members"][member]["evaluations"]["16"]["n"] = 29
    assert verdict(few)[-1] == (
        "A verdict needs paired differences on at least 30 questions, and no member has them."
    )
    assert [row[-1] for row in sweep_rows(few)] == ["unknown", "unknown", "", ""]


@pytest.mark.parametrize(
    ("member", "field"),
    [
        ('{"error": 3}', "error"),
        ('{"evaluations": {"16": {"reader": []}}}', "evaluations.16.reader"),
    ],
)
def test_a_damaged_file_is_one_line(tmp_path, member, field):
    results = f'{{"kind": "sweep", "data": "x", "members": {{"a": {member}}}}}'
    run = fill(tmp_path, results_json=results)
    with pytest.raises(ReportError) as error:
        write_report(run)
    assert f"results.json: expected text as members.a.{field}, got" in str(error.value)


def test_a_row_is_one_line_of_a_terminal():
    console = Console(width=80)
    with console.capture() as captured:
        console.print(sweep_table(SWEEP))
    _, _, *rows, _, _ = captured.get().splitlines()
    assert len(rows) == 4 and "50.0 (47.0 to 53.0)" in rows[0] and "failed" in rows[2]
