"""Models to serve: a transformers checkpoint from a directory, or random weights from a config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoModelForCausalLM

from engine.core.errors import UserError
from engine.runtime.attention import AttentionContext, install
from engine.runtime.check import agree
from engine.runtime.decoder import Decoder
from engine.runtime.linear import PackedLinear, Packing, pack_linears
from engine.runtime.look import AttentionShape, look
from engine.runtime.reach import UnsupportedModelError, refusing

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A decoder whose attention goes through the engine, ready for a backend."""

    module: nn.Module
    name: str
    dtype: torch.dtype
    device: torch.device
    vocab_size: int
    max_positions: int | None
    """Positions that the model knows; None: the config sets no limit."""
    attention_shape: AttentionShape
    decoder: Decoder
    """Runs it."""
    packing: Packing

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights; a packed one counts as its number of elements."""
        tensors = {id(t): t.nbytes for t in (*self.module.parameters(), *self.module.buffers())}
        packed = (m for m in self.module.modules() if isinstance(m, PackedLinear))
        return sum(tensors.values()) + sum(m.in_features * m.out_features * m.dtype.itemsize for m in packed)


def load_checkpoint(
    path: str | Path, dtype: str = "float32", device: str = "cpu", *, prepack: bool = True
) -> LoadedModel:
    """Load a checkpoint directory: config.json and safetensors, as `save_pretrained` writes them.

    Raises:
        UserError: there is no such directory, or config or weights are not in it.
        ValueError: weights that the model needs are missing from the files.
    """
    directory = Path(path)
    if not (directory / "config.json").is_file():
        raise UserError(f"{directory}: no config.json here; name a transformers checkpoint directory")
    if not any(directory.glob("*.safetensors")):
        raise UserError(
            f"{directory}: a checkpoint directory without weights (no *.safetensors). Put the weights there, "
            "or choose a model with random ones, such as model=tiny_llama"
        )
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        directory, dtype=_dtype(dtype), local_files_only=True, output_loading_info=True
    )
    module, info = loaded
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise UserError(
            f"{directory}: {len(missing)} weights are missing from the checkpoint, such as {missing[0]}"
        )
    return prepare(module, device, prepack=prepack)


def load_dummy(
    architecture: str,
    config: Mapping[str, Any],
    seed: int = 0,
    dtype: str = "float32",
    device: str = "cpu",
    *,
    prepack: bool = True,
) -> LoadedModel:
    """Random weights: `architecture` is a config class of transformers ("LlamaConfig"), `config` its
    arguments.

    Raises:
        ValueError: transformers has no such config class, or the dtype is not known.
    """
    config_class = getattr(transformers, architecture, None)
    if not (isinstance(config_class, type) and issubclass(config_class, transformers.PreTrainedConfig)):
        raise UserError(f"architecture {architecture!r}: transformers has no config class of this name")
    # transformers draws initial weights from the global generator; fork_rng gives it back as it was.
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            config_class(**config), dtype=_dtype(dtype)
        )
    return prepare(module, device, prepack=prepack)


def prepare(module: nn.Module, device: str = "cpu", *, prepack: bool = True) -> LoadedModel:
    """Make a transformers decoder servable: on its device, in inference mode, attention routed, weights
    prepacked.

    Raises:
        UnsupportedModelError: it computes its attention outside transformers' attention interface, in a way
            that is not known, or with a position encoding that depends on the whole batch.
    """
    config = module.config.get_text_config()  # type: ignore[union-attr, operator]
    max_positions = getattr(config, "max_position_embeddings", None)
    _check_rope(config, max_positions)
    module = module.eval().requires_grad_(False).to(device)
    dtype = next(module.parameters()).dtype
    with refusing(type(module).__name__):
        context = install(module)
        seen = look(module, context)
        context.reaches = seen.reaches
        decoder = agree(module, context)
    packing = Packing(0, None, "not asked for")
    if prepack:
        packing = pack_linears(module)
        _check_packed(module, context)
    return LoadedModel(
        module,
        type(module).__name__,
        dtype,
        torch.device(device),
        config.vocab_size,
        max_positions,
        seen.shape,
        decoder,
        packing,
    )


def _check_packed(module: nn.Module, context: AttentionContext) -> None:
    """Run the model once more: some read the weights of their linear layers, which packing takes away."""
    try:
        look(module, context)
    except AttributeError as error:
        raise UnsupportedModelError(f"{error}; load the model with prepack=False") from error


def _check_rope(config: Any, max_positions: int | None) -> None:
    """Refuse rotary embeddings that change with the longest sequence of the batch: a token's KV must not.

    A flat batch holds unrelated sequences, and KV written under one scale would be read under another.
    """
    parameters = getattr(config, "rope_parameters", None) or {}
    per_layer_type = [p for p in parameters.values() if isinstance(p, dict)] or [parameters]
    for rope in per_layer_type:
        kind = rope.get("rope_type", "default")
        trained = rope.get("original_max_position_embeddings", max_positions)
        if kind == "dynamic" or (kind == "longrope" and trained != max_positions):
            raise UnsupportedModelError(
                f"rope_type {kind!r} scales with the longest sequence of the batch: not served"
            )


def _dtype(name: str) -> torch.dtype:
    if name not in DTYPES:
        raise UserError(f"dtype {name!r} is not known: choose one of {', '.join(DTYPES)}")
    return DTYPES[name]
