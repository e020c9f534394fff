"""Paged attention of chunks of a prompt (prefill): queries see the cached prefix and their own chunk.

All KV is read from the pool, where that of the chunk has been stored before. A program takes one tile of
query tokens of one sequence (see schedule.py) and one KV head; its rows are tokens x query heads,

    row = token within the tile * GROUP + head within the group.

For query positions p_first to p_last, and f(p) the first position that a query at p sees (it grows with p),
the tokens fall into ranges with and without a mask:

    [f(p_first) ... f(p_last) - 1] ... all rows see all ... [p_first + 1 ... p_last]
    edge of window or chunk: masked    no mask              diagonal: masked

each rounded to tiles towards the masks. Without window and chunks f is 0, and the first range is empty.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl

from pagedkv.aot import Variant
from pagedkv.launch import AttentionLaunch, prefill_launch
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

MAX_REGISTERS = 255
"""Budget: 8 warps of 255 registers fill an SM, which one program of 128 rows is meant to do."""
MAX_SHARED_BYTES = 160 << 10
"""Budget: what a program may have on sm_80."""

prefill_attention_reference = paged_attention_reference


@triton.jit
def prefill_kernel(
    out,
    query,
    kv,
    seqs,
    tiles,
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
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One tile of query tokens and one KV head; grid (KV heads, tiles)."""
    kv_head = tl.program_id(0)
    tile = tiles + tl.program_id(1) * 3
    first = tl.load(tile + 1)
    end = tl.load(tile + 2)
    if first == end:
        return
    seq = seqs + tl.load(tile) * 4
    first_row = tl.load(seq)
    start = tl.load(seq + 2) - tl.load(seq + 1)
    table = block_ids + tl.load(seq + 3)

    rows = tl.arange(0, ROWS)
    dims = tl.arange(0, HEAD_DIM_PADDED)
    tokens = first + rows // GROUP
    used_dims = (tokens < end)[:, None] & (dims < HEAD_DIM)[None, :]
    q_heads = kv_head * GROUP + rows % GROUP
    q_rows = (first_row + tokens).to(tl.int64)
    q_offsets = q_heads[:, None] * HEAD_DIM + dims[None, :]
    q = tl.load(query + q_rows[:, None] * QUERY_STRIDE + q_offsets, mask=used_dims, other=0.0)
    positions = start + tokens

    score_scale = score_scale * scale_of(k_scale, kv_head, kv)
    keys = kv + kv_head * HEAD_DIM
    context = start + end  # of the last query of the tile
    unmasked_low = 0
    unmasked_high = (start + first + 1) // TILE * TILE
    seen = first_seen(start + first, WINDOW, CHUNK)  # by the first query, which sees furthest back
    m, total, acc = first_state(sinks, q_heads, True, ROWS, HEAD_DIM_PADDED)
    if WINDOW is not None or CHUNK is not None:
        low = seen // TILE * TILE
        unmasked_low = tl.cdiv(first_seen(context - 1, WINDOW, CHUNK), TILE) * TILE
        m, total, acc = attend(
            q, m, total, acc, keys, table, low, tl.minimum(unmasked_low, unmasked_high), seen, context,
            positions, score_scale, SOFTCAP, WINDOW, CHUNK, True, HEAD_DIM, BLOCK_STRIDE, BLOCK_SIZE,
            NUM_KV_HEADS * HEAD_DIM, TILE, PRECISION,
        )  # fmt: skip
    m, total, acc = attend(
        q, m, total, acc, keys, table, unmasked_low, unmasked_high, seen, context, positions,
        score_scale, SOFTCAP, WINDOW, CHUNK, False, HEAD_DIM, BLOCK_STRIDE, BLOCK_SIZE,
        NUM_KV_HEADS * HEAD_DIM, TILE, PRECISION,
    )  # fmt: skip
    m, total, acc = attend(
        q, m, total, acc, keys, table, unmasked_high, context, seen, context, positions,
        score_scale, SOFTCAP, WINDOW, CHUNK, True, HEAD_DIM, BLOCK_STRIDE, BLOCK_SIZE,
        NUM_KV_HEADS * HEAD_DIM, TILE, PRECISION,
    )  # fmt: skip
    acc *= scale_of(v_scale, kv_head, kv)
    out_offsets = q_rows[:, None] * (NUM_KV_HEADS * GROUP * HEAD_DIM) + q_offsets
    tl.store(
        out + out_offsets,
        (acc / tl.where(tokens < end, total, 1.0)[:, None]).to(out.dtype.element_ty),
        mask=used_dims,
    )


