"""Models to serve: a transformers checkpoint from a directory, or random weights from a config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig

from engine.core.errors import UserError
from engine.core.fields import Natural
from engine.runtime.attention import AttentionContext, install
from engine.runtime.check import agree
from engine.runtime.checkpoint import in_one_line, read_checkpoint
from engine.runtime.decoder import Decoder
from engine.runtime.linear import PackedLinear, Packing, pack_linears
from engine.runtime.look import AttentionShape, look
from engine.runtime.memory import device_memory
from engine.runtime.reach import UnsupportedModelError, refusing

DataType = Literal["float32", "bfloat16", "float16"]
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


def load(
    name: str | None = None,
    architecture: str | None = None,
    config: Mapping[str, Any] | None = None,
    path: str | None = None,
    seed: Natural = 0,
    dtype: DataType = "float32",
    device: str = "cpu",
    prepack: bool = True,
) -> LoadedModel:
    """A checkpoint directory (`path`), or `architecture` with `config` and random weights: conf/model.

    Raises:
        UserError: as `load_checkpoint` and `load_dummy`; or neither of the two is given.
    """
    if path is not None:
        model = load_checkpoint(path, dtype, device, prepack=prepack)
    elif architecture is not None and config is not None:
        model = load_dummy(architecture, config, seed, dtype, device, prepack=prepack)
    else:
        raise UserError("model needs either path, or architecture and config")
    return model if name is None else replace(model, name=name)


def load_checkpoint(
    path: str | Path, dtype: str = "float32", device: str = "cpu", *, prepack: bool = True
) -> LoadedModel:
    """Load a checkpoint directory: config.json and safetensors, as `save_pretrained` writes them.

    Raises:
        UserError: see `read_checkpoint`; the dtype is not known; there is no such device.
        UnsupportedModelError: see `prepare`.
    """
    check_device(device)
    module = read_checkpoint(Path(path), _dtype(dtype))
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
        UserError: transformers has no such config class, or it does not know these arguments or cannot build
            a model of them; the dtype is not known; there is no such device.
        UnsupportedModelError: see `prepare`.
    """
    check_device(device)
    config_class = getattr(transformers, architecture, None)
    if not (isinstance(config_class, type) and issubclass(config_class, transformers.PreTrainedConfig)):
        raise UserError(f"model.architecture {architecture!r}: transformers has no config class of this name")
    made = _config(config_class, config)
    _check_room(made, _dtype(dtype), device)
    # transformers draws initial weights from the global generator; fork_rng gives it back as it was.
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = _build(made, _dtype(dtype))
    return prepare(module, device, prepack=prepack)


def _config(config_class: type[PreTrainedConfig], arguments: Mapping[str, Any]) -> PreTrainedConfig:
    """A transformers config; it would keep a key that it does not know as an attribute that nobody reads."""
    try:
        config = config_class(**arguments)
    except Exception as error:  # whatever its validators raise, it is about these arguments
        raise UserError(f"model.config: {config_class.__name__}: {in_one_line(error)}") from error
    known = (
        {f.name for f in fields(config_class)} | set(config_class.attribute_map) | set(vars(config_class()))
    )
    for name in sorted(set(arguments) & set(vars(config)) - known):
        near = get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"it knows {', '.join(sorted(known))}"
        raise UserError(f"model.config.{name}: {config_class.__name__} knows no such key; {hint}")
    return config


def _build(config: PreTrainedConfig, dtype: torch.dtype) -> nn.Module:
    try:
        module: nn.Module = AutoModelForCausalLM.from_config(config, dtype=dtype)  # type: ignore[no-untyped-call]
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        raise UserError(
            f"model.config: no model can be built of this {type(config).__name__}: {in_one_line(error)}"
        ) from error
    return module


def _check_room(config: PreTrainedConfig, dtype: torch.dtype, device: str) -> None:
    """Refuse random weights that do not fit the memory that is free, before any is drawn."""
    with torch.device("meta"):
        module = _build(config, dtype)
    needed = sum(weight.nbytes for weight in module.parameters())
    free = device_memory(torch.device(device)).free_bytes
    if needed > free:
        raise UserError(
            f"model: {type(config).__name__} in {dtype} has {needed / 2**30:.1f} GiB of weights, and "
            f"{free / 2**30:.1f} GiB of memory are free on {device}: choose a smaller model, such as "
            "model=tiny_llama, or a smaller model.dtype"
        )


def check_device(device: str) -> None:
    """Refuse a device that is not there, before anything is loaded."""
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, ValueError) as error:  # a torch without CUDA fails an assertion
        reason = in_one_line(error).split(". ")[0][:200]
        raise UserError(
            f"model.device={device}: not usable here ({reason}). Choose model.device=cpu"
        ) from error


def prepare(module: nn.Module, device: str = "cpu", *, prepack: bool = True) -> LoadedModel:
    """Make a transformers decoder servable: on its device, in inference mode, attention routed, compared with
    its own (`engine.runtime.check`), weights prepacked.

    Raises:
        UnsupportedModelError: it computes its attention outside transformers' attention interface, in a way
            that is not known, or with a position encoding that depends on the whole batch; or what the engine
            would compute differs from what the model does.
    """
    config = module.config.get_text_config()  # type: ignore[union-attr, operator]
    max_positions = getattr(config, "max_position_embeddings", None)
    module = module.eval().requires_grad_(False).to(device)
    dtype = next(module.parameters()).dtype
    with refusing(type(module).__name__):
        _check_rope(config, max_positions)
        context = install(module)
        seen = look(module, context)
        context.reaches = seen.reaches
        decoder = agree(module, context, seen)
    packing = Packing(0, None, "not asked for")
    if prepack:
        packing = pack_linears(module)
        with refusing(type(module).__name__):
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
        raise UserError(f"model.dtype {name!r} is not known: choose one of {', '.join(DTYPES)}")
    return DTYPES[name]
