"""Stored contexts as slots of one length: beside our own path on logits, as Hugging Face's model
goes on from them; and the connector for vLLM, in a small engine of blocks that stands for it
(reproduce/vllm.sh compares with vLLM itself)."""

import importlib
import sys
from copy import deepcopy
from enum import Enum
from types import ModuleType, SimpleNamespace

import pytest
import torch
from test_commands import run
from test_store import TEXTS, make_wire
from tiny import tokenizer
from transformers import DynamicCache

from latentwire.lm import FrozenLM, Prompt
from latentwire.serve.context import Contexts, TooLongError
from latentwire.serve.slots import Load, SlotReader, Slots
from latentwire.serve.store import Store
from latentwire.wire.load import load_with
from latentwire.wire.wire import Wire

QUESTION = "\n\nWho built it?"
NAMES = {"one": ["a.txt"], "two": ["c.md", "a.txt"]}
CHAT = (
    "{{ '<bos>[' }}{{ messages[0]['content'] }}{{ ']' if messages[0]['role'] == 'user' else '}' }}"
    "{% if add_generation_prompt %}{{ '>' }}{% endif %}"
)


def reader_of(wire: Wire, folder, *names: str) -> SlotReader:
    store = Store(folder)
    list(store.add(wire, {name: TEXTS[name] for name in names or TEXTS}))
    return SlotReader(Contexts(wire, store))


@pytest.fixture(scope="module")
def reader(tmp_path_factory) -> SlotReader:
    return reader_of(make_wire().uniform(), tmp_path_factory.mktemp("slots"))


def chatting(template: str = CHAT) -> FrozenLM:
    words = tokenizer()
    words.chat_template = template
    return FrozenLM(deepcopy(make_wire().lm.model), words, "tiny-llama")


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("soft_prompt", [True, False], ids=["soft-prompt", "no-soft-prompt"])
@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES)
def test_hugging_face_goes_on_from_slots_as_we_do(family, soft_prompt, names, tmp_path):
    reader = reader_of(make_wire(family).uniform(), tmp_path)
    lm, slots = reader.lm, reader.read(names, soft_prompt=soft_prompt)
    cache = DynamicCache()
    for layer, (keys, values) in enumerate(slots.layers):
        cache.update(keys.transpose(0, 1)[None], values.transpose(0, 1)[None], layer)
    assert cache.get_seq_length() == len(slots)
    ids = torch.tensor(reader.following(lm.tokenize(QUESTION).tolist()))
    theirs = lm.model(ids[None], past_key_values=cache).logits[0, -1]
    prefix, _ = reader.contexts.stored(names, soft_prompt=soft_prompt)
    ours = lm.head(lm.last_hidden(Prompt.from_ids(lm, [ids], prefix))[:, -1])[0]
    assert (ours - theirs).abs().max() < 1e-4
    other = reader.read(["papers/b.txt"])
    assert other.digest != slots.digest and reader.read(names, soft_prompt=soft_prompt) is slots


