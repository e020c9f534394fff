"""Attention by our kernels, on a pool with random block tables; layer after layer, so that no KV is in L2."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch

from pagedkv.batch import Piece
from pagedkv.bench.grids import DecodePoint, PrefillPoint
from pagedkv.bench.timing import Call, graph_seconds, num_cold
from pagedkv.launch import AttentionLaunch
from pagedkv.layout import KVLayout
from pagedkv.options import AttentionOptions
from pagedkv.roofline import Shape
from pagedkv.schedule import Planner, StepLimits, StepPlan, Tiling

DTYPE = torch.bfloat16
SEED = 0


class Paged(NamedTuple):
    """KV of some sequences in a pool, each block somewhere."""

    layout: KVLayout
    pool: torch.Tensor
    pieces: list[Piece]
    query: torch.Tensor
    """`(num_tokens, num_q_heads, head_dim)`."""
    options: AttentionOptions


def paged(
    shape: Shape, chunks: Sequence[tuple[int, int]], block_size: int, num_layers: int, device: torch.device
) -> Paged:
    """Random KV and queries; of each sequence (tokens cached, new tokens)."""
    layout = KVLayout(num_layers, shape.num_kv_heads, shape.head_dim, block_size)
    held = [layout.num_blocks(cached + new) for cached, new in chunks]
    generator = torch.Generator(device).manual_seed(SEED)
    pool = layout.allocate(sum(held), DTYPE, device).normal_(generator=generator)
    order = torch.randperm(sum(held), generator=torch.Generator().manual_seed(SEED))
    tables = [table.tolist() for table in torch.split(order, held)]
    pieces = [Piece(cached, new, table) for (cached, new), table in zip(chunks, tables, strict=True)]
    num_tokens = sum(new for _, new in chunks)
    query = torch.randn(
        (num_tokens, shape.num_q_heads, shape.head_dim), dtype=DTYPE, device=device, generator=generator
    )
    return Paged(layout, pool, pieces, query, AttentionOptions(scaling=1 / math.sqrt(shape.head_dim)))


def plan_step(setting: Paged, tiling: Tiling) -> tuple[Planner, StepPlan]:
    """The plan of one step of all pieces."""
    pieces = setting.pieces
    limits = StepLimits(
        max_seqs=len(pieces),
        max_tokens=sum(piece.num_tokens for piece in pieces),
        max_context_tokens=max(piece.start + piece.num_tokens for piece in pieces),
    )
    planner = Planner(setting.layout, limits, tiling, setting.pool.device)
    return planner, planner.plan(pieces)


def decode_seconds(
    point: DecodePoint,
    device: torch.device,
    launch: AttentionLaunch | None = None,
    lanes: float = 1.0,
) -> float:
    """Time of decode attention of one layer, by the launch of the table or another.

    `lanes` is a factor on the work items at once that contexts are split for.
    """
    chunks = [(context - 1, 1) for context in point.contexts]
    num_layers = num_cold(point.work.num_bytes, device)
    setting = paged(point.shape, chunks, point.block_size, num_layers, device)
    return graph_seconds(decode_calls(setting, launch, lanes))


def decode_calls(setting: Paged, launch: AttentionLaunch | None = None, lanes: float = 1.0) -> list[Call]:
    """One call a layer."""
    from pagedkv.decode import Partials, decode_attention

    tiling = engine_tiling(setting)
    planner, plan = plan_step(setting, tiling._replace(num_lanes=max(1, round(lanes * tiling.num_lanes))))
    num_q_heads, pool = setting.query.shape[1], setting.pool
    partials = Partials.allocate(setting.layout, num_q_heads, planner.max_items, pool.device)
    fixed = (plan, setting.options, torch.empty_like(setting.query), partials)
    return [
        partial(decode_attention, setting.query, pool[:, layer], *fixed, launch=launch)
        for layer in range(setting.layout.num_layers)
    ]


def prefill_seconds(
    point: PrefillPoint, device: torch.device, launch: AttentionLaunch | None = None
) -> float:
    """Time of prefill attention of one layer, by the launch of the table or another."""
    setting = paged(point.shape, point.chunks, point.block_size, 2, device)
    return graph_seconds(prefill_calls(setting, launch))


def prefill_calls(setting: Paged, launch: AttentionLaunch | None = None) -> list[Call]:
    """One call a layer."""
    from pagedkv.prefill import prefill_attention

    tiling = engine_tiling(setting)
    if launch is not None:
        group = setting.query.shape[1] // setting.layout.num_kv_heads
        tiling = tiling._replace(prefill_tokens=launch.rows // group)
    _, plan = plan_step(setting, tiling)
    fixed = (plan, setting.options, torch.empty_like(setting.query))
    return [
        partial(prefill_attention, setting.query, setting.pool[:, layer], *fixed, launch=launch)
        for layer in range(setting.layout.num_layers)
    ]


def engine_tiling(setting: Paged) -> Tiling:
    """How the engine cuts work of this kind on this device."""
    from pagedkv.triton_attention import tiling_of

    return tiling_of(setting.layout, setting.query.shape[1], setting.pool.dtype, setting.pool.device)
