"""Files and messages of strangers: each is taken or refused with the one error that its loader
documents, in one line, whatever is in it.

LATENTWIRE_FUZZ=1000 tries a thousand times as many (reproduce/attack.sh), and prints the counts.
"""

import hashlib
import json
import struct
import zlib
from pathlib import Path

import pytest
import torch
from hostile import attack, damaged, edited, json_of, line_of, refused, tensors_file, text_of
from safetensors.torch import save
from test_message import SMALL as ONE_READER
from test_report import RESULTS, answers, metrics
from test_report_seek import RESULTS as SEEK
from test_report_sweep import evaluated
from test_shared_message import SMALL as SHARED
from tiny import tiny_lm

from latentwire import patterns
from latentwire.artifact import ArtifactError, parse_tensors
from latentwire.lens.activations import Statistics
from latentwire.lens.checks import LensError
from latentwire.lens.decoder import DecoderConfig
from latentwire.lens.encoder import EncoderConfig as LensEncoder
from latentwire.lens.lens import Lens, LensConfig
from latentwire.lm import FrozenLM
from latentwire.lm.zoo import ZooError
from latentwire.report.folder import ReportError
from latentwire.report.page import write_report
from latentwire.tasks.arc import load_arc
from latentwire.tasks.base import DataError, read_jsonl
from latentwire.tasks.qa import read_questions
from latentwire.train.checkpoints import CheckpointError, Checkpoints
from latentwire.wire.codes.code import Code, CodeConfig
from latentwire.wire.codes.message import CodeMessage
from latentwire.wire.codes.reader import CodeReader
from latentwire.wire.codes.wire import CodeWire, Source
from latentwire.wire.learned.encoders.base import EncoderConfig
from latentwire.wire.learned.shared_message import SharedMessage
from latentwire.wire.learned.shared_wire import SharedConfig, SharedWire
from latentwire.wire.load import load_wire
from latentwire.wire.message import Message, MessageError
from latentwire.wire.text_message import TextMessage
from latentwire.wire.text_wire import TextWire
from latentwire.wire.verbatim import finder
from latentwire.wire.wire import Wire, WireConfig, WireError

NAME = "tiny-llama"
LM = tiny_lm("llama")
KINDS = ("wire", "shared wire", "text wire", "code wire", "lens")
MARK = "<i id=outside>&"


def _none(cls, name, *_, **__):
    raise ZooError(f"no model {name!r:.80} here")


@pytest.fixture(scope="module", autouse=True)
def folders(tmp_path_factory) -> dict[str, Path]:
    """One good artifact of each kind; models that they do not name are nowhere."""
    root = tmp_path_factory.mktemp("artifacts")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FrozenLM, "from_pretrained", classmethod(_none))
        wire = Wire(LM, WireConfig(NAME, rank=4, format_tokens=3))
        sizes = EncoderConfig(4, 32, channels=8, width=64, layers=1)
        shared = SharedWire(SharedConfig((NAME,), NAME, sizes=sizes, trunk_layers=1), {NAME: LM})
        decoder = DecoderConfig(layers=1, max_new_tokens=8)
        lens = Lens(LM, LensConfig(NAME, 1, decoder, LensEncoder(before=3)), STATISTICS)
        reader = CodeReader(LM, 6, 4, 3)
        codes = CodeWire(Code(CodeConfig(NAME, (0, 2), 6), 32), Source.of(LM), [reader])
        artifacts = (wire, shared, TextWire(LM, [wire]), codes, lens)
        saved = dict(zip(KINDS, artifacts, strict=True))
        for kind, artifact in saved.items():
            artifact.save_pretrained(root / kind)
        yield {kind: root / kind for kind in saved}


STATISTICS = Statistics(torch.zeros(32), 1.0, 1.0)


def load(kind: str, folder: Path):
    if kind == "lens":
        return Lens.from_pretrained(str(folder), LM)
    return load_wire(folder, {NAME: LM})


def loaded(kind: str, folder: Path, what: str) -> None:
    error = LensError if kind == "lens" else WireError
    refused(f"{kind}, {what}", lambda: load(kind, folder), error, ZooError)


@pytest.mark.parametrize("kind", KINDS)
@attack(25)
def test_configs(folders, kind, random):
    config = folders[kind] / "config.json"
    whole = config.read_text()
    record = edited(random, json.loads(whole))
    try:
        config.write_text(json.dumps(record))
        loaded(kind, folders[kind], "config")
    finally:
        config.write_text(whole)


@pytest.mark.parametrize("kind", KINDS)
@attack(5)
def test_configs_that_are_no_objects(folders, kind, random):
    config = folders[kind] / "config.json"
    whole = config.read_text()
    try:
        config.write_text(line_of(random), encoding="utf-8", errors="surrogatepass")
        loaded(kind, folders[kind], "JSON")
    finally:
        config.write_text(whole)


@pytest.mark.parametrize("kind", ["wire", "shared wire", "code wire", "lens"])
@attack(15)
def test_weights(folders, kind, random):
    config = folders[kind] / "config.json"
    record = json.loads(config.read_text())
    weights = sorted(folders[kind].glob("*.safetensors"))[0]
    whole, told = weights.read_bytes(), config.read_text()
    bad = tensors_file(random, whole)
    digest = hashlib.sha256(bad).hexdigest()
    sums = record["sha256"]
    record["sha256"] = digest if isinstance(sums, str) else {**sums, weights.name: digest}
    try:
        weights.write_bytes(bad)
        config.write_text(json.dumps(record))
        loaded(kind, folders[kind], "weights")
    finally:
        weights.write_bytes(whole)
        config.write_text(told)


