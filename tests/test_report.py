"""The report on made-up run folders: its words, its escaping, its gaps."""

import copy
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from latentwire.report.comparison import lens_verdict
from latentwire.report.folder import ReportError
from latentwire.report.page import write_report
from latentwire.report.plots import f1_plot, smoothed, training_plot
from latentwire.report.tables import result_rows, results_table, size_rows
from latentwire.report.verdict import reads_latents, verdict

F1 = {
    "text": 0.60,
    "wire": 0.45,
    "truncated_tokens": 0.25,
    "truncated_bytes": 0.60,
    "closed_book": 0.12,
    "zero_latents": 0.10,
    "mismatched_latents": 0.11,
}


def row(f1: float) -> dict[str, float]:
    em = f1 * 0.75
    spread = {"em_low": em - 0.03, "em_high": em + 0.03, "f1_low": f1 - 0.03, "f1_high": f1 + 0.03}
    return {"em": em, "f1": f1, **spread, "nll": 2.0 - f1, "first1": f1, "first5": f1 + 0.2}


def scores(f1: dict[str, float]) -> dict[str, dict]:
    """Rows, and paired differences with intervals of 2 points to either side."""
    gaps = {k: f1["wire"] - v for k, v in f1.items() if k != "wire"}
    return {
        "rows": {key: row(value) for key, value in f1.items()},
        "differences": {k: {"mean": g, "low": g - 0.02, "high": g + 0.02} for k, g in gaps.items()},
    }


RESULTS = {
    "wire": "20a5b4aa307c5f89",
    "reader": "smollm2-135m",
    "data": "squad_dev.jsonl",
    "n": 500,
    "passages": 94,
    "ratio": 4,
    "seed": 0,
    **scores(F1),
    "tokens_in": 151.2,
    "latents_out": 38.1,
    "ttft_ratio": 0.41,
    "encode_ttft_ratio": 1.2,
    "kv_ratio": 0.33,
    "message_bytes": 878000.0,
    "text_bytes": 780.0,
    "zstd_bytes": 460.0,
    "retention": 0.75,
}


def with_f1(**f1: float) -> dict:
    return {**RESULTS, **scores({**F1, **f1})}


def answers(text: str = "Bern") -> str:
    asked = {"context": "The Aare flows <b>here</b>.", "question": "Which city?", "gold": ["Bern"]}
    scores = {"em": 1.0, "f1": 1.0, "nll": 1.5, "tokens": 2, "first1": 1.0, "first5": 1.0}
    return "".join(
        json.dumps({"condition": c, "id": f"q{i}", **asked, "answer": text, **scores}) + "\n"
        for i in range(30)
        for c in F1
    )


def metrics() -> str:
    logged = [("format", s, 3 / s) for s in range(1, 30)]
    logged += [("slots", s, 2 / s) for s in range(1, 60)]
    return "".join(json.dumps({"stage": a, "step": b, "loss": c}) + "\n" for a, b, c in logged)


def fill(run: Path, **files: str) -> Path:
    for name, text in files.items():
        (run / name.replace("_", ".")).write_text(text, encoding="utf-8")
    return run


def test_a_good_wire():
    assert verdict(RESULTS) == [
        "This wire reads its latents: its F1 of 45.0% (42.0 to 48.0) is above closed book "
        "(no text) by 33.0 points (31.0 to 35.0), zero latents (control) by 35.0 points (33.0 to "
        "37.0) and another example's latents (control) by 34.0 points (32.0 to 36.0).",
        "It is better than the text truncated to equal tokens: F1 45.0% against 25.0%, "
        "+20.0 points (+18.0 to +22.0).",
        "It keeps 75% of the full text's F1, a difference of -15.0 points (-17.0 to -13.0); "
        "with no text at all, 20% remain.",
        "The message is 1,126 times larger than its text: "
        "this wire saves cache and prefill, not bytes.",
        "With the message at hand, the time to first token is 41% of the full text's and the KV "
        "cache has 33% of its bytes. With encoding counted, the time to first token is 120%.",
    ]


OVERLAPPING = {**RESULTS, "rows": {"wire": row(0.45), "truncated_tokens": row(0.42)}}
APART = {**RESULTS, "rows": {"wire": row(0.45), "truncated_tokens": row(0.38)}}


