"""Rows of JSONL files in bounded time and memory, whatever is in them."""

import json
import time
import tracemalloc

import pytest

from latentwire.tasks.arc import load_arc
from latentwire.tasks.base import LINE_BYTES, DataError, read_jsonl, read_text
from latentwire.tasks.qa import Question, load_questions, read_questions

ROW = {"id": "1", "context": "The Aare.", "question": "Which?", "answers": ["Aare"]}


@pytest.mark.parametrize("value", ["x" * 10**7, [[]] * (3 * 10**6)])
def test_a_line_of_ten_megabytes_is_refused_at_once(tmp_path, value):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(ROW) + "\n" + json.dumps({**ROW, "context": value}) + "\n")
    tracemalloc.start()
    start = time.process_time()
    with pytest.raises(DataError, match=f"rows.jsonl, line 2: more than {LINE_BYTES} bytes"):
        read_questions(path)
    assert time.process_time() - start < 1
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * LINE_BYTES


def test_only_the_rows_that_are_asked_for_are_read(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("\ufeff" + json.dumps(ROW) + "\r\n\n" + "x" * 10**7)
    assert [row.id for row in read_questions(path, 1)] == ["1"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("[" * 100_000, r"line 1: not JSON \(nested too deeply\)"),
        ('{"a":' * 100_000, r"line 1: not JSON \(nested too deeply\)"),
        (json.dumps({**ROW, "id": "\ud800"}), "half of a surrogate pair"),
        (json.dumps({**ROW, "answers": ["a", "\udfff"]}), "half of a surrogate pair"),
        ('{"id": ' + "1" * 5000 + "}", "Exceeds the limit"),
        ('{"id": 1, "id": 2}', r"not JSON \(field 'id' stands twice in an object\)"),
        (" \n\n", "is empty; expected text"),
    ],
)
def test_lines_that_are_refused_before_anything_is_computed(tmp_path, line, said):
    path = tmp_path / "rows.jsonl"
    path.write_text(line)
    with pytest.raises(DataError, match=said) as caught:
        read_questions(path)
    assert "\n" not in str(caught.value)
    if "empty" not in said:
        path.write_text(line.replace('"id"', '"train"'))
        with pytest.raises(DataError):
            load_arc(path)


def test_bytes_that_are_no_text_are_named_by_their_place(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(json.dumps(ROW).encode() + b'\n{"id": "\xff"}')
    place = path.read_bytes().index(b"\xff")
    for read in (read_text, lambda path: list(read_jsonl(path, {}))):
        with pytest.raises(DataError, match=rf"is not UTF-8 \(byte {place}\)"):
            read(path)


@pytest.mark.parametrize("read", [read_text, lambda path: list(read_jsonl(path, {}))])
def test_a_device_is_refused(tmp_path, read):
    path = tmp_path / "rows.jsonl"
    path.symlink_to("/dev/zero")
    with pytest.raises(DataError, match="is a device; expected a text file"):
        read(path)


def test_a_name_of_an_arc_task_is_unicode(tmp_path):
    grids = [{"input": [[1]], "output": [[1]]}]
    name = b"\xff.json".decode("utf-8", "surrogateescape")
    (tmp_path / name).write_text(json.dumps({"train": grids, "test": grids}))
    with pytest.raises(DataError, match="half of a surrogate pair"):
        load_arc(tmp_path)


PARAGRAPHS = [["Aare", ["The Aare is a river.", " It is 288 km long."]], ["Bern", ["A city."]]]
HOTPOT = {"_id": "5a", "question": "How long?", "answer": "288 km", "context": PARAGRAPHS}


def on_hub(row):
    titles, sentences = zip(*row["context"], strict=True)
    context = {"title": list(titles), "sentences": list(sentences)}
    return {"id": row["_id"], **{k: row[k] for k in ("question", "answer")}, "context": context}


@pytest.mark.parametrize("name", ["array.json", "lines.json", "rows.jsonl", "hub"])
def test_hotpotqa_is_read_in_each_of_its_forms(name, tmp_path):
    if name == "hub":
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / "train.jsonl").write_text(json.dumps(on_hub(HOTPOT)))
        questions = load_questions(f"hub:{tmp_path / 'data'}:default#train")
    else:
        (tmp_path / name).write_text(json.dumps([HOTPOT] if name == "array.json" else HOTPOT))
        questions = read_questions(tmp_path / name)
    context = "Aare\nThe Aare is a river. It is 288 km long.\n\nBern\nA city."
    assert questions == [Question("5a", context, "How long?", ("288 km",))]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({**HOTPOT, "context": [["Aare"]]}, r"row 1: context is \[\['Aare'\]\]; expected text, or"),
        ({**HOTPOT, "context": {"title": ["a"]}}, "row 1: context is .*; expected text, or titles"),
        ({**HOTPOT, "answer": ""}, r"row '5a': answers are \[''\]; expected a list of non-empty"),
        ({k: v for k, v in HOTPOT.items() if k != "answer"}, "row 1: no field 'answers'"),
        ({**ROW, "answers": {"text": []}}, "row 1: no answers, .*: write the rows that have some"),
        (7, "row 1: a JSON int; expected an object"),
    ],
)
def test_rows_of_an_array_that_are_refused(row, said, tmp_path):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([row]))
    with pytest.raises(DataError, match=said) as caught:
        read_questions(path)
    assert "\n" not in str(caught.value)
