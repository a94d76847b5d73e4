"""A connector that gives vLLM stored contexts in place of their text. It is no part of vLLM:

    latentwire compress notes.md --store papers.store --uniform
    vllm serve "$(latentwire fetch smollm2-135m)" --dtype float32 --kv-transfer-config '{
      "kv_connector": "LatentwireConnector", "kv_connector_module_path": "latentwire.serve.vllm",
      "kv_role": "kv_consumer", "kv_connector_extra_config": {"store": "papers.store"}}'

A request names its context, `kv_transfer_params={"context": "notes.md"}`, and its prompt is what
follows the context. Here, as the request arrives, placeholders are put before the prompt, one for
each slot, and blocks of vLLM's cache are told apart by the context, so that its prefix cache holds
slots like any prompt. The scheduler's side reads slots; the worker's side writes them with the
function that the attention backend writes its own keys and values with, whatever its layout.

A request that cannot be answered exactly fails alone: the engine logs one line that says why.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from vllm.distributed.kv_transfer.kv_connector.v1.base import (  # pyright: ignore
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorRole,
)
from vllm.logger import init_logger  # pyright: ignore
from vllm.model_executor.models.utils import extract_layer_index  # pyright: ignore

from latentwire.lm import FrozenLM
from latentwire.reading import shortened
from latentwire.serve.context import Contexts
from latentwire.serve.slots import Load, SlotReader, Slots
from latentwire.serve.store import Store
from latentwire.wire.wire import Wire

logger = init_logger(f"vllm.{__name__}")
SETTINGS = {"store", "wire"}
ASKED = {"context", "soft_prompt"}


@dataclass
class Loads(KVConnectorMetadata):
    """Slots to be written before a step, and blocks of requests that must fail in it."""

    loads: list[Load] = field(default_factory=list)
    failed: list[int] = field(default_factory=list)


class LatentwireConnector(KVConnectorBase_V1):
    """Stored contexts as the beginning of requests. Extra config: `store`, a folder; `wire`, a name
    or folder ("default" if not given), null for slots of `Wire.of`, which is not trained."""

    def __init__(self, vllm_config: Any, role: KVConnectorRole, kv_cache_config: Any):
        super().__init__(vllm_config, role, kv_cache_config)
        _check_engine(vllm_config, kv_cache_config)
        self._block_size: int = kv_cache_config.kv_cache_groups[0].kv_cache_spec.block_size
        self._most: int = vllm_config.model_config.max_model_len
        self._dtype: torch.dtype = vllm_config.model_config.dtype
        self._failed: set[int] = set()
        self._asked: dict[str, Slots | None] = {}
        self._next = Loads()
        if role == KVConnectorRole.SCHEDULER:
            self._reader = _reader(vllm_config)

    # -- the scheduler's side -----------------------------------------------------------------

    def on_new_request(self, request: Any) -> None:
        """Put the places of a context's slots before the prompt of a request that names one."""
        if not request.kv_transfer_params:
            return
        placeholder = [self._reader.placeholder]
        try:
            slots, following = self._read(request)
            salt = f"latentwire {slots.digest} {request.cache_salt}"
        except Exception as error:  # one that got out of here would end the engine
            logger.error("%s: %s", request.request_id, " ".join(str(error).split()))
            slots, salt = None, request.request_id
            following = request.prompt_token_ids or placeholder
            request.prompt_embeds = request.prompt_is_token_ids = None
            request.mm_features = []
            request.skip_reading_prefix_cache = False  # or nothing would be loaded, and fail
        self._asked[request.request_id] = slots
        ids = placeholder * _count(slots) + list(following)
        request.prompt_token_ids, request.num_prompt_tokens = ids, len(ids)
        request._all_token_ids[:] = ids
        request.cache_salt = salt
        request.block_hashes.clear()
        request.update_block_hashes()

    def _read(self, request: Any) -> tuple[Slots, list[int]]:
        """The slots of a request's context, and the ids behind them. Raises ValueError for a
        request that cannot be answered exactly."""
        asked = request.kv_transfer_params
        if set(asked) - ASKED or "context" not in asked:
            raise ValueError(f"kv_transfer_params are {shortened(asked)}; expected {{'context'}}")
        names = [asked["context"]] if isinstance(asked["context"], str) else asked["context"]
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError(f"context is {shortened(names)}; expected a name, or a list of them")
        if not isinstance(soft_prompt := asked.get("soft_prompt", True), bool):
            raise ValueError(f"soft_prompt is {shortened(soft_prompt)}; expected true or false")
        if request.skip_reading_prefix_cache:
            raise ValueError("prompt_logprobs: a context has no tokens; expected none of them")
        if request.prompt_embeds is not None or request.mm_features or request.lora_request:
            raise ValueError("a context goes before tokens alone; expected no embeddings, no LoRA")
        following = self._reader.following(request.prompt_token_ids)
        room = len(following) + request.max_tokens
        slots = self._reader.read(names, min(room, self._most), soft_prompt)
        self._reader.check_length(len(slots), len(following), self._most)
        return slots, following

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int):
        """Slots that the prefix cache does not hold yet."""
        if request.request_id not in self._asked:
            return 0, False
        return max(0, _count(self._asked[request.request_id]) - num_computed_tokens), False

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        """Have slots written into a request's blocks before the next step."""
        if num_external_tokens == 0:
            return
        (ids,) = blocks.get_block_ids()
        slots = self._asked[request.request_id]
        if slots is None:
            self._next.failed.append(ids[0])
        else:
            self._next.loads.append(Load(slots, len(slots) - num_external_tokens, ids))

    def build_connector_meta(self, scheduler_output: Any) -> Loads:
        """Hand over what is to be written before this step."""
        loads, self._next = self._next, Loads()
        return loads

    def request_finished(self, request: Any, block_ids: list[int]) -> tuple[bool, None]:
        """Forget a request; its blocks may be freed."""
        self._asked.pop(request.request_id, None)
        return False, None

    # -- the worker's side --------------------------------------------------------------------

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        """Write slots into the blocks that they are for."""
        step = self._get_connector_metadata()
        assert isinstance(step, Loads)
        self._failed.update(step.failed)
        if not step.loads:
            return
        layers = _attention_layers(forward_context.no_compile_layers)
        for load in step.loads:
            places = load.places(self._block_size)
            for layer, pair in zip(layers, load.slots.layers, strict=True):
                like = {"device": layer.kv_cache.device, "dtype": self._dtype}
                keys, values = (x[load.start :].to(**like).contiguous() for x in pair)
                at = places.to(layer.kv_cache.device)
                layer.impl.do_kv_cache_update(layer, keys, values, layer.kv_cache, at)

    def get_block_ids_with_load_errors(self) -> set[int]:
        """Name blocks whose requests fail."""
        failed, self._failed = self._failed, set()
        return failed

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Do nothing: slots are written before the pass."""

    def save_kv_layer(self, layer_name: str, kv_layer: Any, attn_metadata: Any, **kwargs: Any):
        """Do nothing: what vLLM computes is not kept."""

    def wait_for_save(self) -> None:
        """Do nothing, since nothing is kept."""


def _count(slots: Slots | None) -> int:
    """Places before a request's prompt; one for a request that fails, so that its load can."""
    return 1 if slots is None else len(slots)


