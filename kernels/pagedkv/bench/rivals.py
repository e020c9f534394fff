"""Attention by others, for comparison: torch SDPA on contiguous KV, flex_attention on pages, FlashInfer.

Each measures one layer, on as many layers as it takes to read more than the L2 cache holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention

from pagedkv.bench.grids import DecodePoint, PrefillPoint
from pagedkv.bench.paged import DTYPE, Paged, paged
from pagedkv.bench.stages import NotApplicableError
from pagedkv.bench.timing import Call, graph_seconds, num_cold

WORKSPACE_BYTES = 256 << 20
FUSED = (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION)


def sdpa_decode_seconds(point: DecodePoint, device: torch.device) -> float:
    """The fastest of the fused kernels; the query heads of a KV head are packed as query length."""
    shape, batch, context = point.shape, len(point.contexts), point.contexts[0]
    if set(point.contexts) != {context}:
        raise NotApplicableError("contiguous KV of uneven lengths would be padded")
    num_layers = num_cold(point.work.num_bytes, device)
    group = shape.num_q_heads // shape.num_kv_heads
    query = torch.randn(batch, shape.num_kv_heads, group, shape.head_dim, dtype=DTYPE, device=device)
    kv = [
        torch.randn(2, batch, context, shape.num_kv_heads, shape.head_dim, dtype=DTYPE, device=device)
        for _ in range(num_layers)
    ]
    layers = [(keys.transpose(1, 2), values.transpose(1, 2)) for keys, values in kv]

    def seconds(backend: SDPBackend) -> float:
        return graph_seconds([partial(_sdpa, backend, query, *layer) for layer in layers])

    return _fastest(seconds, FUSED)


def sdpa_prefill_seconds(point: PrefillPoint, backends: Iterable[SDPBackend], device: torch.device) -> float:
    """The fastest of the backends; KV heads are repeated beforehand, so that every backend takes them."""
    shape, (cached, new) = point.shape, point.chunks[0]
    query = torch.randn(len(point.chunks), shape.num_q_heads, new, shape.head_dim, dtype=DTYPE, device=device)
    keys, values = torch.randn(
        2, len(point.chunks), shape.num_q_heads, cached + new, shape.head_dim, dtype=DTYPE, device=device
    )
    # A fresh prompt has a square mask, which all backends know; a chunk sees the lower right of one.
    mask = {"attn_mask": causal_lower_right(new, cached + new)} if cached else {"is_causal": True}

    def seconds(backend: SDPBackend) -> float:
        return graph_seconds([partial(_sdpa, backend, query, keys, values, **mask)])

    return _fastest(seconds, backends)


def _sdpa(backend: SDPBackend, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, **mask) -> None:
    with sdpa_kernel(backend):
        scaled_dot_product_attention(query, keys, values, **mask)


def _fastest(seconds: Callable[[SDPBackend], float], backends: Iterable[SDPBackend]) -> float:
    """The least time of those that can do it. Raises NotApplicableError where none can."""
    times, errors = [], []
    for backend in backends:
        try:
            times.append(seconds(backend))
        except RuntimeError as error:
            errors.append(f"{backend.name}: {str(error).splitlines()[0]}")
    if not times:
        raise NotApplicableError("; ".join(errors))
    return min(times)


def flex_decode_seconds(point: DecodePoint, device: torch.device) -> float:
    """flex_attention, compiled, on pages of its own layout: all tokens of a head one after another."""
    from torch.nn.attention.flex_attention import flex_attention

    shape, num_layers = point.shape, num_cold(point.work.num_bytes, device)
    chunks = [(context - 1, 1) for context in point.contexts]
    setting = paged(shape, chunks, point.block_size, 1, device)
    mask = flex_mask(setting)
    slots = (1, shape.num_kv_heads, point.num_blocks * point.block_size, shape.head_dim)
    layers = [torch.randn(2, *slots, dtype=DTYPE, device=device) for _ in range(num_layers)]
    query = setting.query.view(len(chunks), shape.num_q_heads, 1, shape.head_dim)
    compiled = torch.compile(flex_attention, fullgraph=True)
    options = {"BLOCK_N": min(point.block_size, 64)}  # a tile lies within a page
    return graph_seconds(
        [
            partial(
                compiled, query, *kv, block_mask=mask, enable_gqa=True, kernel_options=options
            )
            for kv in layers
        ]
    )  # fmt: skip


def flex_mask(setting: Paged):
    """The block tables as a BlockMask of physical pages: whole ones in full, the last by its mask."""
    from torch.nn.attention.flex_attention import BlockMask

    layout, device = setting.layout, setting.pool.device
    num_pages, page = len(setting.pool), layout.block_size
    contexts = [piece.start + piece.num_tokens for piece in setting.pieces]
    full_ids, last_ids = (torch.zeros(len(contexts), 1, 1, num_pages, dtype=torch.int32) for _ in range(2))
    owner, first_token = (torch.zeros(num_pages, dtype=torch.int64) for _ in range(2))
    for i, (piece, context) in enumerate(zip(setting.pieces, contexts, strict=True)):
        table = torch.tensor(piece.block_ids)
        owner[table] = i
        first_token[table] = torch.arange(len(table)) * page
        full_ids[i, 0, 0, : context // page] = table[: context // page]
        last_ids[i, 0, 0, 0] = table[-1]
    lengths = torch.tensor(contexts, device=device)
    owner, first_token = owner.to(device), first_token.to(device)

    def visible(b, h, q, slot):
        token = first_token[slot // page] + slot % page
        return (owner[slot // page] == b) & (token < lengths[b])

    num_full = (lengths // page).to(torch.int32).view(-1, 1, 1)
    num_last = (lengths % page > 0).to(torch.int32).view(-1, 1, 1)
    return BlockMask.from_kv_blocks(
        num_last,
        last_ids.to(device),
        num_full,
        full_ids.to(device),
        BLOCK_SIZE=(128, page),
        mask_mod=visible,
        seq_lengths=(1, num_pages * page),
        compute_q_blocks=False,
    )


def flashinfer_decode_seconds(point: DecodePoint, device: torch.device) -> float:
    """FlashInfer on the same pool; planned once, as we do."""
    import flashinfer

    shape = point.shape
    chunks = [(context - 1, 1) for context in point.contexts]
    setting = paged(shape, chunks, point.block_size, num_cold(point.work.num_bytes, device), device)
    wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(_workspace(device), "NHD", use_tensor_cores=True)
    wrapper.plan(
        *page_tables(setting), shape.num_q_heads, shape.num_kv_heads, shape.head_dim, point.block_size,
        q_data_type=DTYPE, kv_data_type=DTYPE,
    )  # fmt: skip
    return graph_seconds(_flashinfer_calls(wrapper, setting))


def flashinfer_prefill_seconds(point: PrefillPoint, device: torch.device) -> float:
    """FlashInfer on the same pool; planned once, as we do."""
    import flashinfer

    shape = point.shape
    setting = paged(shape, point.chunks, point.block_size, 2, device)
    wrapper = flashinfer.BatchPrefillWithPagedKVCacheWrapper(_workspace(device), "NHD")
    new = torch.tensor([0, *(new for _, new in point.chunks)], dtype=torch.int32, device=device)
    wrapper.plan(
        new.cumsum(0, dtype=torch.int32), *page_tables(setting), shape.num_q_heads, shape.num_kv_heads,
        shape.head_dim, point.block_size, causal=True, q_data_type=DTYPE, kv_data_type=DTYPE,
    )  # fmt: skip
    return graph_seconds(_flashinfer_calls(wrapper, setting))


def _flashinfer_calls(wrapper, setting: Paged) -> list[Call]:
    out = torch.empty_like(setting.query)
    return [
        partial(wrapper.run, setting.query, (setting.pool[:, layer, 0], setting.pool[:, layer, 1]), out=out)
        for layer in range(setting.layout.num_layers)
    ]


def _workspace(device: torch.device) -> torch.Tensor:
    return torch.zeros(WORKSPACE_BYTES, dtype=torch.uint8, device=device)


def page_tables(setting: Paged) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """First page of each sequence, page ids, tokens in each last page, as FlashInfer takes them; int32."""
    page = setting.layout.block_size
    held = torch.tensor([0, *(len(piece.block_ids) for piece in setting.pieces)])
    ids = [block_id for piece in setting.pieces for block_id in piece.block_ids]
    last = [(piece.start + piece.num_tokens - 1) % page + 1 for piece in setting.pieces]
    parts = (held.cumsum(0), torch.tensor(ids), torch.tensor(last))
    first, ids, last = (part.to(torch.int32).to(setting.pool.device) for part in parts)
    return first, ids, last
