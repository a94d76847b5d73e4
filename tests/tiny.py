"""Tiny random models of each family, with a byte-level tokenizer: what the fast tests run on."""

import tempfile
from copy import deepcopy
from functools import cache
from pathlib import Path
from string import ascii_lowercase, digits, punctuation
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    ArceeConfig,
    AutoModelForCausalLM,
    BertConfig,
    BertModel,
    BertTokenizer,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    MinistralConfig,
    MistralConfig,
    MixtralConfig,
    Olmo2Config,
    Olmo3Config,
    OlmoConfig,
    OlmoeConfig,
    Phi3Config,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2MoeConfig,
    Qwen3Config,
    Qwen3MoeConfig,
    SeedOssConfig,
    SmolLM3Config,
    Starcoder2Config,
)

from latentwire.lm import FrozenLM

_SIZES: dict[str, Any] = dict(
    vocab_size=260,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=512,
    initializer_range=0.15,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
)
CONFIGS = {
    "llama": LlamaConfig(**_SIZES),
    "qwen2": Qwen2Config(**{k: v for k, v in _SIZES.items() if k != "head_dim"}),
    "qwen3": Qwen3Config(**_SIZES),
    # Windows far shorter than the test texts, and capped logits, so that both are exercised.
    "gemma3": Gemma3TextConfig(
        **_SIZES,
        sliding_window=6,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        final_logit_softcapping=5.0,
        query_pre_attn_scalar=8,
    ),
    "gpt2": GPT2Config(
        vocab_size=260,
        n_embd=32,
        n_layer=3,
        n_head=4,
        n_positions=512,
        initializer_range=0.15,
        bos_token_id=1,
        eos_token_id=2,
        resid_pdrop=0.0,
    ),
}
_SMALL: dict[str, Any] = _SIZES | dict(num_hidden_layers=2)
_HEADLESS: dict[str, Any] = {k: v for k, v in _SMALL.items() if k != "head_dim"}
_ALTERNATING: dict[str, Any] = dict(
    sliding_window=6, layer_types=["sliding_attention", "full_attention"]
)
_EXPERTS: dict[str, Any] = dict(num_experts=3, num_experts_per_tok=2)
SMALL_CONFIGS = {  # of the families that tests/test_families.py alone runs
    "mistral": MistralConfig(**_SMALL, sliding_window=6),
    "mixtral": MixtralConfig(
        **_SMALL, sliding_window=6, num_local_experts=3, num_experts_per_tok=2
    ),
    "qwen3_moe": Qwen3MoeConfig(
        **(_SMALL | _EXPERTS),
        **dict(moe_intermediate_size=16, mlp_only_layers=[1]),
        **dict(use_sliding_window=True, sliding_window=6),
    ),
    "qwen2_moe": Qwen2MoeConfig(
        **(_HEADLESS | _EXPERTS | _ALTERNATING),
        **dict(moe_intermediate_size=16, shared_expert_intermediate_size=16),
        use_sliding_window=True,
    ),
    "olmoe": OlmoeConfig(**(_HEADLESS | _EXPERTS)),
    "gemma": GemmaConfig(**_SMALL),
    "gemma2": Gemma2Config(
        **(_SMALL | _ALTERNATING),
        **dict(attn_logit_softcapping=0.5, final_logit_softcapping=5.0),
        query_pre_attn_scalar=5,
    ),
    "olmo": OlmoConfig(**_HEADLESS, clip_qkv=1.0),
    "olmo2": Olmo2Config(**_HEADLESS),
    "olmo3": Olmo3Config(
        **(_HEADLESS | _ALTERNATING),
        rope_parameters={
            "full_attention": {
                **dict(rope_type="yarn", rope_theta=10_000.0, factor=4.0),
                "original_max_position_embeddings": 128,
            }
        },
    ),
    "ministral": MinistralConfig(**(_SMALL | _ALTERNATING)),
    "seed_oss": SeedOssConfig(**_SMALL),
    "arcee": ArceeConfig(**_SMALL),
    "starcoder2": Starcoder2Config(**_HEADLESS, sliding_window=6),
    "smollm3": SmolLM3Config(
        **_HEADLESS,
        **dict(no_rope_layers=[1, 0], use_sliding_window=True, sliding_window=6),
    ),
    "phi3": Phi3Config(
        **_HEADLESS,
        sliding_window=6,
        rope_parameters=dict(rope_type="default", rope_theta=10000.0, partial_rotary_factor=0.75),
    ),
}


def tokenizer() -> PreTrainedTokenizerFast:
    special = ["<pad>", "<bos>", "<eos>", "<unk>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate(special + alphabet)}
    bytes_only = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>"))
    bytes_only.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bytes_only.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=bytes_only,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
    )


def tiny_lm(family: str, dtype: torch.dtype = torch.float32) -> FrozenLM:
    """A seeded model of one family."""
    torch.manual_seed(0)
    config = deepcopy((CONFIGS | SMALL_CONFIGS)[family])  # saving a model writes its type into it
    model = AutoModelForCausalLM.from_config(config).to(dtype)
    return FrozenLM(model, tokenizer(), f"tiny-{family}")


@cache
def sentence_folder() -> str:
    """A folder with a seeded sentence encoder of 30 positions, whose word pieces are characters."""
    folder = tempfile.mkdtemp(prefix="latentwire-sentences-")
    return write_sentences(Path(folder), seed=0)


def write_sentences(folder: Path, seed: int) -> str:
    """Write a random BERT into a folder; the folder's name."""
    characters = ascii_lowercase + digits + punctuation
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *characters, *(f"##{c}" for c in characters)]
    BertTokenizer({piece: i for i, piece in enumerate(pieces)}).save_pretrained(folder)
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(pieces),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=32,
        initializer_range=0.15,
    )
    BertModel(config).save_pretrained(folder)
    return str(folder)
