"""torch SDPA on contiguous KV, for comparison: what attention costs without pages."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention

from pagedkv.bench.grids import DecodePoint, PrefillPoint
from pagedkv.bench.paged import DTYPE
from pagedkv.bench.stages import NotApplicableError
from pagedkv.bench.timing import Call, graph_seconds, num_cold

FUSED = (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION)
CUDNN = (SDPBackend.CUDNN_ATTENTION,)


def decode_seconds(point: DecodePoint, device: torch.device) -> float:
    """The fastest of the fused kernels; the query heads of a KV head are packed as query length."""
    if len(set(point.contexts)) > 1:
        raise NotApplicableError("contiguous KV of uneven lengths would be padded")
    num_layers = num_cold(point.work.num_bytes, device)
    return fastest(partial(decode_calls, point, num_layers, device), FUSED)


def decode_calls(
    point: DecodePoint, num_layers: int, device: torch.device, backend: SDPBackend
) -> list[Call]:
    """One call a layer."""
    shape, batch, context = point.shape, len(point.contexts), point.contexts[0]
    group = shape.num_q_heads // shape.num_kv_heads
    query = torch.randn(batch, shape.num_kv_heads, group, shape.head_dim, dtype=DTYPE, device=device)
    kv_shape = (2, batch, context, shape.num_kv_heads, shape.head_dim)
    layers = [torch.randn(kv_shape, dtype=DTYPE, device=device).transpose(2, 3) for _ in range(num_layers)]
    return [_call(backend, query, layer[0], layer[1]) for layer in layers]


def prefill_seconds(point: PrefillPoint, backends: Iterable[SDPBackend], device: torch.device) -> float:
    """The fastest of the backends."""
    return fastest(partial(prefill_calls, point, device), backends)


def prefill_calls(point: PrefillPoint, device: torch.device, backend: SDPBackend) -> list[Call]:
    """One call; KV heads are repeated beforehand, so that every backend takes them."""
    if len(set(point.chunks)) > 1:
        raise NotApplicableError("contiguous KV of uneven lengths would be padded")
    shape, (cached, new), batch = point.shape, point.chunks[0], len(point.chunks)
    query = torch.randn(batch, shape.num_q_heads, new, shape.head_dim, dtype=DTYPE, device=device)
    kv_shape = (2, batch, shape.num_q_heads, cached + new, shape.head_dim)
    keys, values = torch.randn(kv_shape, dtype=DTYPE, device=device)
    # A fresh prompt has a square mask, which all backends know; a chunk sees the lower right of one.
    mask = causal_lower_right(new, cached + new) if cached else None
    return [_call(backend, query, keys, values, attn_mask=mask, is_causal=mask is None)]


def _call(
    backend: SDPBackend,
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    is_causal: bool = False,
) -> Call:
    def call() -> None:
        with sdpa_kernel(backend):
            scaled_dot_product_attention(query, keys, values, attn_mask=attn_mask, is_causal=is_causal)

    return call


def fastest(
    calls: Callable[[SDPBackend], list[Call]],
    backends: Iterable[SDPBackend],
    seconds: Callable[[list[Call]], float] = graph_seconds,
) -> float:
    """The least time of those that can do it. Raises NotApplicableError where none can."""
    times, errors = [], []
    for backend in backends:
        try:
            times.append(seconds(calls(backend)))
        except RuntimeError as error:
            errors.append(f"{backend.name}: {str(error).splitlines()[0]}")
    if not times:
        raise NotApplicableError("; ".join(errors))
    return min(times)
