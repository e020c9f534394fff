"""A look at a loaded model: what its attention works on, and what each of its layers sees."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from pagedkv import AttentionOptions
from torch import nn
from torch.nn import functional

from engine.runtime.attention import LOOKING, AttentionContext, implementation
from engine.runtime.decoder import Decoder
from engine.runtime.reach import Reach, UnsupportedModelError


class AttentionShape(NamedTuple):
    """What a model's attention works on, alike in all layers."""

    num_layers: int
    num_q_heads: int
    num_kv_heads: int
    head_dim: int


@dataclass(frozen=True, slots=True)
class Look:
    """What a look at a model has shown."""

    shape: AttentionShape
    options: tuple[AttentionOptions, ...]
    """Of each layer."""

    @property
    def reaches(self) -> dict[int, Reach]:
        """What each layer sees."""
        return {i: Reach(o.sliding_window, o.chunk_size) for i, o in enumerate(self.options)}


class _Looker:
    """Notes who calls, with which shapes and options; computes plain causal attention."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, tuple[torch.Size, ...], AttentionOptions]] = []

    def __call__(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        options: AttentionOptions,
    ) -> torch.Tensor:
        self.calls.append((layer, tuple(x.shape[1:] for x in (query, key, value)), options))
        query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        out = functional.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=options.scaling, enable_gqa=True
        )
        return out.transpose(0, 1).contiguous()  # as the paged path hands it back


def look(module: nn.Module, context: AttentionContext, num_tokens: int = 2) -> Look:
    """Run some tokens; every layer must come by once, in order, all alike.

    Raises:
        UnsupportedModelError: the model computes its attention elsewhere, skips layers, its layers differ, or
            a layer sees what the pool cannot show it.
    """
    looker = _Looker()
    learned, context.reaches = context.reaches, {}
    positions = torch.arange(num_tokens, device=next(module.parameters()).device)
    try:
        with torch.inference_mode(), implementation(module, LOOKING):
            Decoder(module, context).logits([0] * num_tokens, positions, [0], looker)
    finally:
        context.reaches = learned
    config: Any = module.config.get_text_config()  # type: ignore[union-attr, operator]
    expected = list(range(config.num_hidden_layers))
    if [layer for layer, _, _ in looker.calls] != expected:
        raise UnsupportedModelError(
            f"{len(looker.calls)} calls for {len(expected)} layers came through the attention interface of "
            "transformers, not one each in order. Choose a decoder that follows the interface "
            "(Llama, Qwen, Mistral, Gemma, OPT, GPT-2, ...)"
        )
    shapes = {shape for _, shape, _ in looker.calls}
    query, key, value = next(iter(shapes))
    found = sorted({tuple(map(tuple, shape)) for shape in shapes})
    if len(shapes) != 1:
        raise UnsupportedModelError(f"its layers differ; (heads, head_dim) of Q, K and V: {found}")
    if key != value or query[1] != key[1]:
        raise UnsupportedModelError(
            f"Q, K and V of one layer differ, as in latent attention; (heads, head_dim) of each: {found[0]}"
        )
    shape = AttentionShape(len(expected), query[0], *key)
    return Look(shape, tuple(options for _, _, options in looker.calls))
