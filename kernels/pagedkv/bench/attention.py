"""Which attention is timed, and whose."""

from __future__ import annotations

from functools import partial

from pagedkv.bench import flash_infer, flex, paged, sdpa
from pagedkv.bench.grids import decode_grid, prefill_grid
from pagedkv.bench.stages import Measurement
from pagedkv.bench.targets import CUDNN, FLASHINFER, FLEX, SDPA

FLEX_POINTS = ("64 x 4k", "1 x 32k", "Zipf-64")
"""Compiling takes half a minute a point."""


def plan_decode() -> list[Measurement]:
    """Ours at every point, then contiguous KV, which knows no pages, once a batch."""
    grid = decode_grid()
    ours = [Measurement(p.name, partial(paged.decode_seconds, p), p.work) for p in grid]
    theirs = [
        Measurement(p.name, partial(sdpa.decode_seconds, p), p.work, SDPA)
        for p in grid
        if p.block_size == grid[0].block_size
    ]
    return ours + theirs


def plan_prefill() -> list[Measurement]:
    """Ours, then contiguous KV by cuDNN, which knows square masks only, and by the fastest of all."""
    grid = prefill_grid()
    fresh = [p for p in grid if not any(cached for cached, _ in p.chunks)]
    return [
        *(Measurement(p.name, partial(paged.prefill_seconds, p), p.work) for p in grid),
        *(Measurement(p.name, partial(sdpa.prefill_seconds, p, sdpa.CUDNN), p.work, CUDNN) for p in fresh),
        *(Measurement(p.name, partial(sdpa.prefill_seconds, p, sdpa.FUSED), p.work, SDPA) for p in grid),
    ]


def plan_flashinfer() -> list[Measurement]:
    """FlashInfer at every point."""
    decode = [
        Measurement(p.name, partial(flash_infer.decode_seconds, p), p.work, FLASHINFER) for p in decode_grid()
    ]
    prefill = [
        Measurement(p.name, partial(flash_infer.prefill_seconds, p), p.work, FLASHINFER)
        for p in prefill_grid()
    ]
    return decode + prefill


def plan_flex() -> list[Measurement]:
    """flex_attention at a few points, the large pages first, which suit it."""
    points = [p for p in decode_grid() if p.batch in FLEX_POINTS]
    return [
        Measurement(p.name, partial(flex.decode_seconds, p), p.work, FLEX)
        for p in sorted(points, key=lambda p: -p.block_size)
    ]
