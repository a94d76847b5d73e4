"""Private latents of a shared wire: who gets which, what a message costs, who learns from whom."""

import json
from dataclasses import replace

import pytest
import torch
from test_shared import TEXTS, lms, make_wire, passages, recipe  # noqa: F401

from latentwire.wire.learned import objectives as steps
from latentwire.wire.learned.data import TrainingData
from latentwire.wire.learned.encoders import ENCODERS, WritingEncoder
from latentwire.wire.learned.objectives import FULL, Gist, Objectives
from latentwire.wire.learned.private import Layout
from latentwire.wire.learned.reader import Reader, Values
from latentwire.wire.learned.shared_message import SharedMessage
from latentwire.wire.learned.shared_wire import SharedWire
from latentwire.wire.learned.training import wire_loss
from latentwire.wire.message import MessageError

LONG = "A text of more than one window, in the tokens of the source, is cut. " * 2
WRITING = [name for name, encoder in ENCODERS.items() if issubclass(encoder, WritingEncoder)]


def cache(reader: Reader, message: SharedMessage) -> torch.Tensor:
    prefix = reader.receive([message])
    return torch.stack(prefix.keys + prefix.values)


def test_a_layout_by_hand():
    layout = Layout(block=3, private=2, owners=2)
    row = torch.arange(12)  # four shared latents: a whole window, and one of one
    assert layout.places(12).tolist() == [0, 1, 2, 3, 4, 5, 6, 0, 3, 4, 5, 6]
    assert layout.shared(row).tolist() == layout.heard(row, 2).tolist() == [0, 1, 2, 7]
    assert layout.heard(row, 0).tolist() == [0, 1, 2, 3, 4, 7, 8, 9]
    assert layout.heard(row, 1).tolist() == [0, 1, 2, 5, 6, 7, 10, 11]
    assert layout.of(1).places(8).tolist() == [0, 1, 2, 3, 4, 0, 3, 4]
    assert layout.of(2).places(4).tolist() == [0, 1, 2, 0]


def test_a_number_of_latents_that_no_text_gives_is_refused(lms):  # noqa: F811
    wire = make_wire(lms, private=2)
    message = wire.send(TEXTS[:1])[0]
    for count in range(1, 25):  # of windows of 8, each with 4 behind
        changed = replace(message, codes=message.codes[:1].expand(count, -1))
        read = SharedMessage.from_bytes(changed.to_bytes())
        if count in (*range(5, 13), *range(17, 25)):
            wire.readers[0].open([read])
        else:
            with pytest.raises(MessageError, match=f"has {count} latents; expected windows of 12"):
                wire.readers[0].open([read])


def test_what_a_message_costs_by_hand(lms):  # noqa: F811
    wire = make_wire(lms, private=2)
    message = wire.send(TEXTS[:1])[0]  # 49 tokens, 13 latents, in 2 windows
    latents = 13 + 2 * 2 * 2
    size = 25 + latents * 8 * 4 // 8
    assert len(message) == latents and len(message.to_bytes()) == size
    assert wire.cost(TEXTS[0]) == (latents, size)
    for reader in wire.readers:
        prefix = reader.receive([message])
        assert reader.cost(TEXTS[0]) == (13 + 2 * 2, size)
        assert len(prefix) == len(reader.head) + 17
        places = prefix.positions[0, len(reader.head) :] - len(reader.head)
        assert places.tolist() == [int((i + 0.5) * 49 / 17) for i in range(17)]


