"""Launch configurations of attention, one by one, to fill the tables of `pagedkv.launch` from.

A configuration is compiled first; one that spills, or that asks for more shared memory than the device has,
is not timed.
"""

from __future__ import annotations

from functools import partial
from itertools import product
from typing import TYPE_CHECKING

import torch

from pagedkv.bench import paged
from pagedkv.bench.grids import DecodePoint, PrefillPoint, decode_batches
from pagedkv.bench.stages import Measurement, NotApplicableError
from pagedkv.launch import AttentionLaunch

if TYPE_CHECKING:
    from pagedkv.aot import Variant  # needs Triton

SHARED_BYTES = {80: 163 << 10, 90: 227 << 10}
"""Of a program at most (CUDA C++ programming guide, table of compute capabilities)."""
LANES = (0.5, 1.0, 1.5, 2.0)
"""Factors on the work items at once."""


def decode_launches() -> list[AttentionLaunch]:
    """For 4 query heads a KV head, head size 128, 2 bytes."""
    return [
        AttentionLaunch(16, tile, num_warps, num_stages, "sweep")
        for tile, num_warps, num_stages in product((16, 32, 64), (2, 4), (2, 3, 5))
    ]


def prefill_launches() -> list[AttentionLaunch]:
    """For head size 128, 2 bytes."""
    return [
        AttentionLaunch(rows, tile, num_warps, num_stages, "sweep")
        for rows, tile, num_warps, num_stages in product((64, 128), (32, 64), (4, 8), (2, 3, 4))
    ]


def plan_decode() -> list[Measurement]:
    """Two batches, one that fills the device and one that is split; then how finely that one is split."""
    full, split = (DecodePoint(batch, decode_batches()[batch], 16) for batch in ("64 x 4k", "1 x 32k"))
    return [
        Measurement(f"{_name(launch)}: {point.name}", partial(_decode, point, launch), point.work)
        for launch in decode_launches()
        for point in (full, split)
    ] + [
        Measurement(f"lanes x {lanes:g}: {split.name}", partial(_lanes, split, lanes), split.work)
        for lanes in LANES
    ]


def plan_prefill() -> list[Measurement]:
    """One prompt."""
    point = PrefillPoint("1 x 8k", ((0, 8192),))
    return [
        Measurement(f"{_name(launch)}: {point.name}", partial(_prefill, point, launch), point.work)
        for launch in prefill_launches()
    ]


def _name(launch: AttentionLaunch) -> str:
    return f"{launch.rows} x {launch.tile}, {launch.num_warps} warps, {launch.num_stages} stages"


def _decode(point: DecodePoint, launch: AttentionLaunch, device: torch.device) -> float:
    from pagedkv.decode import decode_variant

    prune(decode_variant(launch, point.block_size), arch_of(device))
    return paged.decode_seconds(point, device, launch)


def _lanes(point: DecodePoint, lanes: float, device: torch.device) -> float:
    return paged.decode_seconds(point, device, lanes=lanes)


def _prefill(point: PrefillPoint, launch: AttentionLaunch, device: torch.device) -> float:
    from pagedkv.prefill import prefill_variant

    prune(prefill_variant(launch, point.block_size), arch_of(device))
    return paged.prefill_seconds(point, device, launch)


def arch_of(device: torch.device) -> int:
    """80 for an A100, 90 for an H100 or H200."""
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def prune(variant: Variant, arch: int) -> None:
    """Raises NotApplicableError for a configuration that is not worth its time."""
    from pagedkv.aot import compile_variant

    report = compile_variant(variant, arch)
    if report.spills or report.stack_bytes:
        raise NotApplicableError(f"{report.spills} spills, {report.stack_bytes} bytes of stack")
    limit = SHARED_BYTES.get(arch, min(SHARED_BYTES.values()))
    if report.shared_bytes > limit:
        raise NotApplicableError(f"{report.shared_bytes} bytes of shared memory, the device has {limit}")