GOOD = save({"a": torch.ones(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)})


@attack(100)
def test_safetensors(random):
    data = tensors_file(random, GOOD)
    state = refused("safetensors", lambda: parse_tensors(data), ArtifactError)
    for tensor in (state or {}).values():
        assert tensor.dtype == torch.float32 and torch.isfinite(tensor).all()
        assert tensor.nbytes <= 4 * len(data)


STAGE = save({"value/w": torch.ones(3)}, metadata={"run": "", "step": "0"})


@attack(40)
def test_checkpoints(tmp_path_factory, random):
    folder = tmp_path_factory.getbasetemp()
    (folder / "stage.safetensors").write_bytes(tensors_file(random, STAGE))
    weight = torch.zeros(3, requires_grad=True)
    parameters, kept = {"w": weight}, Checkpoints(folder, "stage")
    refused(
        "checkpoint",
        lambda: kept.load(parameters, torch.optim.AdamW([weight])),
        CheckpointError,
    )
    assert torch.isfinite(weight).all()


def sealed(data: bytes, end: int) -> bytes:
    """With the checksum, up to `end`, that these bytes should have."""
    return data[: end - 4] + struct.pack("<I", zlib.crc32(data[end:])) + data[end:]


TEXT = TextMessage("00112233aabbccdd", 7, 9, b"\x01\x02\x03\x04")
CODES = CodeMessage(bytes(8), torch.arange(12).view(4, 3) % 8, 3, "Which river?")
MESSAGES = {Message: (ONE_READER, 10), SharedMessage: (SHARED, 9), TextMessage: (TEXT, 9)}
MESSAGES |= {CodeMessage: (CODES, 9)}


@pytest.mark.parametrize("kind", MESSAGES)
@attack(70)
def test_messages(kind, random):
    good, end = MESSAGES[kind]
    bad = damaged(random, good.to_bytes())
    if random.choice([True, False]) and len(bad) > end:
        bad = sealed(bad, end)
    refused(kind.__name__, lambda: kind.from_bytes(bad), MessageError)


ROW = {"id": "1", "context": "The Aare.", "question": "Which?", "answers": ["Aare", "the Aare"]}
ARC = {"flip": {p: [{"input": [[1, 2]], "output": [[2, 1]]}] for p in ("train", "test")}}


@attack(60)
def test_jsonl(tmp_path_factory, random):
    lines = [line_of(random, ROW) for _ in range(random.randint(0, 3))]
    path = tmp_path_factory.getbasetemp() / "rows.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8", errors="surrogatepass")
    for row in refused("questions", lambda: read_questions(path), DataError) or []:
        json.dumps([row.id, row.question], ensure_ascii=False).encode()  # as predictions are
    refused("rows", lambda: list(read_jsonl(path, {})), DataError)


@attack(60)
def test_arc(tmp_path_factory, random):
    text = line_of(random, ARC)
    path = tmp_path_factory.getbasetemp() / "arc.json"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    refused("ARC", lambda: load_arc(path), DataError)


SWEEP = {
    "kind": "sweep",
    "data": "d",
    "limit": 9,
    "members": {"a": {"evaluations": {"16": evaluated(0.5, 75.6, 1e6)}}, "b": {"error": "no"}},
}
READERS = {"kind": "readers", "readers": {"a": RESULTS, "b": RESULTS}}
RESULTS_OF = {"wire": RESULTS, "seek": SEEK, "sweep": SWEEP, "readers": READERS}


def named(value):
    """With a mark behind every name and every text of a JSON value but its kind."""
    if isinstance(value, dict):
        marked = {k: v if k == "kind" else named(v) for k, v in value.items()}
        return marked | {"limit": MARK} if "limit" in value else marked
    return [named(v) for v in value] if isinstance(value, list) else marked_text(value)


def marked_text(value):
    return value + MARK if isinstance(value, str) else value


@pytest.mark.parametrize("kind", RESULTS_OF)
def test_pages_hold_texts_from_outside_as_text(tmp_path, kind):
    (tmp_path / "results.json").write_text(json.dumps(named(RESULTS_OF[kind])))
    (tmp_path / "config.json").write_text(json.dumps({MARK: MARK}))
    if kind == "wire":
        (tmp_path / "metrics.jsonl").write_text(metrics())
        (tmp_path / "predictions.jsonl").write_text(answers(MARK))
    page = write_report(tmp_path).read_text()
    assert "<i " not in page and "&lt;i id=outside&gt;&amp;" in page


@pytest.mark.parametrize("kind", RESULTS_OF)
@attack(5)
def test_results(tmp_path_factory, kind, random):
    folder = tmp_path_factory.getbasetemp() / "run"
    folder.mkdir(exist_ok=True)
    forged = random.choice([True, False])
    results = json_of(random) if forged else edited(random, RESULTS_OF[kind])
    (folder / "results.json").write_text(json.dumps(results))
    page = refused(f"page of {kind}", lambda: write_report(folder), ReportError)
    assert page is None or "<script" not in page.read_text()


PIECES = [*"ab(|)*+?[]{}.\\1,^$", "(?", "(?R)", "(a|aa)+", "{9999}", "\\p{L}"]


@attack(60)
def test_rules(random):
    rule = "".join(random.choice(PIECES) for _ in range(random.randint(0, 8)))
    text = text_of(random, 20, "ab .\n1A")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(patterns, "SECONDS", 0.05)
        spans = refused("rule", lambda: list(finder(rule)(text)), WireError)
    assert all(0 <= first < last <= len(text) for first, last in spans or [])