def _attention_layers(layers: Mapping[str, Any]) -> list[Any]:
    """The layers that have keys and values, first to last."""
    named = {n: x for n, x in layers.items() if getattr(x, "kv_cache", None) is not None}
    return [named[name] for name in sorted(named, key=extract_layer_index)]


def _check_engine(config: Any, kv_cache_config: Any) -> None:
    """Raises ValueError for an engine that could not be given slots."""
    transfer, parallel = config.kv_transfer_config, config.parallel_config
    extra = transfer.kv_connector_extra_config
    if set(extra) - SETTINGS or not isinstance(extra.get("store"), str):
        raise ValueError(
            f"kv_connector_extra_config is {shortened(extra)}; expected {{'store': FOLDER}}, and "
            "'wire' for another than default"
        )
    if parallel.world_size != 1:
        raise ValueError(f"{parallel.world_size} workers share the heads or layers; expected one")
    if transfer.kv_load_failure_policy != "fail":
        raise ValueError("kv_load_failure_policy is not 'fail': placeholders would be read as text")
    if config.speculative_config is not None:
        raise ValueError("a draft model has no slots; expected no speculative decoding")
    if len(kv_cache_config.kv_cache_groups) != 1:
        raise ValueError("layers have blocks of several kinds; expected one kind for all")


def _reader(config: Any) -> SlotReader:
    """A reader of slots for an engine's model. Raises what loading its wire raises."""
    extra = config.kv_transfer_config.kv_connector_extra_config
    lm = FrozenLM.from_pretrained(config.model_config.model, config.model_config.dtype)
    name = extra.get("wire", "default")
    wire = Wire.of(lm) if name is None else Wire.from_pretrained(name, lm)
    return SlotReader(Contexts(wire, Store(extra["store"])))