@pytest.mark.parametrize(
    ("results", "low", "high", "words"),
    [
        # The intervals, 42 to 48 and 39 to 45, overlap, and the difference is above 0.
        (OVERLAPPING, 0.01, 0.05, "is better than"),
        (OVERLAPPING, -0.01, 0.07, "is not shown to be better than"),
        # The intervals, 42 to 48 and 35 to 41, do not overlap, and the difference may be 0.
        (APART, -0.01, 0.15, "is not shown to be better than"),
        (APART, -0.15, -0.01, "is worse than"),
    ],
)
def test_a_verdict_rests_on_the_paired_difference(results, low, high, words):
    gain = {"mean": (low + high) / 2, "low": low, "high": high}
    assert words in verdict({**results, "differences": {"truncated_tokens": gain}})[1]


def test_a_control_is_judged_by_the_paired_difference():
    near = copy.deepcopy(with_f1(mismatched_latents=0.42))
    assert reads_latents(near) is True  # 3 points, 1 to 5, though the intervals overlap
    near["differences"]["mismatched_latents"]["low"] = -0.01
    assert reads_latents(near) is False


def test_results_without_paired_differences_give_no_verdict(tmp_path):
    """Intervals that lie apart decide as little as those that overlap."""
    old = {k: v for k, v in RESULTS.items() if k != "differences"}
    words = verdict(old)
    assert words[0].startswith("No verdict: ") and "paired differences" in words[0]
    assert not any("better" in line or "worse" in line or "points" in line for line in words)
    assert any("keeps 75% of the full text's F1;" in line for line in words)
    assert reads_latents(old) is None
    assert all(row[3] == "" for row in result_rows(old))
    page = write_report(fill(tmp_path, results_json=json.dumps(old))).read_text("utf-8")
    assert 'class="verdict good"' not in page and 'class="verdict bad"' not in page


def test_a_control_without_its_difference_is_unknown():
    some = copy.deepcopy(RESULTS)
    del some["differences"]["zero_latents"]
    assert reads_latents(some) is None
    assert "no results for zero latents (control)." in verdict(some)[0]


@pytest.mark.parametrize(
    ("n", "words"), [(29, "29 questions"), (1, "1 question,"), (30, None), (None, None)]
)
def test_fewer_than_thirty_questions_give_no_verdict(n, words, tmp_path):
    results = {**RESULTS, "n": n}
    page = write_report(fill(tmp_path, results_json=json.dumps(results))).read_text("utf-8")
    assert ('class="verdict good"' in page) is (words is None)
    first = verdict(results)[0]
    assert first.startswith("Too few for a verdict: " if words else "This wire reads its latents")
    if words:
        assert words in first and "at least 30" in first and reads_latents(results) is None
        assert not any("better" in line or "worse" in line for line in verdict(results))


def test_a_lens_is_judged_by_the_paired_difference():
    gain = {"mean": 0.1, "low": 0.02, "high": 0.2}
    differences = {"mean": gain, "shuffled_words": gain}
    assert "above that of every control" in lens_verdict({"n": 40, "differences": differences})
    differences = {**differences, "shuffled_words": {**gain, "low": -0.01}}
    said = lens_verdict({"n": 40, "differences": differences})
    assert "not shown to be above that of shuffled words (" in said
    assert lens_verdict({"n": 5, "differences": differences}).startswith("Too few for a verdict: 5")


def test_costs_are_shown_in_their_units():
    measured = {"text_ttft_seconds": 0.083, "ttft_seconds": 0.0041, "encode_ttft_seconds": 12.4}
    caches = {"text_kv_bytes": 2_000_000.0, "kv_bytes": 660_000.0}
    rows = {label: cells for label, *cells in size_rows({**RESULTS, **measured, **caches})}
    assert rows["KV-cache bytes"] == ["2,000,000", "660,000", "33%"]
    assert rows["time to first token, message given"] == ["83 ms", "4.1 ms", "41%"]
    assert rows["time to first token, encoding counted"] == ["83 ms", "12.4 s", "120%"]
    old = {label: cells for label, *cells in size_rows(RESULTS)}
    assert old["KV-cache bytes"] == ["", "", "33%"]


