"""Documents, the store, caches put together, generation whose rows come and go, chats."""

import errno
import hashlib
import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from test_codes import fitted
from test_commands import run
from tiny import tiny_lm

from latentwire.lm import FrozenLM, Greedy, KVPrefix, Prompt
from latentwire.lm.families import rotate
from latentwire.lm.joining import after_one_another, side_by_side
from latentwire.serve import decoding
from latentwire.serve.context import Chat, Contexts, TooLongError, Turn, turn_ids
from latentwire.serve.decoding import Batch, Request, Row, complete, stream
from latentwire.serve.documents import extract, media_type, read_document
from latentwire.serve.store import Store, StoreError, UnknownContextError, id_of
from latentwire.tasks.base import DataError
from latentwire.tasks.qa import ask
from latentwire.terminal import printable
from latentwire.wire.compressed_kv import head_of
from latentwire.wire.text_wire import TextWire
from latentwire.wire.wire import Wire, WireConfig

TEXTS = {
    "a.txt": "The lighthouse was finished in 1759 by John Smeaton.",
    "papers/b.txt": "Ada was born in 1815. " * 5,
    "c.md": "# Elbe\n\nThe Elbe is a river.",
}


def make_wire(family: str = "llama", **config) -> Wire:
    lm = tiny_lm(family)
    torch.manual_seed(0)
    wire = Wire(lm, WireConfig(lm.name, **{"rank": 4, "window": 64, "format_tokens": 3, **config}))
    torch.nn.init.normal_(wire.scorer.weight)
    return wire


@pytest.fixture(scope="module")
def wire() -> Wire:
    return make_wire()


@pytest.fixture
def store(wire, tmp_path) -> Store:
    store = Store(tmp_path / "store")
    list(store.add(wire, TEXTS))
    return store


def pdf(*lines: str) -> bytes:
    """A PDF of one page in Helvetica, with a table of offsets as readers expect it."""
    words = b"".join(b"(%s) Tj 0 -14 Td " % line.encode() for line in lines)
    content = b"BT /F1 12 Tf 50 700 Td " + words + b"ET"
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R "
        b"/Resources << /Font << /F1 5 0 R >> >> >>",
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(content), content),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    data, places = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        places.append(len(data))
        data += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    end = b"trailer << /Size 6 /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF" % len(data)
    return data + b"xref\n0 6\n0000000000 65535 f \n" + table + end


# -- documents ------------------------------------------------------------------------------------


def test_documents_become_text(tmp_path):
    page = "<head><title>T</title></head><p>Ada &amp; Bob</p><script>no()</script><p>met.</p>"
    files = {
        "a.txt": (b"\xef\xbb\xbfplain", "plain"),
        "a.MD": (b"# A\n\nb", "# A\n\nb"),
        "a.pdf": (pdf("John Smeaton", "built it."), "John Smeaton\nbuilt it."),
        "a.html": (page.encode(), "Ada & Bob\nmet."),
        "README": (b"no suffix", "no suffix"),
    }
    for name, (data, text) in files.items():
        (tmp_path / name).write_bytes(data)
        assert read_document(tmp_path / name).strip() == text


@pytest.mark.parametrize(
    "name, data, error",
    [
        ("a.pdf", b"%PDF-1.4 cut off", "cannot be read as application/pdf"),
        ("a.pdf", pdf(), "holds no text; a scan needs"),
        ("a.html", b"<script>only()</script>", "holds no text"),
        ("a.txt", b" \n", "holds no text"),
        ("a.txt", b"caf\xe9", "is not UTF-8 \\(byte 3\\)"),
        ("a.md", pdf("x") + b"\xff", "is not UTF-8"),
    ],
)
def test_a_document_without_text_is_named(name, data, error):
    with pytest.raises(DataError, match=f"^{name} {error}"):
        extract(data, media_type(name), name)


def test_what_is_no_document_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.pdf")
    (tmp_path / "folder.pdf").mkdir()
    for path, error in {
        tmp_path / "none.txt": "no such file",
        tmp_path / "none.pdf": "No such file or directory; expected a document",
        tmp_path: "is a folder",
        tmp_path / "folder.pdf": "not a regular file; expected a document",
        tmp_path / "pipe.pdf": "not a regular file; expected a document",
        Path("/dev/zero"): "is a device",
    }.items():
        with pytest.raises(DataError, match=f"^{path}:? {error}"):
            read_document(path)
    with pytest.raises(DataError, match="'image/png'; expected one of text/plain"):
        extract(b"", "image/png", "an upload")


# -- store ----------------------------------------------------------------------------------------


