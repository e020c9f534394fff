"""The bridge from a transformers model to the paged pool: its attention interface, and a probe of what it
asks for.

A model calls one function for the attention of each layer. Ours finds who attends among the keyword
arguments that the model passes through, so nothing global knows about requests.
"""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple, Protocol

import torch
from pagedkv import AttentionOptions
from torch import nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface

from engine.core.errors import UserError

INTERFACE_NAME = "pagetwin"

PASSED_THROUGH = frozenset(
    {
        "position_ids",
        "position_embeddings",
        "cache_position",
        "use_cache",
        "return_dict",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
    }
)
"""Arguments that models hand to every attention function and that say nothing about how to attend."""


class UnsupportedModelError(UserError):
    """The model cannot be served on the paged pool; the message says what stands in the way."""


class AttentionShape(NamedTuple):
    """What a model's attention works on, alike in all layers."""

    num_layers: int
    num_q_heads: int
    num_kv_heads: int
    head_dim: int


class AttendLayer(Protocol):
    """Answers the attention calls of one forward pass."""

    def __call__(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        options: AttentionOptions,
    ) -> torch.Tensor:
        """See `pagedkv.PagedAttention.attend`, for the batch at hand."""
        ...


def install(model: nn.Module) -> None:
    """Route the attention of a model through this module; `probe` tells whether the model follows."""
    AttentionInterface.register(INTERFACE_NAME, paged_attention)
    AttentionMaskInterface.register(INTERFACE_NAME, no_mask)
    model.set_attn_implementation(INTERFACE_NAME)  # type: ignore[operator]


def no_mask(*args: Any, **kwargs: Any) -> None:
    """The mask that the model would build: none, each sequence sees its own block table."""
    return


def paged_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    attend: AttendLayer,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    is_causal: bool | None = None,
    **unknown: Any,
) -> tuple[torch.Tensor, None]:
    """The function that transformers calls; query, key and value are `(1, num_heads, num_tokens, head_dim)`.

    Raises:
        UnsupportedModelError: the layer asks for something that this engine does not compute.
    """
    asked = sorted(name for name, x in unknown.items() if x is not None and name not in PASSED_THROUGH)
    if asked:
        raise UnsupportedModelError(
            f"{type(module).__name__} asks for attention options {asked}, which are not known"
        )
    if attention_mask is not None or is_causal is False or not getattr(module, "is_causal", True):
        raise UnsupportedModelError(f"{type(module).__name__} is not causal attention over its own sequence")
    if dropout:
        raise UnsupportedModelError(
            f"{type(module).__name__} asks for dropout {dropout}: call model.eval() first"
        )
    layer = getattr(module, "layer_idx", None)
    if layer is None:
        raise UnsupportedModelError(f"{type(module).__name__} does not know its layer_idx")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    options = AttentionOptions(scale, sliding_window, softcap=softcap, sinks=s_aux)
    query, key, value = (x[0].transpose(0, 1) for x in (query, key, value))
    out = attend(layer, query, key, value, options)
    return out[None], None


class _Probe:
    """Notes who calls, with which shapes; and computes plain causal attention."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, tuple[torch.Size, ...]]] = []

    def __call__(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        options: AttentionOptions,
    ) -> torch.Tensor:
        self.calls.append((layer, tuple(x.shape[1:] for x in (query, key, value))))
        query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        out = functional.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=options.scaling, enable_gqa=True
        )
        return out.transpose(0, 1)


def probe(model: nn.Module) -> AttentionShape:
    """Run two tokens and report what attention works on; every layer must come by once, all alike.

    Raises:
        UnsupportedModelError: the model computes its attention elsewhere, skips layers, or its layers differ.
    """
    device = next(model.parameters()).device
    attend = _Probe()
    with torch.inference_mode():
        tokens = torch.zeros((1, 2), dtype=torch.long, device=device)
        positions = torch.arange(2, device=device)[None]
        model(input_ids=tokens, position_ids=positions, use_cache=False, **_attend_argument(model, attend))
    name = type(model).__name__
    config = model.config.get_text_config()  # type: ignore[union-attr, operator]
    expected = list(range(config.num_hidden_layers))
    if [layer for layer, _ in attend.calls] != expected:
        raise UnsupportedModelError(
            f"{name} cannot be served: {len(attend.calls)} calls for {len(expected)} layers came through the "
            "attention interface of transformers, not one each. Choose a decoder that follows the interface "
            "(Llama, Qwen, Mistral, Gemma, OPT, GPT-2, ...)"
        )
    shapes = {shape for _, shape in attend.calls}
    query, key, value = next(iter(shapes))
    if len(shapes) != 1 or key != value or query[1] != key[1]:
        found = sorted({tuple(map(tuple, shape)) for shape in shapes})
        raise UnsupportedModelError(
            f"{name} cannot be served: its layers differ, or its Q, K and V do; "
            f"(heads, head_dim) of each: {found}"
        )
    return AttentionShape(len(expected), query[0], *key)


def _attend_argument(model: nn.Module, attend: AttendLayer) -> dict[str, AttendLayer]:
    """The keyword argument, if the model takes any; one that takes none makes no calls."""
    takes_any = any(p.kind is p.VAR_KEYWORD for p in inspect.signature(model.forward).parameters.values())
    return {"attend": attend} if takes_any else {}