def test_a_wire_that_does_not_read_its_latents():
    said = verdict(with_f1(wire=0.11))[0]
    assert said.startswith("This wire is not shown to read its latents: ")
    assert all(control in said for control in ("closed book", "zero latents", "another example's"))
    # One control that reaches the interval is enough, and it alone is named.
    said = verdict(with_f1(mismatched_latents=0.44))[0]
    assert said.startswith("This wire is not shown to read its latents: ")
    assert "another example's" in said and "closed book" not in said and "zero" not in said


def test_a_control_that_was_not_evaluated_proves_nothing():
    results = copy.deepcopy(RESULTS)
    del results["rows"]["zero_latents"]
    said = verdict(results)[0]
    assert "is unknown" in said and "zero latents" in said and "closed book" not in said


@pytest.mark.parametrize(
    ("truncated", "said"),
    [(0.25, "is better than"), (0.44, "is not shown to be better"), (0.55, "is worse than")],
)
def test_truncation(truncated, said):
    assert said in verdict(with_f1(truncated_tokens=truncated))[1]
    # To equal bytes only where that cuts something.
    smaller = {**with_f1(truncated_bytes=truncated), "message_bytes": 250.0}
    assert said in verdict(smaller)[2] and "equal bytes" in verdict(smaller)[2]
    assert not any("equal bytes" in item for item in verdict(with_f1(truncated_bytes=truncated)))


def test_text_after_zstd_and_pruned_text():
    results = {**with_f1(truncated_zstd=0.46, pruned_tokens=0.44), "message_bytes": 440.0}
    said = verdict(results)
    assert said[2].startswith("It is not shown to be better than the text pruned to equal tokens")
    assert said[4].startswith(
        "It is not shown to be better than the text truncated to equal bytes after zstd"
    )
    # Larger than the text's zstd, if smaller than the text: nothing is cut.
    said = verdict({**results, "message_bytes": 470.0})
    assert not any("after zstd -19:" in item for item in said)


@pytest.mark.parametrize(
    ("difference", "said"),
    [(0.0, "(must equal full text): equal."), (0.25, "differ by up to 0.25 nats, so the reader")],
)
def test_replayed_embeddings(difference, said):
    assert said in verdict({**RESULTS, "embeds_vs_ids_difference": difference})[-1]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (
            {"message_bytes": 312.0},
            "The message is smaller than its text: 312 bytes against 780 (460 after zstd -19).",
        ),
        ({"message_bytes": 312.0, "zstd_bytes": None}, "312 bytes against 780."),
        ({"message_bytes": 780.0}, "as large as its text"),
        ({"message_bytes": 1014.0}, "1.3 times larger"),
        ({"ttft_ratio": 1.1}, "this wire saves cache, not bytes."),
        ({"ttft_ratio": 1.1, "kv_ratio": None}, "this wire does not save bytes."),
    ],
)
def test_bytes(changed, said):
    assert any(said in item for item in verdict({**RESULTS, **changed}))


def test_a_whole_page(tmp_path):
    run = fill(
        tmp_path,
        results_json=json.dumps(RESULTS),
        metrics_jsonl=metrics(),
        predictions_jsonl=answers("<script>alert(1)</script>"),
        config_json='{"note": "</pre><script>"}',
    )
    path = write_report(run)
    page = path.read_text(encoding="utf-8")
    assert path == tmp_path / "report.html" and not list(tmp_path.glob("*.part"))
    assert page.count("<article>") == 20 and "seed 0" in page and page.count("<svg") == 2
    assert "<script" not in page and "&lt;script&gt;alert(1)" in page and "<b>here" not in page
    assert "Not in this run folder" not in page
    assert "Not shown: truncated to equal bytes. The message" in page  # it repeats the full text
    assert "<td>truncated to equal bytes" not in page and "after zstd -19</td><td>460<" in page
    assert "<h1>Wire at 4x, read by smollm2-135m</h1>" in page  # and no hash
    assert not re.search(r"https?:|//|@import|<link", page)
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert all(i in ids for i in re.findall(r'(?:href="|url\()#([^")]+)', page))
    assert "#00000" not in page
    assert write_report(run).read_text(encoding="utf-8") == page