def test_a_store_gives_what_the_wire_sent(wire, store):
    again = Store(store.folder)
    for (name, text), sent in zip(TEXTS.items(), wire.send(list(TEXTS.values())), strict=True):
        entry = again.entry(name)
        assert again.message(wire, entry).to_bytes() == sent.to_bytes()
        assert (entry.tokens, entry.latents) == (len(wire.lm.tokenize(text)), len(sent))
        assert (entry.ratio, entry.wire) == (4, wire.id.hex())
        assert entry.bytes == len(sent.to_bytes())
        assert again.entry(entry.id) == entry
    assert again.entry("b.txt").name == "papers/b.txt"
    assert [e.name for e in again.entries()[0]] == sorted(TEXTS)
    with pytest.raises(UnknownContextError, match=r"no context 'd.txt' in .*; it has a.txt"):
        again.entry("d.txt")
    again.remove(again.entry("a.txt"))
    assert len(store.entries()[0]) == 2 and not store.fresh(wire, "a.txt", TEXTS["a.txt"])


def test_stores_hold_messages_of_every_wire_of_slots(tmp_path):
    lm, question = tiny_lm("llama"), "Who built it?"
    text = "Ada met Bob."
    codes = fitted(lm, lm, 16, count=10)
    wires = [make_wire(), TextWire(lm, [make_wire(), make_wire("gemma3")]), codes]
    for number, wire in enumerate(wires):
        store = Store(tmp_path / str(number))
        list(store.add(wire, {"a": text}))
        contexts = Contexts(wire, store)
        (message,) = wire.send([text])
        for reader in wire.readers:
            expected = ask(reader, message, [question])
            assert contexts.ask([(["a"], question)], reader.lm.name) == expected


def test_another_wires_store_is_refused(store):
    other = make_wire(rank=8)
    with pytest.raises(StoreError, match=r"a.txt was compressed by wire .*; this is wire"):
        store.message(other, store.entry("a.txt"))
    assert not store.fresh(other, "a.txt", TEXTS["a.txt"])


def test_a_change_of_text_ratio_or_rule_is_not_fresh(wire, store):
    text = TEXTS["a.txt"]
    assert store.fresh(wire, "a.txt", text)
    assert store.fresh(wire, "a.txt", text, bits=16)
    for other, words, bits in [
        (wire, text + " ", None),
        (wire.at(8), text, None),
        (wire.keeping("numbers"), text, None),
        (wire, text, 8),
    ]:
        assert not store.fresh(other, "a.txt", words, bits)


