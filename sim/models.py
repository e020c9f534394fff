"""The shape of a model from the keys of its transformers configuration, without importing transformers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.core.errors import UserError
from sim.hardware import DataType, ModelShape


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """How the models of one architecture name their sizes, and what holds when they do not."""

    num_layers: str = "num_hidden_layers"
    hidden_size: str = "hidden_size"
    intermediate_size: str = "intermediate_size"
    num_heads: str = "num_attention_heads"
    gated_mlp: bool
    tied_embeddings: bool
    """If the configuration does not say (tie_word_embeddings)."""
    default_intermediate: int | None = None
    """As a multiple of the hidden size; None: must be given."""
    given: tuple[str, ...] = ()
    """Keys with a default in transformers that follows from no other key, so that they must be given."""


FAMILIES: Mapping[str, Family] = {
    "llama": Family(gated_mlp=True, tied_embeddings=False),
    "mistral": Family(gated_mlp=True, tied_embeddings=False, given=("num_key_value_heads",)),
    "qwen2": Family(gated_mlp=True, tied_embeddings=False, given=("num_key_value_heads",)),
    "qwen3": Family(gated_mlp=True, tied_embeddings=False, given=("num_key_value_heads", "head_dim")),
    "opt": Family(gated_mlp=False, tied_embeddings=True, intermediate_size="ffn_dim"),
    "gptneox": Family(gated_mlp=False, tied_embeddings=False),
    "gpt2": Family(
        num_layers="n_layer",
        hidden_size="n_embd",
        intermediate_size="n_inner",
        num_heads="n_head",
        gated_mlp=False,
        tied_embeddings=True,
        default_intermediate=4,
    ),
}
"""By the name of the configuration class without "Config" (LlamaConfig: llama), or model_type."""

SHAPELESS = frozenset({
    "architectures", "attention_bias", "attention_dropout", "attn_pdrop", "bos_token_id", "dtype",
    "embd_pdrop", "eos_token_id", "hidden_act", "initializer_range", "layer_norm_eps",
    "max_position_embeddings", "mlp_bias", "model_type", "n_ctx", "n_positions", "pad_token_id",
    "pretraining_tp", "resid_pdrop", "rms_norm_eps", "rope_parameters", "rope_scaling", "rope_theta",
    "torch_dtype", "transformers_version", "use_cache", "word_embed_proj_dim",
})  # fmt: skip
"""Keys that change neither the number of parameters by a percent nor the work of a step."""


def model_shape(
    name: str | None = None,
    architecture: str | None = None,
    config: Mapping[str, Any] | None = None,
    path: str | None = None,
    dtype: DataType = "bfloat16",
    kv_dtype: DataType | None = None,
) -> ModelShape:
    """The shape of `architecture` (a configuration class of transformers) with `config`, its arguments.

    Or that of the checkpoint directory `path`, from its config.json. The KV cache has the data type of the
    weights if `kv_dtype` is None.

    Raises:
        UserError: the family is not known, a key is missing or unknown, or attention has a window.
    """
    if path is not None:
        config = _config_json(path)
        architecture = str(config.get("model_type"))
    elif architecture is None or config is None:
        raise UserError("model needs either path, or architecture and config")
    family = FAMILIES.get(architecture.removesuffix("Config").replace("_", "").lower())
    if family is None:
        raise UserError(
            f"model.architecture {architecture}: the simulator does not know the sizes of such a "
            f"model; it knows {', '.join(FAMILIES)} (sim/models.py)"
        )
    if path is None:
        _refuse_unknown(config, family)
    return _shape(name or path or architecture, config, family, dtype, kv_dtype or dtype)


def _shape(
    name: str, config: Mapping[str, Any], family: Family, dtype: DataType, kv_dtype: DataType
) -> ModelShape:
    window, length = config.get("sliding_window"), config.get("max_position_embeddings")
    if window is not None and config.get("use_sliding_window", True) and (length is None or window < length):
        raise UserError(
            f"model.config.sliding_window is {window}: simulated attention reads the "
            "whole context; set it to null"
        )
    projected = config.get("word_embed_proj_dim")
    if projected not in (None, config.get(family.hidden_size)):
        raise UserError(f"model.config.word_embed_proj_dim is {projected}: must be the hidden size")
    for key in family.given:
        _get(config, key)
    hidden_size, num_heads = _get(config, family.hidden_size), _get(config, family.num_heads)
    default = None if family.default_intermediate is None else family.default_intermediate * hidden_size
    tied = config.get("tie_word_embeddings")
    return ModelShape(
        name=name,
        num_layers=_get(config, family.num_layers),
        hidden_size=hidden_size,
        intermediate_size=_get(config, family.intermediate_size, default),
        num_heads=num_heads,
        num_kv_heads=_get(config, "num_key_value_heads", num_heads),
        head_dim=_get(config, "head_dim", hidden_size // num_heads),
        vocab_size=_get(config, "vocab_size"),
        gated_mlp=family.gated_mlp,
        tied_embeddings=family.tied_embeddings if tied is None else tied,
        dtype=dtype,
        kv_dtype=kv_dtype,
    )


def _get(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = config.get(key)
    if value is None and default is None:
        raise UserError(f"model.config.{key} is missing: the shape of the model depends on it")
    value = default if value is None else value
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UserError(f"model.config.{key} is {value!r}: must be a whole number, at least 1")
    return value


def _refuse_unknown(config: Mapping[str, Any], family: Family) -> None:
    """A mistyped key would leave the model as it is, in silence."""
    sizes = {family.num_layers, family.hidden_size, family.intermediate_size, family.num_heads}
    known = sizes | {"num_key_value_heads", "head_dim", "vocab_size", "tie_word_embeddings"}
    known |= {"sliding_window", "use_sliding_window"}
    for key in config:
        if key not in known | SHAPELESS:
            raise UserError(f"model.config.{key} is not known: choose {', '.join(sorted(known | SHAPELESS))}")


def _config_json(path: str) -> Mapping[str, Any]:
    file = Path(path) / "config.json"
    if not file.is_file():
        raise UserError(f"{path}: no config.json here; name a transformers checkpoint directory")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file}: not JSON: {error}") from None
    if not isinstance(config, dict):
        raise UserError(f"{file}: not a JSON object")
    return config
