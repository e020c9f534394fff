"""Paged attention by the Triton kernels, behind the interface of `ReferenceAttention`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from triton import knobs

from pagedkv.batch import Piece
from pagedkv.decode import Partials, decode_attention, max_decode_tokens
from pagedkv.launch import PROGRAMS_PER_SM, SPLIT_TOKENS, prefill_launch
from pagedkv.layout import KVLayout
from pagedkv.options import AttentionOptions
from pagedkv.prefill import prefill_attention
from pagedkv.schedule import Planner, StepLimits, StepPlan, Tiling
from pagedkv.store import store_kv

HEAD_DIMS = (64, 80, 96, 128, 256)
BLOCK_SIZES = (16, 32, 64)
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float8_e4m3fn)
INTERPRETED_LANES = 4
"""Work items at once where there is no device: few, but enough that long contexts are split."""


class TritonAttention:
    """Writes the new KV of a layer to the pool and attends, for one batch after another.

    A caller makes one object a pool, calls `prepare` once a step with the pieces of the step, and `attend`
    once a layer with the tensors of all their tokens, in the order of the pieces; any order will do. A batch
    is good until the next `prepare`, which reuses its arrays on the device. All scratch is allocated here.

    With a pool of float8_e4m3fn, scales `(num_layers, num_kv_heads)` float32 are what stored keys and values
    are to be multiplied by.

    Raises:
        ValueError: the kernels cannot run on this device or for this layout; the message says why.
    """

    def __init__(
        self,
        layout: KVLayout,
        pool: torch.Tensor,
        num_q_heads: int,
        limits: StepLimits,
        k_scales: torch.Tensor | None = None,
        v_scales: torch.Tensor | None = None,
    ) -> None:
        check_support(layout, pool, num_q_heads, k_scales, v_scales)
        self.layout = layout
        self.device = pool.device
        self._pool = pool
        self._scales = (k_scales, v_scales)
        tiling = tiling_of(layout, num_q_heads, pool.dtype, pool.device)
        self._planner = Planner(layout, limits, tiling, pool.device)
        self._partials = Partials.allocate(layout, num_q_heads, self._planner.max_items, pool.device)

    def prepare(self, pieces: Sequence[Piece]) -> StepPlan:
        """Work out a step on the host and send it to the device; its `positions` are `(num_tokens,)` int64.

        Raises ValueError if the step is beyond the limits.
        """
        return self._planner.plan(pieces)

    def attend(
        self,
        batch: StepPlan,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        options: AttentionOptions,
    ) -> torch.Tensor:
        """Attention of one layer over the batch.

        Query `(num_tokens, num_q_heads, head_dim)`, key and value `(num_tokens, num_kv_heads, head_dim)`; the
        result has the shape of the query.
        """
        kv = self._pool[:, layer]
        k_scale, v_scale = (None if scales is None else scales[layer] for scales in self._scales)
        store_kv(key, value, kv, batch.slots, k_scale, v_scale)
        query = query.contiguous()
        out = torch.empty_like(query)
        if batch.num_items:
            decode_attention(query, kv, batch, options, out, self._partials, k_scale, v_scale)
        if batch.num_tiles:
            prefill_attention(query, kv, batch, options, out, k_scale, v_scale)
        return out


def tiling_of(layout: KVLayout, num_q_heads: int, kv_dtype: torch.dtype, device: torch.device) -> Tiling:
    """How work of this kind is cut on this device."""
    group = num_q_heads // layout.num_kv_heads
    return Tiling(
        num_lanes=num_lanes(device, layout.num_kv_heads),
        split_tokens=SPLIT_TOKENS,
        max_decode_tokens=max_decode_tokens(group),
        prefill_tokens=prefill_launch(layout.head_dim, kv_dtype, group).rows // group,
    )


def num_lanes(device: torch.device, num_kv_heads: int) -> int:
    """Work items that the device runs at once, each with one program a KV head."""
    if device.type != "cuda":
        return INTERPRETED_LANES
    num_sms = torch.cuda.get_device_properties(device).multi_processor_count
    return max(1, PROGRAMS_PER_SM * num_sms // num_kv_heads)


def check_support(
    layout: KVLayout,
    pool: torch.Tensor,
    num_q_heads: int,
    k_scales: torch.Tensor | None,
    v_scales: torch.Tensor | None,
) -> None:
    """Raise ValueError, which says why, where the kernels cannot run."""
    on_gpu = pool.device.type == "cuda"
    is_fp8 = pool.dtype == torch.float8_e4m3fn
    scales = [x for x in (k_scales, v_scales) if x is not None]
    scale_shape = (layout.num_layers, layout.num_kv_heads)
    checks = [
        (
            on_gpu or knobs.runtime.interpret,
            f"the pool is on {pool.device}: Triton needs a CUDA device, or TRITON_INTERPRET=1 for tests",
        ),
        (layout.head_dim in HEAD_DIMS, f"head_dim is {layout.head_dim}, the kernels know {HEAD_DIMS}"),
        (
            layout.block_size in BLOCK_SIZES,
            f"block_size is {layout.block_size}, the kernels know {BLOCK_SIZES}",
        ),
        (pool.dtype in DTYPES, f"the pool is {pool.dtype}, the kernels know {DTYPES}"),
        (on_gpu or pool.dtype != torch.bfloat16, "the interpreter multiplies bfloat16 wrongly"),
        (
            num_q_heads % layout.num_kv_heads == 0,
            f"{num_q_heads} query heads cannot share {layout.num_kv_heads} KV heads evenly",
        ),
        (not is_fp8 or len(scales) == 2, f"a pool of {pool.dtype} needs k_scales and v_scales"),
        (is_fp8 or not scales, f"scales are for a pool of float8_e4m3fn, not {pool.dtype}"),
        (
            all(x.shape == scale_shape and x.dtype == torch.float32 for x in scales),
            f"scales must be float32 of {scale_shape}",
        ),
    ]
    for holds, reason in checks:
        if not holds:
            raise ValueError(f"attention=triton cannot run: {reason}")