@pytest.mark.parametrize("encoder", WRITING)
def test_what_arrives_is_what_training_saw(lms, encoder):  # noqa: F811
    wire = make_wire(lms, encoder, private=2)
    texts = [*TEXTS, LONG]
    messages = [SharedMessage.from_bytes(m.to_bytes()) for m in wire.send(texts)]
    assert [len(m.to_bytes()) for m in messages] == [wire.cost(text)[1] for text in texts]
    values = wire.encode(texts)
    contents = [Values(v, m.span) for v, m in zip(values, messages, strict=True)]
    for reader in wire.readers:
        read, direct = reader.receive(messages), reader.prefix(contents)
        kept = read.mask.sum(1) - len(reader.head)
        assert kept.tolist() == [reader.latents(text) for text in texts]
        for ours, theirs in zip(read.keys, direct.keys, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
        for row, message in enumerate(messages):
            alone = reader.receive([message]).keys[0][0]
            ours = read.keys[0][row][:, read.mask[row]]
            torch.testing.assert_close(ours, alone, atol=1e-4, rtol=1e-4)


def test_a_reader_never_sees_what_is_private_to_another(lms):  # noqa: F811
    wire = make_wire(lms, ways=("embeddings", "deep_prefix"), private=2)
    with torch.no_grad():
        for parameter in wire.adapters.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    wire = wire.with_reader("tiny-qwen3", lms["tiny-qwen3"]).eval()
    message = wire.send([LONG])[0]
    places = wire.layout.places(len(message))
    for owner in range(2):
        mine = (places >= 8 + 2 * owner) & (places < 10 + 2 * owner)
        assert int(mine.sum()) == 2 * 5
        other = message.codes.where(~mine[:, None], 15 - message.codes)
        changed = replace(message, codes=other)
        for number, reader in enumerate(wire.readers):
            same = torch.equal(cache(reader, message), cache(reader, changed))
            assert same == (number != owner), reader.reader
    for content in wire.readers[0].open([message]):
        assert len(content.zeros().codes) == len(message) and not content.zeros().codes.any()


def test_slots_see_one_another_within_a_window(lms):  # noqa: F811
    wire = make_wire(lms, private=2)
    message = wire.send([LONG])[0]
    behind = torch.arange(len(message)) >= 12  # the windows after the first
    other = replace(message, codes=message.codes.where(~behind[:, None], 15 - message.codes))
    for reader in wire.readers:
        first = len(reader.head) + 10
        ours, theirs = cache(reader, message), cache(reader, other)
        assert torch.equal(ours[..., :first, :], theirs[..., :first, :])
        assert (ours[..., first:, :] != theirs[..., first:, :]).flatten(3).any(3).all()


def test_a_readers_loss_reaches_its_own_writer_alone(lms):  # noqa: F811
    wire = make_wire(lms, private=2)
    values = wire.encode(TEXTS)
    for number, reader in enumerate(wire.readers):
        wire.zero_grad()
        contents = [Values(row, 20) for row in values]
        prefix = reader.prefix(contents)
        sum(k.square().sum() for k in prefix.keys).backward(retain_graph=True)
        for owner, private in enumerate(wire.private):
            moved = [p.grad is not None and bool(p.grad.any()) for p in private.parameters()]
            assert all(moved) if owner == number else not any(moved)
        assert wire.encoder.write[1].weight.grad.any()


def test_what_all_readers_share_is_trained_by_shared_latents_alone(lms):  # noqa: F811
    wire = make_wire(lms, ways=("embeddings", "deep_prefix"), private=2)
    of = Objectives(gist=FULL, contrast=FULL, diversity=FULL, embeds=FULL)
    given, training_data = recipe(wire.config, objectives=of), TrainingData(passages(), [])
    gist = Gist(wire)
    total, _ = wire_loss(wire, wire.readers, training_data, given, 0, gist)
    assert total.isfinite()
    now = {name: schedule.at(0, 1, ()) for name, schedule in of.schedules.items()}
    some = passages()[:4]
    step = steps.Step(some, some, of, now, 0, 0)
    parts = steps.shared_parts(wire, step, steps.send(wire, step), gist)
    assert set(parts) == {"gist", "contrast", "diversity"}
    sum(parts.values()).backward()
    grads = [p.grad for p in wire.private.parameters()]
    assert not any(g is not None and g.any() for g in grads)
    assert wire.encoder.write[1].weight.grad.any()


def test_save_and_load_and_one_more_reader(lms, tmp_path):  # noqa: F811
    wire = make_wire(lms, private=2)
    wire.save(tmp_path)
    loaded = SharedWire.from_pretrained(tmp_path, lms)
    message = loaded.send([LONG])[0]
    more = loaded.with_reader("tiny-qwen3", lms["tiny-qwen3"]).eval()
    more.save(tmp_path / "more")
    more = SharedWire.from_pretrained(tmp_path / "more", lms)
    assert wire.id == loaded.id == more.id
    assert more.send([LONG])[0].to_bytes() == message.to_bytes()
    for ours, theirs in zip(more.readers, loaded.readers, strict=False):
        assert torch.equal(cache(ours, message), cache(theirs, message))
    added = more.reader("tiny-qwen3")
    assert len(added.receive([message])) - len(added.head) == len(message) - 2 * 2 * 5
    with torch.no_grad():
        more.private[1].query[0, 0] += 1
    assert more.id != wire.id


def test_a_wire_saved_before_there_were_private_latents_loads(lms, tmp_path):  # noqa: F811
    wire = make_wire(lms)
    wire.save(tmp_path)
    record = json.loads((tmp_path / "config.json").read_text())
    del record["config"]["private"], record["config"]["added"]
    (tmp_path / "config.json").write_text(json.dumps(record))
    loaded = SharedWire.from_pretrained(tmp_path, lms)
    assert loaded.config == wire.config and loaded.id == wire.id
