"""A tiny model of any decoder that transformers knows: its own configuration, with every size shrunk.

What a configuration says of the architecture stays as it is; sizes become small, limits (windows, chunks)
small enough to be in force on sequences of 40 tokens.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import transformers
from torch import nn
from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

VOCAB_SIZE = 101
NUM_LAYERS = 4
NUM_HEADS = 4
MAX_POSITIONS = 128

SIZES: tuple[tuple[str, int | float | bool], ...] = (
    (r"vocab_size(_per_layer_input)?|.*_vocab_size", VOCAB_SIZE),
    (r"pad_token_id", 0),
    (r"bos_token_id|decoder_start_token_id", 1),
    (r".*_token_(id|index)", 2),
    (r"(num_(hidden_|decoder_|encoder_)?layers|n_layers?|(de|en)coder_layers|max_window_layers)", NUM_LAYERS),
    (r"max_(position_embeddings|seq_len|target_positions)|n_positions|n_ctx|model_max_length", MAX_POSITIONS),
    (r"use_sliding_window|is_decoder", True),
    (r"(sliding_|attention_|local_attention_|keep_)?window(_size|_len)?|sliding_window_size", 8),
    (r"local_attention|floor_scale|log_scaling_n_floor|index_topk", 8),
    (r"attention_chunk_size", 16),
    (r"index_block_size", 4),
    (r"index_topk_blocks", 2),
    (r"attn_scale", 1.0),
    (r"(swa_|global_)?(num_attention_heads|n_heads?|num_heads|attention_heads)", NUM_HEADS),
    (r"(de|en)coder_attention_heads|index_n_heads", NUM_HEADS),
    (r"(swa_|global_|num_global_)?(num_)?(key_value|kv)_heads|num_query_groups|n_kv_heads", 2),
    (r"(swa_|global_)?(head_dim|kv_channels|attention_head_dim|dim_head|v_head_dim|d_head)", 8),
    (r"qk_(nope|rope)_.*dim|rotary_dim|attention_head_size|index_head_dim", 8),
    (r"qk_head_dim", 16),
    (r"(q|kv|o)_lora_rank", 16),
    (r"hidden_size|d_model|n_embd|embed_dim|dim|emb_dim|word_embed_proj_dim|lru_width|embedding_size", 32),
    (r".*(intermediate|ffn|ffw|feed_forward).*(size|dim|hidden)|dff|dim_ff|d_inner", 48),
    (r"(num|n)_(local_|routed_)?experts|moe_num_experts", 4),
    (r"num_experts_per_tok(en)?|moe_topk|moe_k", 2),
    (r"n_group|topk_group|num_expert_group|n_shared_experts|num_shared_experts", 1),
    (r"first_k_dense_replace|num_dense_layers|n_groups", 1),
)
"""Names of sizes, whole, and what they become."""

OPTIONAL = (
    "sliding_window",
    "head_dim",
    "num_key_value_heads",
    "n_routed_experts",
    "n_shared_experts",
    "num_experts_per_tok",
)
"""Sizes that are set where a configuration leaves them open; others stay open."""

ROPE = {"rope_type": "default", "rope_theta": 10_000.0}
BY_HAND: dict[str, dict[str, Any]] = {
    "bamba": {"mamba_n_heads": 8, "mamba_d_head": 8, "attn_layer_indices": [1, 3]},
    "cohere_compass_text": {"rope_parameters": {"full_attention": ROPE, "sliding_attention": ROPE}},
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "granitemoehybrid": {
        "mamba_n_heads": 8,
        "mamba_d_head": 8,
        "layer_types": ["linear_attention", "full_attention"] * (NUM_LAYERS // 2),
    },
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "reformer": {"axial_pos_embds": False},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "lfm2_moe": {"layer_types": ["full_attention"] * NUM_LAYERS},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "minimax_m3_vl_text": {"layer_types": ["full_attention", "minimax_m3_sparse"] * (NUM_LAYERS // 2)},
    "qwen4_exp_text": {
        "indexer_n_heads": 4,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 8,
        "indexer_compress_ratio": 4,
    },
    "xmod": {"default_language": "en_XX"},
    "zamba2": {"layers_block_type": ["linear_attention", "hybrid"] * (NUM_LAYERS // 2)},
    "zaya": {"num_experts_per_tok": 1},
}
"""What a few of them need beyond that, because sizes must fit each other."""


def architectures() -> list[str]:
    """Every model type of which the installed transformers has a causal language model."""
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def tiny_config(model_type: str) -> Any:
    """The configuration of a model type, shrunk, with every kind of layer that it has by default."""
    config_class = CONFIG_MAPPING[model_type]
    default = config_class()
    arguments = _shrunk(default) | BY_HAND.get(model_type, {})
    config = config_class(**arguments)
    kinds = getattr(config, "layer_types", None)
    absent = sorted(set(getattr(default, "layer_types", None) or ()) - set(kinds or ()))
    if kinds and absent and model_type not in BY_HAND:
        config = config_class(**arguments | {"layer_types": [*kinds[: -len(absent)], *absent]})
    return config


def build(config: Any, weight_std: float, seed: int = 0) -> Any:
    """A causal language model in float32, in inference mode, with random weights of this spread."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)  # type: ignore[no-untyped-call]
        for parameter in model.parameters():
            _spread(parameter, weight_std)
    return model.eval()


def _shrunk(config: Any) -> dict[str, Any]:
    """Arguments for the class of a configuration; its parts are shrunk likewise."""
    parts = {
        name: part for name, part in vars(config).items() if isinstance(part, transformers.PreTrainedConfig)
    }
    arguments: dict[str, Any] = {name: type(part)(**_shrunk(part)).to_dict() for name, part in parts.items()}
    arguments |= dict(_sizes(config.to_dict()))
    return arguments


def _sizes(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        size = next((size for pattern, size in SIZES if re.fullmatch(pattern, name)), None)
        is_size = type(value) in (int, float, bool) or (value is None and name in OPTIONAL)
        is_off = value == 0 and type(value) is int and name != "sliding_window"  # 0 experts: none, not few
        if name == "num_key_value_heads" and "kv_lora_rank" in values:
            size = NUM_HEADS  # latent attention: K and V are expanded to every query head
        if size is not None and is_size and not is_off:
            yield name, size


def _spread(parameter: nn.Parameter, std: float) -> None:
    """Random weights, and biases that start as zeros; norms, which start as ones, stay."""
    with torch.no_grad():
        if parameter.ndim == 1 and not parameter.any():
            nn.init.normal_(parameter, std=std)
        elif parameter.ndim >= 2 and float(parameter.std()) > 0:
            parameter.mul_(std / float(parameter.std()))