def prefill_attention(
    query: torch.Tensor,
    kv: torch.Tensor,
    plan: StepPlan,
    options: AttentionOptions,
    out: torch.Tensor,
    k_scale: torch.Tensor | None = None,
    v_scale: torch.Tensor | None = None,
    launch: AttentionLaunch | None = None,
) -> None:
    """Attention of the plan's tiles; writes the rows of the sequences that are not decoded and no others.

    Arguments as for `decode_attention`. The plan's tiles must fit the launch: ROWS // query heads a KV head
    tokens at most.
    """
    check_attention(query, kv, out, options, k_scale, v_scale)
    num_kv_heads, head_dim = kv.shape[3:]
    group = query.shape[1] // num_kv_heads
    launch = launch or prefill_launch(head_dim, kv.dtype, group)
    assert plan.tiling.prefill_tokens * group <= launch.rows, (
        f"tiles of {plan.tiling.prefill_tokens} tokens of {group} heads, the kernel takes {launch.rows} rows"
    )
    prefill_kernel[(num_kv_heads, plan.num_tiles)](
        out,
        query,
        kv_argument(kv),
        plan.seqs,
        plan.tiles,
        plan.block_ids,
        options.sinks,
        k_scale,
        v_scale,
        options.scaling * LOG2_E,
        SOFTCAP=options.softcap,
        WINDOW=options.sliding_window,
        CHUNK=options.chunk_size,
        GROUP=group,
        NUM_KV_HEADS=num_kv_heads,
        HEAD_DIM=head_dim,
        HEAD_DIM_PADDED=padded_head_dim(head_dim),
        BLOCK_SIZE=kv.shape[2],
        BLOCK_STRIDE=kv.stride(0),
        QUERY_STRIDE=query.stride(0),
        ROWS=launch.rows,
        TILE=launch.tile,
        PRECISION="ieee",
        num_warps=launch.num_warps,
        num_stages=launch.num_stages,
    )


def prefill_variant(
    launch: AttentionLaunch | None = None,
    block_size: int = 16,
    head_dim: int = 128,
    query_type: str = "bf16",
    kv_type: str = "bf16",
    group: int = 4,
    num_kv_heads: int = 8,
    archs: tuple[int, ...] = (80, 90),
    *,
    all_options: bool = False,
) -> Variant:
    """One configuration for ahead-of-time compilation; the launch of the table if none is given."""
    launch = launch or prefill_launch(head_dim, TORCH_TYPES[kv_type], group)
    pointers = {
        "out": query_type,
        "query": query_type,
        "kv": kv_type,
        "seqs": "i32",
        "tiles": "i32",
        "block_ids": "i32",
    }
    signature, constexprs = attention_types(
        pointers, launch, block_size, head_dim, kv_type, group, num_kv_heads, all_options
    )
    return Variant(
        variant_name("prefill", launch, block_size, head_dim, kv_type, all_options),
        prefill_kernel,
        signature,
        constexprs,
        launch.num_warps,
        launch.num_stages,
        max_registers=MAX_REGISTERS,
        max_shared_bytes=MAX_SHARED_BYTES,
        archs=archs,
        async_copies=True,
        tensor_cores=query_type != "fp32",
    )


def variants() -> Iterator[Variant]:
    """Every row of the table, the block sizes, and all options at once."""
    yield from (prefill_variant(block_size=block_size) for block_size in (16, 32, 64))
    yield from (prefill_variant(head_dim=head_dim) for head_dim in (64, 80, 96, 256))
    yield prefill_variant(query_type="fp16", kv_type="fp16", all_options=True)
    for head_dim in (64, 128, 256):
        yield prefill_variant(head_dim=head_dim, query_type="fp32", kv_type="fp32")
        yield prefill_variant(head_dim=head_dim, kv_type="fp8e4nv", archs=(90,))
    yield prefill_variant(kv_type="u8", archs=(80,))