def test_a_training_page_tells_alarms_and_throughput(tmp_path):
    logged = [
        {"stage": "format", "step": 1, "loss": 3.0},
        {"stage": "slots", "step": 1, "loss": 2.0, "alarms": {"frozen": "an earlier one"}},
        {"stage": "slots", "step": 2, "loss": 1.5, "alarms": {"sameness": "all <alike>"}},
    ]
    for row, tokens, waited in zip(logged[1:], (30.0, 90.0), (0.0, 0.2), strict=True):
        row |= {"tokens": tokens, "seconds": 4.0, "waited": waited}
    fill(tmp_path, metrics_jsonl="".join(json.dumps(row) + "\n" for row in logged))
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "<li>slots: sameness: all &lt;alike&gt;</li>" in page and "an earlier one" not in page
    # 120 tokens in 8 seconds, of which 0.2 waited for data.
    assert "last values. slots: 4 s a step, 15 target tokens/s, 2.5% waiting for data." in page


def test_missing_files_are_named(tmp_path):
    page = write_report(fill(tmp_path, results_json=json.dumps(RESULTS))).read_text("utf-8")
    assert "or empty: metrics.jsonl, predictions.jsonl, config.json." in page
    (tmp_path / "results.json").unlink()
    # The unfinished last line is one that a running training is writing.
    fill(tmp_path, metrics_jsonl=metrics() + '{"stage": "sl')
    assert "it has not been evaluated" in write_report(tmp_path).read_text("utf-8")


def test_errors(tmp_path):
    with pytest.raises(ReportError, match=r"expected results\.json or metrics\.jsonl"):
        write_report(tmp_path)
    with pytest.raises(ReportError, match=r"metrics\.jsonl, line 1"):
        write_report(fill(tmp_path, metrics_jsonl="{\n"))
    with pytest.raises(ReportError, match=r"expected a number as rows\.wire\.f1, got nothing"):
        verdict({"rows": {"wire": {k: v for k, v in row(0.5).items() if k != "f1"}}})


ANSWER = json.loads(answers().partition("\n")[0])


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("results_json", "[1, 2]", "results.json: expected an object, got [1, 2]"),
        ("results_json", '{"rows": []}', "results.json: expected an object as rows, got []"),
        (
            "results_json",
            '{"rows": {"wire": {"em": true}}}',
            "results.json: expected a number as rows.wire.em, got true",
        ),
        (
            "results_json",
            '{"kv_ratio": NaN}',
            "results.json: expected a number as kv_ratio, got NaN",
        ),
        (
            "results_json",
            '{"kind": "lens"}',
            "results.json: expected kind wire, readers, seek, sweep, got 'lens'",
        ),
        ("config_json", "3", "config.json: expected an object, got 3"),
        ("metrics_jsonl", "[]\n", "metrics.jsonl, line 1: expected an object, got []"),
        (
            "metrics_jsonl",
            '{"stage": "slots", "step": 1, "loss": 2.0}\n{"stage": "slots", "step": 2}\n',
            "metrics.jsonl, line 2: expected a number as loss, got nothing",
        ),
        (
            "predictions_jsonl",
            json.dumps({**ANSWER, "gold": "Bern"}) + "\n",
            'predictions.jsonl, line 1: expected a list as gold, got "Bern"',
        ),
        ("predictions_jsonl", "null\n", "predictions.jsonl, line 1: expected an object, got null"),
    ],
)
def test_a_damaged_file_is_one_line(tmp_path, file, text, said):
    run = fill(tmp_path, **{"results_json": json.dumps(RESULTS), file: text})
    with pytest.raises(ReportError) as error:
        write_report(run)
    assert str(error.value) == f"{run}/{said}"
    assert not (run / "report.html").exists()


@pytest.mark.parametrize("text", [b"\xff\xfe", b"[" * 100_000])
def test_a_file_that_is_no_json(tmp_path, text):
    (tmp_path / "results.json").write_bytes(text)
    with pytest.raises(ReportError, match=r"results\.json: expected"):
        write_report(tmp_path)


@pytest.mark.parametrize("name", ["results.json", "metrics.jsonl", "config.json"])
@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_a_file_that_never_ends_is_not_read(tmp_path, make, name):
    (tmp_path / "results.json").write_text(json.dumps(RESULTS))
    (tmp_path / name).unlink(missing_ok=True)
    make(tmp_path / name)
    with pytest.raises(ReportError, match=rf"{name}: expected a file .* not a regular file"):
        write_report(tmp_path)