def test_an_altered_file_is_never_answered_from(wire, store):
    path = store.folder / f"{id_of('a.txt')}.context"
    good = path.read_bytes()
    for place in range(0, len(good), len(good) // 40):
        path.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        with pytest.raises(StoreError, match="altered"):
            store.message(wire, store.entry("a.txt"))
        assert not store.fresh(wire, "a.txt", TEXTS["a.txt"])
    path.write_bytes(good[:-1])
    with pytest.raises(StoreError, match="altered"):
        store.message(wire, store.entry("a.txt"))
    other = store.folder / f"{id_of('d.txt')}.context"
    other.write_bytes(good)  # a file of another document in this one's place
    assert ["belongs to" in e for e in store.entries()[1]] == [True]
    list(store.add(wire, {"a.txt": TEXTS["a.txt"]}))
    assert store.fresh(wire, "a.txt", TEXTS["a.txt"]) and len(path.read_bytes()) == len(good)


def test_a_full_disk_leaves_what_was_there(wire, store, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    before = store.entry("a.txt")
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        list(store.add(wire, {"a.txt": "other", "new.txt": "words"}))
    monkeypatch.undo()
    assert store.message(wire, store.entry("a.txt")) is not None and store.entry("a.txt") == before
    assert len(store.entries()[0]) == len(TEXTS) == len(list(store.folder.iterdir()))


def _write(wire, folder, number) -> None:
    store = Store(folder)
    data = wire.send([TEXTS["a.txt"]])[0].to_bytes()
    for i in range(1_000_000):
        store._write(wire, f"{number}-{i % 20}", TEXTS["a.txt"], data, 16)
        store._write(wire, "shared", f"{number} {i}", data, 16)


def test_writers_that_are_killed_leave_whole_contexts(wire, tmp_path):
    store, fork = Store(tmp_path), multiprocessing.get_context("fork")
    writers = [fork.Process(target=_write, args=(wire, tmp_path, n)) for n in range(3)]
    for writer in writers:
        writer.start()
    while len(store.entries()[0]) < 61:
        time.sleep(0.01)
    for writer in writers:
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
    entries, damaged = store.entries()
    names = {f"{n}-{i}" for n in range(3) for i in range(20)} | {"shared"}
    assert {entry.name for entry in entries} == names and not damaged
    for entry in entries:
        store.message(wire, entry)
    (tmp_path / "left.part").touch()
    os.utime(tmp_path / "left.part", (0, 0))
    list(store.add(wire, {"new": "words"}))
    assert not (tmp_path / "left.part").exists()


# -- commands -------------------------------------------------------------------------------------


@pytest.fixture
def command(wire, tmp_path, monkeypatch, capsys):
    """Runs a command with the tiny wire; status, standard output and error."""
    monkeypatch.setattr(FrozenLM, "from_pretrained", classmethod(lambda *_: wire.lm))
    monkeypatch.chdir(tmp_path)
    wire.save_pretrained(tmp_path / "wire")
    for name, text in TEXTS.items():
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(text)

    def call(name, *arguments):
        more = () if name == "serve" else ("--wire", "wire")
        return run(monkeypatch, capsys, name, *map(str, arguments), *more)

    return call


def test_compress_does_what_is_new_or_changed(command, monkeypatch):
    status, out, err = command("compress", *TEXTS, "--store", "s")
    assert (status, err, out.count(" tokens as ")) == (0, "", 3)
    assert "[2/3] papers/b.txt: 110 tokens as 28 latents" in out
    Path("c.md").write_text("other words")
    altered = Path("s") / f"{id_of('a.txt')}.context"
    altered.write_bytes(altered.read_bytes()[:-1])
    status, out, _ = command("compress", *TEXTS, "--store", "s")
    assert status == 0 and "papers/b.txt: unchanged" in out and out.count(" tokens as ") == 2


def test_compress_goes_on_after_an_interruption_and_beside_bad_documents(command, monkeypatch):
    write, written = Store._write, []

    def interrupted(self, wire, name, *rest):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(name)
        return write(self, wire, name, *rest)

    monkeypatch.setattr(Store, "_write", interrupted)
    assert command("compress", *TEXTS, "--store", "s")[0] == 130
    monkeypatch.setattr(Store, "_write", write)
    Path("bad.pdf").write_bytes(b"no pdf")
    Path("long.txt").write_text("words " * 1000)
    status, out, err = command("compress", "bad.pdf", "long.txt", *TEXTS, "--store", "s")
    assert status == 1 and out.count("unchanged") == 2 and out.count(" tokens as ") == 1
    assert "bad.pdf cannot be read" in err and "6000 tokens; at most" in err
    assert len(err.splitlines()) == 2


def test_documents_of_a_store_are_asked(command, wire):
    command("compress", *TEXTS, "--store", "s")
    status, out, _ = command("ask", "Who?", "--store", "s", "--doc", "a.txt")
    (message,) = wire.send([TEXTS["a.txt"]])
    answer = ask(wire, message, ["Who?"])[0]
    assert status == 0 and "tiny-llama read 52 tokens as 13 latents" in out
    assert out.encode().decode().splitlines()[0].strip() == printed(answer)
    both = ("--doc", "a.txt", "--doc", "b.txt")
    status, out, _ = command("ask", "Who?", "--store", "s", *both)
    assert status == 0 and "read 162 tokens as 41 latents" in out
    altered = Path("s") / f"{id_of('papers/b.txt')}.context"
    altered.write_bytes(altered.read_bytes()[:-1])
    status, out, err = command("ask", "Who?", "--store", "s", *both)
    assert status == 1 and "read 52 tokens as 13" in out and "papers/b.txt in s was altered" in err
    status, out, err = command("ask", "Who?", "--store", "s", "--doc", "b.txt")
    assert (status, out) == (2, "") and "altered" in err


def printed(answer: str) -> str:
    return (printable(answer).splitlines() or [""])[0].strip()


@pytest.mark.parametrize(
    "arguments, error",
    [
        (("ask", "Who?", "--store", "s"), "expected --doc NAME; s has a.txt, c.md, papers/b.txt"),
        (("ask", "Who?", "--store", "s", "--doc", "d"), "no context 'd' in s"),
        (("ask", "Who?", "--store", "a.txt", "--doc", "d"), "a.txt is no folder"),
        (("ask", "Who?"), "expected --context FILE, or --store"),
        (("ask", "Who?", "--context", "a.txt", "--store", "s", "--doc", "a.txt"), "one of them"),
        (("ask", "Who?", "--store", "s", "--doc", "a.txt", "--full-text"), "a store has no text"),
        (("chat",), "expected --context FILE, or --store"),
        (("compress", "--store", "s"), "got no document"),
        (("compress", "a.txt", "--store", "a.txt"), "a.txt is no folder"),
    ],
)
def test_mistakes_cost_one_line(command, arguments, error):
    command("compress", *TEXTS, "--store", "s")
    status, _, err = command(*arguments)
    assert status == 2 and error in err and len(err.splitlines()) == 1


def test_chat_from_the_terminal(command, monkeypatch):
    lines = iter(["Who?", "When?", ""])
    monkeypatch.setattr("builtins.input", lambda _: next(lines))
    status, out, _ = command("chat", "--context", "a.txt", "--max-new-tokens", 4)
    assert status == 0 and "a.txt: 52 tokens as 13 latents" in out and len(out.splitlines()) >= 3


# -- caches put together --------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gemma3", "qwen3"])
def test_contexts_after_one_another_stand_where_they_would_in_one_text(family):
    # At 1x every slot stays. Keys of the first layer follow from token and position alone, so that
    # one pass over all texts gives them; those of deeper layers are rotated by the shift at once.
    wire = make_wire(family, ratio=1)
    lm, head, texts = wire.lm, len(wire.head), list(TEXTS.values())
    messages = wire.send(texts)
    whole = after_one_another(lm, side_by_side([wire.receive([m]) for m in messages]))
    ids = torch.cat([lm.frame.prefix, *(lm.tokenize(text) for text in texts)])
    expected = lm.prefill(Prompt.from_ids(lm, [ids])).keys[0][0, :, head:]
    sizes = [len(lm.tokenize(text)) for text in texts]
    heads, width = lm.kv_shape

    def by_head(slots, i=0):
        return slots.keys.view(-1, heads, slots.lengths[0, 0], width)[i]

    torch.testing.assert_close(by_head(whole.ragged[0]), expected, atol=1e-5, rtol=1e-5)
    for layer in (1, 2):
        parts, shift = [], 0
        for message, size in zip(messages, sizes, strict=True):
            keys = by_head(wire.receive([message]).ragged[layer])
            by = torch.full((1, heads, size), shift)
            parts.append(rotate(lm.model, layer, keys[None], by)[0])
            shift += size
        moved = by_head(whole.ragged[layer])
        torch.testing.assert_close(moved, torch.cat(parts, 1), atol=1e-4, rtol=1e-4)
        positions = whole.ragged[layer].positions.view(heads, -1)
        assert positions.tolist() == [list(range(head, head + sum(sizes)))] * heads
    assert whole.next_position.tolist() == [head + sum(sizes)]


def test_a_model_without_rotation_reads_one_context(store):
    wire = make_wire("gpt2")
    prefix = wire.receive(wire.send(["Ada.", "Bob."]))
    with pytest.raises(ValueError, match="no rotary positions; it reads one context at a time"):
        after_one_another(wire.lm, prefix)


def test_contexts_too_long_together_are_refused(wire, store):
    list(store.add(wire, {"long": "Ada was born. " * 14}))
    contexts = Contexts(wire, store)
    with pytest.raises(TooLongError, match="positions; tiny-llama has room for 256"):
        contexts.stored(["long", "b.txt"])
    with pytest.raises(TooLongError, match="shorten them"):
        contexts.request(contexts.stored(["long"])[0], [Turn("user", "word " * 70)])


# -- generation -----------------------------------------------------------------------------------


class Recording(Batch):
    """Keeps the logits that each row's tokens were chosen from."""

    def __init__(self, lm):
        super().__init__(lm)
        self.seen: dict[int, list[torch.Tensor]] = {}

    def _choose(self, row, logits):
        self.seen.setdefault(id(row), []).append(logits[0])
        return super()._choose(row, logits)


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
def test_rows_that_join_and_leave_say_what_they_say_alone(family):
    wire = make_wire(family)
    lm = wire.lm
    prefixes = [*(wire.receive([m]) for m in wire.send(list(TEXTS.values()))), head_of(lm)]
    lengths = [3, 12, 7, 9]
    requests = [
        Request(prefix, lm.tokenize("When? " * n), length)
        for n, (prefix, length) in enumerate(zip(prefixes, lengths, strict=True), 1)
    ]
    batch, rows = Recording(lm), [Row(request) for request in requests]
    batch.join(rows[:2])
    for row in rows[2:]:
        batch.step()
        batch.step()
        batch.join([row])
    while batch.rows:
        batch.step()
    for row, request in zip(rows, requests, strict=True):
        prompt = Prompt.from_ids(lm, [request.ids], request.prefix)
        alone = lm.generate(prompt, Greedy(), request.max_new_tokens)
        assert row.ids == alone.ids[0][alone.mask[0]].tolist()
        expected = lm.logits(prompt, torch.tensor([row.ids]))[0]
        torch.testing.assert_close(torch.stack(batch.seen[id(row)]), expected, atol=1e-4, rtol=0)


def test_pieces_join_to_what_generate_says(wire, store):
    contexts = Contexts(wire, store)
    prefix, _ = contexts.stored(["a.txt"])
    ids = turn_ids(wire.lm, [Turn("user", "Who?")])
    (whole,) = wire.lm.generate(Prompt.from_ids(wire.lm, [ids], prefix), Greedy(), 40).texts
    pieces = list(stream(wire.lm, Request(prefix, ids, 40)))
    assert "".join(pieces) == whole.strip() and len(pieces) > 1
    stop = whole.strip()[5:8]
    cut = list(stream(wire.lm, Request(prefix, ids, 40, (stop,))))
    assert "".join(cut) == whole[: whole.index(stop)].strip()


def test_who_stops_asking_stops_the_generation(wire, store, monkeypatch):
    passes = []
    advance = decoding.advance
    monkeypatch.setattr(decoding, "advance", lambda lm, p: passes.append(1) or advance(lm, p))
    contexts = Contexts(wire, store)
    chat = Chat(contexts, ["a.txt"], max_new_tokens=100)
    pieces = chat.say("Who?")
    next(pieces)
    pieces.close()
    stopped = len(passes)
    assert stopped < 50
    fresh = "".join(Chat(contexts, ["a.txt"], max_new_tokens=9).say("When?"))
    chat.options["max_new_tokens"] = 9
    assert "".join(chat.say("When?")) == fresh  # the turn that was stopped has not been


def test_sampled_rows_draw_their_own_tokens_whoever_is_beside_them(wire, store):
    contexts = Contexts(wire, store)
    prefix, _ = contexts.stored(["a.txt"])
    ids = turn_ids(wire.lm, [Turn("user", "Who?")])
    requests = [Request(prefix, ids, 12, temperature=1.0, seed=seed) for seed in range(4)]
    together = complete(wire.lm, requests, rows=3)
    assert together == [complete(wire.lm, [r])[0] for r in requests] and len(set(together)) == 4


def test_a_row_that_fails_leaves_the_others_alone(wire, store):
    contexts = Contexts(wire, store)
    good = contexts.question(["a.txt"], "Who?")
    layers = tuple(values * float("nan") for values in good.prefix.values)
    bad = Request(KVPrefix(**{**vars(good.prefix), "values": layers}), good.ids, 5)
    rows, batch = [Row(good), Row(bad), Row(good)], Batch(wire.lm)
    batch.join(rows)
    while batch.rows:
        batch.step()
    assert isinstance(rows[1].error, FloatingPointError)
    assert rows[0].ids == rows[2].ids and rows[0].finish


def test_a_chat_holds_its_turns_in_the_cache(wire, store):
    contexts = Contexts(wire, store)
    chat, lm = Chat(contexts, ["a.txt"], max_new_tokens=6), wire.lm
    first = Row(
        contexts.following(
            contexts.stored(["a.txt"])[0], turn_ids(lm, [Turn("user", "Who?")]), max_new_tokens=6
        )
    )
    said = "".join(chat.say("Who?"))
    assert said == "".join(stream(lm, first.request, first))
    again = "".join(chat.say("When?"))
    answer = torch.tensor(first.ids[: len(first.ids) - (first.finish == "stop")])
    ids = [first.request.ids, answer, lm.next_turn, lm.tokenize("When?"), lm.frame.suffix]
    prompt = Prompt.from_ids(lm, [torch.cat(ids)], first.request.prefix)
    assert again == lm.generate(prompt, Greedy(), 6).texts[0].strip()


def test_questions_of_several_documents_are_answered_together_as_alone(wire, store):
    contexts = Contexts(wire, store)
    asked = [(["a.txt"], "Who?"), (["b.txt", "a.txt"], "When?"), (["c.md"], "What?")] * 3
    assert contexts.ask(asked) == [contexts.ask([one])[0] for one in asked]


def test_entries_are_checked_like_any_artifact(store):
    path = store.folder / f"{id_of('a.txt')}.context"
    magic, _, line, rest = path.read_bytes().split(b"\n", 3)
    for field, value in {"ratio": "four", "name": 3, "bytes": 1e9}.items():
        forged = json.dumps({**json.loads(line), field: value}).encode()
        seal = hashlib.sha256(forged).hexdigest().encode()
        path.write_bytes(b"\n".join([magic, seal, forged, rest]))
        with pytest.raises(StoreError, match=field):
            store.entry("a.txt")
