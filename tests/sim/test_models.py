"""The shapes that the simulator reads out of configurations are those of the models transformers builds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from engine.core.errors import UserError
from sim.models import FAMILIES, model_shape

COMMON: dict[str, Any] = {
    "vocab_size": 4096, "hidden_size": 256, "intermediate_size": 640, "num_hidden_layers": 6,
    "num_attention_heads": 8, "num_key_value_heads": 2, "max_position_embeddings": 128,
}  # fmt: skip
TINY: dict[str, dict[str, Any]] = {
    "LlamaConfig": COMMON,
    "MistralConfig": COMMON | {"sliding_window": None},
    "Qwen2Config": COMMON,
    "Qwen3Config": COMMON | {"head_dim": 64, "tie_word_embeddings": True},
    "OPTConfig": {
        "vocab_size": 4096, "hidden_size": 256, "word_embed_proj_dim": 256, "ffn_dim": 1024,
        "num_hidden_layers": 6, "num_attention_heads": 8, "max_position_embeddings": 32,
    },
    "GPTNeoXConfig": {key: value for key, value in COMMON.items() if key != "num_key_value_heads"},
    "GPT2Config": {"vocab_size": 4096, "n_embd": 256, "n_layer": 6, "n_head": 8, "n_positions": 32},
}  # fmt: skip


def built(architecture: str) -> Any:
    """The model that transformers makes, without memory."""
    config = getattr(transformers, architecture)(**TINY[architecture])
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(config)


def test_every_family_is_compared() -> None:
    assert {name.removesuffix("Config").lower() for name in TINY} == set(FAMILIES)


@pytest.mark.parametrize("architecture", TINY)
def test_number_of_parameters_is_that_of_the_model(architecture: str) -> None:
    shape = model_shape(architecture=architecture, config=TINY[architecture])
    num_parameters = sum(weight.numel() for weight in built(architecture).parameters())
    assert shape.num_parameters == pytest.approx(num_parameters, rel=0.015)  # biases, learned positions


@pytest.mark.parametrize("architecture", TINY)
def test_the_config_json_of_a_checkpoint_gives_the_same_shape(architecture: str, tmp_path: Path) -> None:
    getattr(transformers, architecture)(**TINY[architecture]).save_pretrained(tmp_path)
    named = model_shape("it", architecture=architecture, config=TINY[architecture])
    assert model_shape("it", path=str(tmp_path)) == named


def test_keys_that_the_shape_depends_on_must_be_given() -> None:
    for key in ("hidden_size", "num_hidden_layers", "vocab_size"):
        config = {name: value for name, value in COMMON.items() if name != key}
        with pytest.raises(UserError, match=f"^model.config.{key} is missing"):
            model_shape(architecture="LlamaConfig", config=config)
    with pytest.raises(UserError, match=r"^model.config.head_dim is missing"):
        model_shape(architecture="Qwen3Config", config=COMMON)


@pytest.mark.parametrize(
    ("architecture", "more", "text"),
    [
        ("LlamaConfig", {"hiden_size": 1}, r"model.config.hiden_size is not known: choose architectures, "),
        ("LlamaConfig", {"hidden_size": "x"}, r"model.config.hidden_size is 'x': must be a whole number"),
        ("LlamaConfig", {"num_hidden_layers": 0}, r"model.config.num_hidden_layers is 0: must be"),
        ("LlamaConfig", {"num_key_value_heads": 3}, r"num_heads \(8\) must be a multiple of num_kv_heads"),
        ("MistralConfig", {"sliding_window": 64}, r"model.config.sliding_window is 64: simulated attention"),
        ("MambaConfig", {}, r"model.architecture MambaConfig: the simulator does not know"),
    ],
)
def test_what_cannot_be_simulated_is_named(architecture: str, more: dict[str, Any], text: str) -> None:
    with pytest.raises(UserError, match=text):
        model_shape(architecture=architecture, config=COMMON | more)


def test_checkpoints_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no config.json here"):
        model_shape(path=str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config.json: not JSON"):
        model_shape(path=str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mamba"}))
    with pytest.raises(UserError, match="the simulator does not know the sizes"):
        model_shape(path=str(tmp_path))
    with pytest.raises(UserError, match="either path, or architecture and config"):
        model_shape()
