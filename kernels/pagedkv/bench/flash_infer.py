"""FlashInfer on the same pools as ours, for comparison; it plans once before, as we do."""

from __future__ import annotations

import importlib
from functools import partial
from typing import Any

import torch

from pagedkv.bench.grids import DecodePoint, PrefillPoint
from pagedkv.bench.paged import DTYPE, Paged, paged
from pagedkv.bench.timing import Call, graph_seconds, num_cold

WORKSPACE_BYTES = 256 << 20


def decode_seconds(point: DecodePoint, device: torch.device) -> float:
    """Time of one layer. Raises ImportError where FlashInfer is not installed."""
    flashinfer, shape = importlib.import_module("flashinfer"), point.shape
    chunks = [(context - 1, 1) for context in point.contexts]
    setting = paged(shape, chunks, point.block_size, num_cold(point.work.num_bytes, device), device)
    wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(_workspace(device), "NHD", use_tensor_cores=True)
    sizes = (shape.num_q_heads, shape.num_kv_heads, shape.head_dim, point.block_size)
    wrapper.plan(*page_tables(setting), *sizes, q_data_type=DTYPE, kv_data_type=DTYPE)
    return graph_seconds(_calls(wrapper, setting))


def prefill_seconds(point: PrefillPoint, device: torch.device) -> float:
    """Time of one layer. Raises ImportError where FlashInfer is not installed."""
    flashinfer, shape = importlib.import_module("flashinfer"), point.shape
    setting = paged(shape, point.chunks, point.block_size, 2, device)
    wrapper = flashinfer.BatchPrefillWithPagedKVCacheWrapper(_workspace(device), "NHD")
    ends = torch.tensor([0, *(new for _, new in point.chunks)]).cumsum(0).to(torch.int32).to(device)
    sizes = (shape.num_q_heads, shape.num_kv_heads, shape.head_dim, point.block_size)
    wrapper.plan(ends, *page_tables(setting), *sizes, causal=True, q_data_type=DTYPE, kv_data_type=DTYPE)
    return graph_seconds(_calls(wrapper, setting))


def _calls(wrapper: Any, setting: Paged) -> list[Call]:
    out, pool = torch.empty_like(setting.query), setting.pool
    return [
        partial(wrapper.run, setting.query, (pool[:, layer, 0], pool[:, layer, 1]), out=out)
        for layer in range(setting.layout.num_layers)
    ]


def _workspace(device: torch.device) -> torch.Tensor:
    return torch.zeros(WORKSPACE_BYTES, dtype=torch.uint8, device=device)


def page_tables(setting: Paged) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """First page of each sequence and their number, page ids, tokens in each last page; int32."""
    page, device = setting.layout.block_size, setting.pool.device
    held = torch.tensor([0, *(len(piece.block_ids) for piece in setting.pieces)])
    ids = torch.tensor([block_id for piece in setting.pieces for block_id in piece.block_ids])
    last = torch.tensor([(piece.start + piece.num_tokens - 1) % page + 1 for piece in setting.pieces])
    first, ids, last = (part.to(torch.int32).to(device) for part in (held.cumsum(0), ids, last))
    return first, ids, last
