"""Paged attention of few query tokens over a long context (decode), split over the context.

A program takes one work item and one KV head: a range of the context of one sequence (see schedule.py). Its
rows are all that reads this KV: the sequence's 1 to 8 query tokens x the query heads of the KV head,

    row = token * GROUP + head within the group,

so KV is read once, whatever the number of query heads and query tokens. A sequence with a single item is
normalised and written at once. The items of a split sequence leave m, total and acc (tiles.py) as partials,

    out = sum_i acc_i 2^(m_i - M) / sum_i total_i 2^(m_i - M),    M = max m_i,

which `merge_kernel` works out. An item in which a row sees nothing (it lies before the window or chunk, or
behind an early query token) has m = -inf, total = 0 there, and counts as nothing. The first item alone sees
the sink.

KV heads are the fast axis of the grid: the heads of one token are neighbours in memory and are read together.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from pagedkv.aot import Variant
from pagedkv.launch import MIN_ROWS, AttentionLaunch, decode_launch
from pagedkv.layout import KVLayout
from pagedkv.options import AttentionOptions
from pagedkv.schedule import StepPlan
from pagedkv.tiles import (
    LOG2_E,
    TORCH_TYPES,
    attend,
    attention_types,
    check_attention,
    first_seen,
    first_state,
    kv_argument,
    padded_head_dim,
    paged_attention_reference,
    scale_of,
    variant_name,
)

decode_attention_reference = paged_attention_reference

MAX_QUERY_TOKENS = 8
"""Query tokens of a sequence that decode takes at most."""
MAX_ROWS = 64
"""Rows of a program at most: 8 query tokens x 8 query heads a KV head."""
FEW_ROWS_BUDGET = (168, 80 << 10)
"""Registers, bytes of shared memory, for 16 rows: 3 programs an SM by the first, 2 on sm_80 by the second."""
MANY_ROWS_BUDGET = (255, 160 << 10)
"""For more rows: one program an SM of sm_80."""
MERGED_AT_ONCE = 8
"""Partials that a merge loads at once."""


@triton.jit
def decode_kernel(
    out,
    partial_acc,
    partial_stats,
    query,
    kv,
    seqs,
    items,
    block_ids,
    sinks,
    k_scale,
    v_scale,
    score_scale,
    SOFTCAP: tl.constexpr,
    WINDOW: tl.constexpr,
    CHUNK: tl.constexpr,
    GROUP: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HEAD_DIM_PADDED: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_STRIDE: tl.constexpr,
    QUERY_STRIDE: tl.constexpr,
    PARTIAL_ROWS: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One item of one KV head; grid (KV heads, items)."""
    kv_head = tl.program_id(0)
    item = items + tl.program_id(1) * 5
    start = tl.load(item + 1)
    end = tl.load(item + 2)
    if start == end:
        return
    seq = seqs + tl.load(item) * 4
    num_splits = tl.load(item + 3)
    first_row = tl.load(seq)
    num_queries = tl.load(seq + 1)
    context = tl.load(seq + 2)
    table = block_ids + tl.load(seq + 3)

    rows = tl.arange(0, ROWS)
    dims = tl.arange(0, HEAD_DIM_PADDED)
    q_heads = kv_head * GROUP + rows % GROUP
    used = rows < num_queries * GROUP
    used_dims = used[:, None] & (dims < HEAD_DIM)[None, :]
    q_rows = (first_row + rows // GROUP).to(tl.int64)
    q_offsets = q_heads[:, None] * HEAD_DIM + dims[None, :]
    q = tl.load(query + q_rows[:, None] * QUERY_STRIDE + q_offsets, mask=used_dims, other=0.0)
    positions = context - num_queries + rows // GROUP

    # The earliest query sees furthest back; a range before all that it sees has no round left.
    first = first_seen(context - num_queries, WINDOW, CHUNK)
    low = tl.maximum(start, first // TILE * TILE)
    score_scale = score_scale * scale_of(k_scale, kv_head, kv)
    m, total, acc = first_state(sinks, q_heads, start == 0, ROWS, HEAD_DIM_PADDED)
    m, total, acc = attend(
        q, m, total, acc, kv + kv_head * HEAD_DIM, table, low, end, first, end, positions,
        score_scale, SOFTCAP, WINDOW, CHUNK, True, HEAD_DIM, BLOCK_STRIDE, BLOCK_SIZE,
        NUM_KV_HEADS * HEAD_DIM, TILE, PRECISION,
    )  # fmt: skip
    acc *= scale_of(v_scale, kv_head, kv)

    if num_splits == 1:
        out_offsets = q_rows[:, None] * (NUM_KV_HEADS * GROUP * HEAD_DIM) + q_offsets
        tl.store(
            out + out_offsets,
            (acc / tl.where(used, total, 1.0)[:, None]).to(out.dtype.element_ty),
            mask=used_dims,
        )
    else:
        partial = (tl.load(item + 4).to(tl.int64) * NUM_KV_HEADS + kv_head) * PARTIAL_ROWS + rows
        tl.store(partial_stats + partial * 2, m, mask=used)
        tl.store(partial_stats + partial * 2 + 1, total, mask=used)
        # Rows that saw nothing are not written: the merge does not read them.
        written = used_dims & (total > 0.0)[:, None]
        tl.store(partial_acc + partial[:, None] * HEAD_DIM + dims[None, :], acc, mask=written)


@triton.jit
def merge_kernel(
    out,
    partial_acc,
    partial_stats,
    seqs,
    merges,
    GROUP: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HEAD_DIM_PADDED: tl.constexpr,
    PARTIAL_ROWS: tl.constexpr,
    AT_ONCE: tl.constexpr,
):
    """One query token and one query head of a split sequence; grid (query heads, query tokens, merges)."""
    q_head = tl.program_id(0)
    token = tl.program_id(1)
    merge = merges + tl.program_id(2) * 3
    num_partials = tl.load(merge + 2)
    seq = seqs + tl.load(merge) * 4
    if token >= tl.load(seq + 1):
        return
    if num_partials == 0:
        return
    dims = tl.arange(0, HEAD_DIM_PADDED)
    row = token * GROUP + q_head % GROUP
    first_partial = tl.load(merge + 1)

    m = float("-inf")
    total = 0.0
    acc = tl.zeros((HEAD_DIM_PADDED,), tl.float32)
    for first in range(0, num_partials, AT_ONCE):
        which = first + tl.arange(0, AT_ONCE)
        partial = ((first_partial + which).to(tl.int64) * NUM_KV_HEADS + q_head // GROUP) * PARTIAL_ROWS + row
        exists = which < num_partials
        m_i = tl.load(partial_stats + partial * 2, mask=exists, other=float("-inf"))
        total_i = tl.load(partial_stats + partial * 2 + 1, mask=exists, other=0.0)
        read = (total_i > 0.0)[:, None] & (dims < HEAD_DIM)[None, :]
        acc_i = tl.load(partial_acc + partial[:, None] * HEAD_DIM + dims[None, :], mask=read, other=0.0)
        new_m = tl.maximum(m, tl.max(m_i, 0))
        finite_m = tl.where(new_m == float("-inf"), 0.0, new_m)
        decay = tl.exp2(m - finite_m)
        weight = tl.exp2(m_i - finite_m)
        total = total * decay + tl.sum(total_i * weight, 0)
        acc = acc * decay + tl.sum(acc_i * weight[:, None], 0)
        m = new_m
    out_row = (tl.load(seq) + token).to(tl.int64) * (NUM_KV_HEADS * GROUP) + q_head
    tl.store(out + out_row * HEAD_DIM + dims, (acc / total).to(out.dtype.element_ty), mask=dims < HEAD_DIM)


@dataclass(frozen=True, slots=True)
class Partials:
    """Scratch for split sequences, float32."""

    acc: torch.Tensor
    """`(max_items, num_kv_heads, rows, head_dim)`, not normalised."""
    stats: torch.Tensor
    """`(max_items, num_kv_heads, rows, 2)`: m and total."""

    @classmethod
    def allocate(cls, layout: KVLayout, num_q_heads: int, max_items: int, device: torch.device) -> Partials:
        """Room for the items of any plan."""
        group = num_q_heads // layout.num_kv_heads
        shape = (max_items, layout.num_kv_heads, group * max_decode_tokens(group))
        return cls(
            torch.empty((*shape, layout.head_dim), dtype=torch.float32, device=device),
            torch.empty((*shape, 2), dtype=torch.float32, device=device),
        )


def max_decode_tokens(group: int) -> int:
    """Query tokens of a sequence that decode takes, given the query heads of a KV head."""
    return max(1, min(MAX_QUERY_TOKENS, MAX_ROWS // group))


def decode_attention(
    query: torch.Tensor,
    kv: torch.Tensor,
    plan: StepPlan,
    options: AttentionOptions,
    out: torch.Tensor,
    partials: Partials,
    k_scale: torch.Tensor | None = None,
    v_scale: torch.Tensor | None = None,
    launch: AttentionLaunch | None = None,
) -> None:
    """Attention of the plan's work items; writes the rows of decoded sequences and no others.

    Query `(num_tokens, num_q_heads, head_dim)`, rows may be further apart than they are long; `kv` is
    `pool[:, layer]`; out as the query, contiguous. With a pool of float8_e4m3fn, k_scale and v_scale
    `(num_kv_heads,)` float32 are what stored keys and values are to be multiplied by.
    """
    check_attention(query, kv, out, options, k_scale, v_scale)
    num_kv_heads, head_dim = kv.shape[3:]
    group = query.shape[1] // num_kv_heads
    num_rows = plan.max_query_tokens * group
    assert 0 < num_rows <= partials.acc.shape[2], (
        f"{num_rows} rows an item, partials have {partials.acc.shape[2]}"
    )
    assert plan.num_items <= len(partials.acc), f"{plan.num_items} items, {len(partials.acc)} partials"
    launch = launch or decode_launch(head_dim, kv.dtype, num_rows)
    assert plan.tiling.split_tokens % launch.tile == 0, (
        f"items start at multiples of {plan.tiling.split_tokens} tokens, a tile has {launch.tile}"
    )
    shared = {
        "GROUP": group,
        "NUM_KV_HEADS": num_kv_heads,
        "HEAD_DIM": head_dim,
        "HEAD_DIM_PADDED": padded_head_dim(head_dim),
        "PARTIAL_ROWS": partials.acc.shape[2],
    }
    decode_kernel[(num_kv_heads, plan.num_items)](
        out,
        partials.acc,
        partials.stats,
        query,
        kv_argument(kv),
        plan.seqs,
        plan.items,
        plan.block_ids,
        options.sinks,
        k_scale,
        v_scale,
        options.scaling * LOG2_E,
        SOFTCAP=options.softcap,
        WINDOW=options.sliding_window,
        CHUNK=options.chunk_size,
        BLOCK_SIZE=kv.shape[2],
        BLOCK_STRIDE=kv.stride(0),
        QUERY_STRIDE=query.stride(0),
        ROWS=launch.rows,
        TILE=launch.tile,
        PRECISION="ieee",
        num_warps=launch.num_warps,
        num_stages=launch.num_stages,
        **shared,
    )
    if plan.num_merges:
        grid = (query.shape[1], plan.max_query_tokens, plan.num_merges)
        merge_kernel[grid](
            out,
            partials.acc,
            partials.stats,
            plan.seqs,
            plan.merges,
            AT_ONCE=MERGED_AT_ONCE,
            num_warps=2,
            **shared,
        )


def decode_variant(
    launch: AttentionLaunch | None = None,
    block_size: int = 16,
    head_dim: int = 128,
    query_type: str = "bf16",
    kv_type: str = "bf16",
    group: int = 4,
    num_kv_heads: int = 8,
    num_queries: int = 1,
    archs: tuple[int, ...] = (80, 90),
    *,
    all_options: bool = False,
) -> Variant:
    """One configuration for ahead-of-time compilation; the launch of the table if none is given."""
    launch = launch or decode_launch(head_dim, TORCH_TYPES[kv_type], group * num_queries)
    pointers = {
        "out": query_type, "partial_acc": "fp32", "partial_stats": "fp32", "query": query_type, "kv": kv_type,
        "seqs": "i32", "items": "i32", "block_ids": "i32",
    }  # fmt: skip
    signature, constexprs = attention_types(
        pointers, launch, block_size, head_dim, kv_type, group, num_kv_heads, all_options
    )
    return Variant(
        variant_name("decode", launch, block_size, head_dim, kv_type, all_options),
        decode_kernel,
        signature,
        constexprs | {"PARTIAL_ROWS": group * max_decode_tokens(group)},
        launch.num_warps,
        launch.num_stages,
        *(FEW_ROWS_BUDGET if launch.rows == MIN_ROWS else MANY_ROWS_BUDGET),
        archs=archs,
        async_copies=True,
        tensor_cores=query_type != "fp32",
    )


def merge_variant(head_dim: int, dtype: str) -> Variant:
    """The merge for ahead-of-time compilation."""
    return Variant(
        f"merge, head size {head_dim}, {dtype}",
        merge_kernel,
        {
            "out": f"*{dtype}", "partial_acc": "*fp32", "partial_stats": "*fp32",
            "seqs": "*i32", "merges": "*i32",
        },
        {
            "GROUP": 4, "NUM_KV_HEADS": 8, "HEAD_DIM": head_dim, "HEAD_DIM_PADDED": padded_head_dim(head_dim),
            "PARTIAL_ROWS": 4 * max_decode_tokens(4), "AT_ONCE": MERGED_AT_ONCE,
        },
        num_warps=2,
        num_stages=3,
        max_registers=128,
        max_shared_bytes=4 << 10,
    )  # fmt: skip


def variants() -> Iterator[Variant]:
    """Every row of the table, the block sizes, more rows, all options at once, and the merge."""
    yield from (decode_variant(block_size=block_size) for block_size in (16, 32, 64))
    yield from (decode_variant(head_dim=head_dim) for head_dim in (64, 80, 96, 256))
    for num_queries in (8, 16):
        yield from (decode_variant(head_dim=d, num_queries=num_queries) for d in (64, 128, 256))
    yield decode_variant(query_type="fp16", kv_type="fp16", all_options=True)
    for head_dim in (64, 128, 256):
        yield decode_variant(head_dim=head_dim, query_type="fp32", kv_type="fp32")
        yield decode_variant(head_dim=head_dim, kv_type="fp8e4nv", archs=(90,))
    yield decode_variant(kv_type="u8", archs=(80,))
    yield from (merge_variant(head_dim, "bf16") for head_dim in (80, 128, 256))
