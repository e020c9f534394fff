"""The bridge from a transformers model to the paged pool: its attention interface.

A model calls one function for the attention of each layer. Ours finds who attends in a context that belongs
to the model and hangs on each of its modules: not in the keyword arguments, because some models hand none
down.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from pagedkv import AttentionOptions
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface

from engine.runtime.reach import Reach, UnsupportedModelError, describing_mask, reach_of

SERVING = "pagetwin"
"""Attention on the pool; no mask is built, each sequence sees its own block table."""
LOOKING = "pagetwin_looking"
"""The same attention function, with the masks that the model asks for, to learn what they hide."""

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
        "logits_to_keep",
        "sliding_window",  # the mask says it, for transformers' own attention too
    }
)
"""Arguments that models hand to the attention function and that say nothing about how to attend."""


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


class AttentionContext:
    """Who answers the attention calls of one model, and what its layers see; set before a forward pass."""

    def __init__(self) -> None:
        self.reaches: dict[int, Reach] = {}
        """Of each layer, learned when the model was loaded; empty while it is being looked at."""
        self._of_thread = threading.local()  # two backends may run one model, each on a thread of its own

    @contextmanager
    def attending(self, attend: AttendLayer) -> Iterator[None]:
        """Let `attend` answer the calls of this thread."""
        self._of_thread.attend = attend
        try:
            yield
        finally:
            del self._of_thread.attend

    @property
    def attend(self) -> AttendLayer:
        """Who answers on this thread."""
        attend: AttendLayer = self._of_thread.attend
        return attend


def install(model: nn.Module) -> AttentionContext:
    """Route the attention of a model through this module; `look` tells whether the model follows."""
    AttentionInterface.register(SERVING, paged_attention)
    AttentionMaskInterface.register(SERVING, no_mask)
    AttentionInterface.register(LOOKING, paged_attention)
    AttentionMaskInterface.register(LOOKING, describing_mask)
    context = AttentionContext()
    for module in model.modules():
        module.attention_context = context  # type: ignore[assignment]
    model.set_attn_implementation(SERVING)  # type: ignore[operator]
    return context


@contextmanager
def implementation(model: Any, name: str) -> Iterator[None]:
    """Let a model attend in another way for a while."""
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        model.set_attn_implementation(SERVING)


def no_mask(*args: Any, **kwargs: Any) -> None:
    """The mask that the model would build: none."""
    return


def paged_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    is_causal: bool | None = None,
    **unknown: Any,
) -> tuple[torch.Tensor, None]:
    """The function that transformers calls; query, key and value are `(1, num_heads, num_tokens, head_dim)`.

    Raises:
        UnsupportedModelError: the layer asks for something that this engine does not compute.
    """
    name = type(module).__name__
    asked = sorted(name for name, x in unknown.items() if x is not None and name not in PASSED_THROUGH)
    if asked:
        raise UnsupportedModelError(f"{name} asks for attention options {asked}, which are not known")
    if is_causal is False or not getattr(module, "is_causal", True):
        raise UnsupportedModelError(f"{name} is not causal attention over its own sequence")
    if dropout:
        raise UnsupportedModelError(f"{name} asks for dropout {dropout}: call model.eval() first")
    layer = getattr(module, "layer_idx", None)
    if layer is None:
        raise UnsupportedModelError(f"{name} does not know its layer_idx")
    context = module.attention_context
    assert isinstance(context, AttentionContext)
    if context.reaches:
        if attention_mask is not None:  # none was built, see `no_mask`
            raise UnsupportedModelError(f"{name} attends with a mask that the model makes of its own")
        reach = context.reaches[layer]
    else:
        reach = reach_of(attention_mask)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    options = AttentionOptions(scale, reach.window, softcap=softcap, sinks=s_aux, chunk_size=reach.chunk)
    query, key, value = (x[0].transpose(0, 1) for x in (query, key, value))
    out = context.attend(layer, query, key, value, options)
    return out[None], None