def test_slots_go_where_the_blocks_are():
    layer = (torch.arange(11.0).view(11, 1, 1),) * 2
    for start in (0, 4, 10):
        places = Load(Slots((layer,), ""), start, [7, 2, 5]).places(4)
        table = {}
        for slot, place in zip(range(start, 11), places.tolist(), strict=True):
            table[slot] = divmod(place, 4)
        assert table == {slot: ([7, 2, 5][slot // 4], slot % 4) for slot in range(start, 11)}


def test_what_follows_the_slots_of_a_prompt(reader):
    question = reader.lm.tokenize(QUESTION).tolist()
    assert reader.following(question) == question
    with pytest.raises(ValueError, match="no words follow"):
        reader.following([])


def test_a_chat_goes_on_behind_its_head(tmp_path):
    lm = chatting()
    reader = SlotReader(Contexts(Wire.of(lm, "streaming"), Store(tmp_path)))
    turn = [{"role": "user", "content": "Who built it?"}]
    options = {"add_generation_prompt": True, "return_dict": False}
    ids = lm.tokenizer.apply_chat_template(turn, **options)
    expected = [*lm.tokenize(QUESTION).tolist(), *lm.frame.suffix.tolist()]
    assert reader.following(ids) == expected == reader.following(expected)
    with pytest.raises(ValueError, match="another head than the context"):
        reader.following([int(lm.frame.prefix[0]), *lm.tokenize("(Who?)").tolist()])


def test_what_cannot_be_exact_is_refused_in_one_line(reader, tmp_path):
    competing = reader_of(make_wire(), tmp_path / "competing")
    windowed = reader_of(make_wire("gemma3").uniform(), tmp_path / "windowed", "c.md")
    for line, attempt in {
        r"heads have \d+ to \d+ slots; .* compress --uniform": lambda: competing.read(["a.txt"]),
        "layers that see 6 tokens": lambda: windowed.read(["c.md"], room=1),
        "no context 'none' in": lambda: reader.read(["none"]),
        "leave no room; expected fewer than 30": lambda: reader.check_length(20, 10, 30),
    }.items():
        with pytest.raises(ValueError, match=line) as error:
            attempt()
        assert "\n" not in str(error.value)
    reader.check_length(20, 9, 30)
    with pytest.raises(TooLongError):
        reader.check_length(30, 1, 30)


def test_a_uniform_message_is_another_than_a_competing_one(tmp_path):
    wire = make_wire()
    store = Store(tmp_path / "store")
    list(store.add(wire.uniform(), {"a": TEXTS["a.txt"]}))
    assert store.fresh(wire.uniform(), "a", TEXTS["a.txt"])
    assert not store.fresh(wire, "a", TEXTS["a.txt"])
    list(store.add(wire, {"a": TEXTS["a.txt"]}))
    assert not store.fresh(wire.uniform(), "a", TEXTS["a.txt"])


def test_compress_uniform_is_for_a_wire_of_slots(monkeypatch, capsys, tmp_path):
    (tmp_path / "a.txt").write_text(TEXTS["a.txt"])
    arguments = ["compress", str(tmp_path / "a.txt"), "--store", str(tmp_path / "store")]
    code, _, error = run(monkeypatch, capsys, *arguments, "--wire", "shared", "--uniform")
    assert code == 2 and "shared sends no slots; expected a wire of one reader" in error


# -- the connector --------------------------------------------------------------------------------

BLOCK = 4


class Role(Enum):
    SCHEDULER = 0
    WORKER = 1


class Base:
    """The part of vLLM's base class that the connector uses."""

    def __init__(self, vllm_config, role, kv_cache_config):
        self._vllm_config = vllm_config

    def bind_connector_metadata(self, metadata):
        self._metadata = metadata

    def _get_connector_metadata(self):
        return self._metadata


@pytest.fixture
def module(monkeypatch) -> ModuleType:
    """The connector's module, with what it imports of vLLM."""
    contents = {
        "vllm.distributed.kv_transfer.kv_connector.v1.base": {
            "KVConnectorBase_V1": Base,
            "KVConnectorMetadata": object,
            "KVConnectorRole": Role,
        },
        "vllm.logger": {"init_logger": importlib.import_module("logging").getLogger},
        "vllm.model_executor.models.utils": {
            "extract_layer_index": lambda name: int(name.split(".")[1])
        },
    }
    for name, attributes in contents.items():
        parts = name.split(".")
        for end in range(1, len(parts) + 1):
            parent = ".".join(parts[:end])
            monkeypatch.setitem(sys.modules, parent, ModuleType(parent))
        vars(sys.modules[name]).update(attributes)
    monkeypatch.delitem(sys.modules, "latentwire.serve.vllm", raising=False)
    yield importlib.import_module("latentwire.serve.vllm")
    sys.modules.pop("latentwire.serve.vllm")


class Layer:
    """An attention layer whose cache is [block, place, 2, head, width]."""

    def __init__(self, heads: int, width: int):
        self.kv_cache = torch.zeros(40, BLOCK, 2, heads, width)
        self.impl = self

    def do_kv_cache_update(self, layer, keys, values, cache, places):
        flat = cache.view(-1, *cache.shape[2:])
        flat[places, 0], flat[places, 1] = keys, values


def config_of(folder, model: str, **changes) -> SimpleNamespace:
    transfer = {"kv_load_failure_policy": "fail"}
    transfer["kv_connector_extra_config"] = {"store": str(folder), "wire": None}
    return SimpleNamespace(
        model_config=SimpleNamespace(max_model_len=200, dtype=torch.float32, model=model),
        kv_transfer_config=SimpleNamespace(**(transfer | changes)),
        parallel_config=SimpleNamespace(world_size=1),
        speculative_config=None,
    )


GROUPS = SimpleNamespace(
    kv_cache_groups=[SimpleNamespace(kv_cache_spec=SimpleNamespace(block_size=BLOCK))]
)


class Request:
    """A request as vLLM's scheduler has it."""

    def __init__(self, name: str, ids: list[int], asked: dict | None, **changes):
        self.request_id, self.kv_transfer_params = name, asked
        self.prompt_token_ids, self._all_token_ids = list(ids), list(ids)
        self.num_prompt_tokens, self.cache_salt, self.max_tokens = len(ids), None, 20
        self.block_hashes, self.skip_reading_prefix_cache = [], False
        self.prompt_embeds = self.lora_request = None
        self.mm_features = []
        self.update_block_hashes()
        vars(self).update(changes)

    def update_block_hashes(self):
        ids = self._all_token_ids
        whole = range(BLOCK, len(ids) + 1, BLOCK)
        self.block_hashes += [hash((self.cache_salt, *ids[:end])) for end in whole]


@pytest.fixture
def engine(module, tmp_path) -> SimpleNamespace:
    """Both sides of the connector of a model on disk, and its layers."""
    lm = make_wire().lm
    lm.model.save_pretrained(tmp_path / "model")
    lm.tokenizer.save_pretrained(tmp_path / "model")
    model = str(tmp_path / "model")
    wire = load_with(model, selector="attention")
    reader = reader_of(load_with(model, selector="attention", uniform=True), tmp_path / "store")
    list(reader.contexts.store.add(wire, {"competing": TEXTS["a.txt"]}))
    config = config_of(tmp_path / "store", model)
    scheduler = module.LatentwireConnector(config, Role.SCHEDULER, GROUPS)
    worker = module.LatentwireConnector(config, Role.WORKER, GROUPS)
    layers = {f"model.{i}.attn": Layer(*lm.kv_shape) for i in reversed(range(len(lm.blocks)))}
    return SimpleNamespace(reader=reader, scheduler=scheduler, worker=worker, layers=layers)


def step(engine: SimpleNamespace, request: Request, blocks: list[int], cached: int = 0) -> set:
    """One step of an engine: the blocks that could not be loaded."""
    count, later = engine.scheduler.get_num_new_matched_tokens(request, cached)
    assert not later and cached + count < len(request._all_token_ids)
    given = SimpleNamespace(get_block_ids=lambda: (blocks,))
    engine.scheduler.update_state_after_alloc(request, given, count)
    engine.worker.bind_connector_metadata(engine.scheduler.build_connector_meta(None))
    engine.worker.start_load_kv(SimpleNamespace(no_compile_layers=engine.layers))
    return engine.worker.get_block_ids_with_load_errors()


def test_a_request_finds_its_contexts_slots_in_its_blocks(engine):
    reader, question = engine.reader, engine.reader.lm.tokenize(QUESTION).tolist()
    slots = reader.read(["a.txt"])
    request = Request("1", question, {"context": "a.txt"})
    plain = list(request.block_hashes)
    engine.scheduler.on_new_request(request)
    assert request._all_token_ids == request.prompt_token_ids
    assert request._all_token_ids[len(slots) :] == question
    assert request.num_prompt_tokens == len(slots) + len(question)
    assert len(request.block_hashes) == request.num_prompt_tokens // BLOCK
    assert not set(plain) & set(request.block_hashes)
    blocks = list(range(39, 39 - request.num_prompt_tokens // BLOCK - 1, -1))
    assert step(engine, request, blocks) == set() and len(slots) % BLOCK
    for index, pair in enumerate(slots.layers):
        cache = engine.layers[f"model.{index}.attn"].kv_cache[blocks].flatten(0, 1)
        assert torch.equal(cache[: len(slots)], torch.stack(pair, 1))
        assert not cache[len(slots) :].any()
    for layer in engine.layers.values():  # preempted: its first block is in the prefix cache
        layer.kv_cache.zero_()
    assert step(engine, request, blocks, cached=BLOCK) == set()
    cache = engine.layers["model.0.attn"].kv_cache[blocks].flatten(0, 1)
    assert not cache[:BLOCK].any()
    assert torch.equal(cache[BLOCK : len(slots), 0], slots.layers[0][0][BLOCK:])
    assert engine.scheduler.request_finished(request, blocks) == (False, None)
    assert step(engine, request, blocks) == set() and not engine.scheduler._asked


def test_contexts_share_blocks_with_themselves_alone(engine):
    question = engine.reader.lm.tokenize(QUESTION).tolist()
    hashes = []
    for context in ("a.txt", ["a.txt"], "papers/b.txt", ["a.txt", "papers/b.txt"]):
        request = Request(str(context), question, {"context": context})
        engine.scheduler.on_new_request(request)
        hashes.append(request.block_hashes)
    assert hashes[0] == hashes[1]
    other = Request("salted", question, {"context": "a.txt"}, cache_salt="tenant")
    engine.scheduler.on_new_request(other)
    sets = [set(h) for h in (*hashes[1:], other.block_hashes)]
    assert len(set.union(*sets)) == sum(map(len, sets))


def test_a_request_without_a_context_is_left_alone(engine):
    request = Request("1", [5, 6, 7], None)
    engine.scheduler.on_new_request(request)
    assert (request.prompt_token_ids, request.cache_salt) == ([5, 6, 7], None)
    assert engine.scheduler.get_num_new_matched_tokens(request, 0) == (0, False)
    assert step(engine, request, [0]) == set()


@pytest.mark.parametrize(
    "line, asked, changes",
    [
        ("no context 'none' in", {"context": "none"}, {}),
        ("compress --uniform", {"context": "competing"}, {}),
        ("expected {'context'}", {"contexts": "a.txt"}, {}),
        ("expected {'context'}", {"context": "a.txt", "colour": 1}, {}),
        ("expected a name, or a list", {"context": 3}, {}),
        ("soft_prompt is 'no'", {"context": "a.txt", "soft_prompt": "no"}, {}),
        ("prompt_logprobs", {"context": "a.txt"}, {"skip_reading_prefix_cache": True}),
        (
            "no embeddings",
            {"context": "a.txt"},
            {"prompt_embeds": torch.zeros(1), "prompt_token_ids": None},
        ),
        ("no embeddings", {"context": "a.txt"}, {"lora_request": object()}),
        ("expected fewer than 200", {"context": "a.txt"}, {"prompt_token_ids": [5] * 190}),
    ],
)
def test_a_request_that_cannot_be_answered_fails_alone(engine, caplog, line, asked, changes):
    request = Request("wrong", [5, 6, 7], asked, **changes)
    engine.scheduler.on_new_request(request)
    (record,) = caplog.records
    assert line in record.getMessage() and "\n" not in record.getMessage()
    assert record.getMessage().startswith("wrong: ") and request.cache_salt
    assert request.prompt_embeds is None and not request.skip_reading_prefix_cache
    assert step(engine, request, [3, 4]) == {3} and step(engine, request, [3], cached=1) == set()
    right = Request("right", [5, 6, 7], {"context": "a.txt"})
    engine.scheduler.on_new_request(right)
    assert step(engine, right, list(range(30))) == set()


@pytest.mark.parametrize(
    "line, part, changes",
    [
        ("'store': FOLDER", "kv_transfer_config", {"kv_connector_extra_config": {}}),
        ("'store': FOLDER", "kv_transfer_config", {"kv_connector_extra_config": {"stores": ""}}),
        ("not 'fail'", "kv_transfer_config", {"kv_load_failure_policy": "recompute"}),
        ("2 workers", "parallel_config", {"world_size": 2}),
        ("speculative", None, {"speculative_config": object()}),
    ],
)
def test_an_engine_that_cannot_be_given_slots_does_not_start(module, line, part, changes):
    config = config_of("store", "model")
    vars(config if part is None else getattr(config, part)).update(changes)
    with pytest.raises(ValueError, match=line):
        module.LatentwireConnector(config, Role.WORKER, GROUPS)
    several = SimpleNamespace(kv_cache_groups=GROUPS.kv_cache_groups * 2)
    with pytest.raises(ValueError, match="several kinds"):
        module.LatentwireConnector(config_of("store", "model"), Role.WORKER, several)
