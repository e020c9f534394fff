"""Checkpoint directories as `save_pretrained` writes them, and what may be wrong with one."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from engine.core.errors import UserError

logger = logging.getLogger(__name__)

LFS_POINTER = b"version https://git-lfs.github.com/spec"


def read_checkpoint(directory: Path, dtype: torch.dtype) -> nn.Module:
    """The model of a checkpoint directory: config.json and safetensors.

    Raises:
        UserError: a file is missing, cannot be read, or is no more than a part or a pointer; or the weights
            in the files are not those of the model: some are missing, too many, or of another shape.
    """
    if not (directory / "config.json").is_file():
        raise UserError(f"{directory}: no config.json here; name a transformers checkpoint directory")
    for path in _shards(directory):
        check_shard(path)
    tell_ignored(directory / "generation_config.json")
    try:
        config = AutoConfig.from_pretrained(directory, local_files_only=True)
    except Exception as error:  # whatever its validators raise, it is about this file
        raise UserError(f"{directory / 'config.json'}: {in_one_line(error)}") from error
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            directory,
            config=config,
            dtype=dtype,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # told below, by name
        )
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        raise UserError(f"{directory}: transformers cannot load it: {in_one_line(error)}") from error
    module, info = loaded
    _check_keys(directory, module, info)
    return module  # type: ignore[no-any-return]


def _shards(directory: Path) -> list[Path]:
    """The files that hold the weights: those of the index, if there is one."""
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise UserError(f"{index}: no index of shards: {in_one_line(error)}") from error
        absent = [name for name in names if not (directory / name).is_file()]
        if absent:
            raise UserError(f"{directory}: {absent[0]} is missing; the index names {len(names)} shards")
        return [directory / name for name in names]
    shards = sorted(directory.glob("*.safetensors"))
    if not shards:
        raise UserError(
            f"{directory}: a checkpoint directory without weights (no *.safetensors). Put the weights there, "
            "or choose a model with random ones, such as model=tiny_llama"
        )
    return shards


def check_shard(path: Path) -> None:
    """Refuse a file of weights that is empty, a pointer of git-lfs, or shorter than its header says.

    A safetensors file is the length of its header in 8 bytes, the header in JSON, then the tensors, each at
    the offsets that the header gives (github.com/huggingface/safetensors, "Format").
    """
    num_bytes = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(len(LFS_POINTER))
        if start == LFS_POINTER:
            raise UserError(f"{path}: a pointer of git-lfs, not the weights; run `git lfs pull` there")
        file.seek(8)
        header_bytes = int.from_bytes(start[:8], "little")
        header = file.read(header_bytes) if 8 + header_bytes <= num_bytes else b""
    if not num_bytes:
        raise UserError(f"{path}: an empty file; copy or download it again")
    if len(header) < header_bytes or num_bytes < 8:
        raise UserError(f"{path}: {num_bytes} bytes, cut off in its header; copy or download it again")
    try:
        ends = [entry["data_offsets"][1] for name, entry in json.loads(header).items() if name[:2] != "__"]
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise UserError(f"{path}: no safetensors file: {in_one_line(error)}") from error
    needed = 8 + header_bytes + max(ends, default=0)
    if num_bytes < needed:
        raise UserError(f"{path}: {num_bytes} of {needed} bytes, cut off; copy or download it again")


def _check_keys(directory: Path, module: nn.Module, info: dict[str, Any]) -> None:
    """Transformers has already taken out what the model's class says may be missing or left over."""
    name = type(module).__name__
    for weight, found, expected in info["mismatched_keys"]:
        raise UserError(
            f"{directory}: {weight} is {tuple(found)} in the files, and {tuple(expected)} in the {name} of "
            "config.json"
        )
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise UserError(
            f"{directory}: {len(missing)} weights are missing from the checkpoint, such as {missing[0]}"
        )
    if info["unexpected_keys"]:
        unused = sorted(info["unexpected_keys"])
        raise UserError(
            f"{directory}: {len(unused)} weights in the files are not used by {name}, such as {unused[0]}: "
            "config.json describes another model (architectures, num_hidden_layers, biases?)"
        )


def tell_ignored(path: Path) -> None:
    """Say in one line which defaults of a generation_config.json are not used: a workload states its own."""
    if not path.is_file():
        return
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        ignored = ", ".join(f"{key}={value}" for key, value in _sampling_defaults(said))
    except (ValueError, AttributeError) as error:
        raise UserError(f"{path}: {in_one_line(error)}") from error
    if ignored:
        logger.warning(
            "%s: %s: not used, a workload states its own sampling: set workload.shape.temperature, .top_k, "
            ".top_p and .stop_token_ids",
            path,
            ignored,
        )


def _sampling_defaults(said: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The keys that would change tokens; without do_sample, transformers itself looks at two of them only."""
    names = ["eos_token_id", "repetition_penalty"]
    if said.get("do_sample"):
        names = ["do_sample", "temperature", "top_k", "top_p", "min_p", *names]
    yield from ((name, said[name]) for name in names if said.get(name) is not None)


def in_one_line(error: Exception) -> str:
    """An exception of another library, told in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