@pytest.mark.parametrize("share", [0.45, 1.0])
def test_a_row_is_one_line_of_a_terminal(share):
    full = dict.fromkeys(("em", "em_low", "em_high", "f1", "f1_low", "f1_high"), share)
    full |= {"nll": 12.3, "first1": 1.0, "first5": 1.0}
    console = Console(width=80)
    with console.capture() as captured:
        every = (*F1, "truncated_zstd", "pruned_tokens")
        some = {**RESULTS, "rows": dict.fromkeys(every, full), "message_bytes": 250.0}
        console.print(results_table(some))
    _, _, *rows, caption, more, _ = captured.get().splitlines()
    names = ["full text", "wire", "equal tokens", "pruned", "equal bytes", "equal zstd"]
    names += ["closed book", "zero latents", "mismatched latents"]
    assert len(rows) == len(names) and caption.startswith("Brackets") and "cut to" in more
    spread = {0.45: "45.0 (45.0 to 45.0)", 1.0: "100 (100 to 100)"}[share]
    for name, row in zip(names, rows, strict=True):
        assert row.startswith(f"{name} ") and row.count(spread) == 2 and "12.30" in row


def test_rows_that_repeat_the_full_text_are_not_shown():
    console = Console(width=80)
    with console.capture() as captured:
        console.print(results_table(with_f1(truncated_zstd=0.6)))
    table = captured.get()
    assert "not shown: equal bytes, equal zstd" in table and "\nequal bytes " not in table


@pytest.mark.parametrize("top", [0.02, 0.6, 0.99])
def test_an_axis_of_shares_ends_at_100(top):
    one = {**RESULTS, "rows": {k: {**row(0.01), "f1_high": top} for k in ("wire", "text")}}
    drawn = f1_plot(one)
    ticks = [float(n) for n in re.findall(r">(\d+(?:\.\d+)?)</text>", drawn)]
    assert max(ticks) <= 100 and ">full text</text>" in drawn


def test_the_held_out_loss_is_drawn_where_a_check_measured_it():
    logged = [{"stage": "slots", "step": s, "loss": 2 / s} for s in range(1, 9)]
    assert "held-out loss" not in training_plot(logged)
    logged[3] |= {"held": 1.5, "held_low": 1.25, "held_high": 1.75}
    logged[7] |= {"held": 1.37}
    drawn = training_plot(logged)
    assert ">held-out loss</text>" in drawn and ">1.37</text>" in drawn


def test_smoothing_starts_at_the_first_value_and_keeps_a_constant():
    assert smoothed([2.0] * 50) == pytest.approx([2.0] * 50)
    assert smoothed([float(i) for i in range(200)])[0] == 0.0


def test_a_report_needs_no_torch():
    code = (
        "import sys, latentwire.report.page; "
        "sys.exit(any(m in sys.modules for m in ('torch', 'transformers')))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_page_of_several_readers_says_what_each_and_all_come_to(tmp_path):
    shares = ("f1", "em", "agreement", "oracle_f1")
    joint = {k: v for n in shares for k, v in ((n, 0.5), (f"{n}_low", 0.4), (f"{n}_high", 0.6))}
    readers = {"smollm2-135m": RESULTS, "gemma<3": {**with_f1(wire=0.11), "reader": "gemma<3"}}
    together = {"kind": "readers", "readers": readers, "joint": {"n": 10, **joint}}
    page = write_report(fill(tmp_path, results_json=json.dumps(together))).read_text()
    assert "Together, every candidate scored by all readers: F1 50.0% (40.0 to 60.0)." in page
    assert "read by smollm2-135m" in page and "read by gemma&lt;3" in page and "gemma<3" not in page
    assert (
        "This wire reads its latents" in page
        and "This wire is not shown to read its latents" in page
    )
    assert 'href="reader-1/report.html"' in page
    damaged = {**together, "readers": {"a": {"rows": {"wire": {"em": True}}}}}
    with pytest.raises(ReportError):
        write_report(fill(tmp_path, results_json=json.dumps(damaged)))


def test_a_run_of_before_ids_were_checked_shows_every_question(tmp_path):
    lines = [json.loads(line) for line in answers().splitlines()]
    asked = [{**row, "question": f"Question {row['id']}?", "id": "1"} for row in lines]
    found = "".join(json.dumps(row) + "\n" for row in asked)
    run = fill(tmp_path, results_json=json.dumps(RESULTS), predictions_jsonl=found)
    assert "20 of 30 questions" in write_report(run).read_text()
