"""What the device can do at best, measured in the same run as the kernels that are held against it."""

from __future__ import annotations

from functools import partial

import torch

from pagedkv.bench.stages import Measurement
from pagedkv.bench.targets import COPY, PINNED, TORCH
from pagedkv.bench.timing import graph_seconds, stream_seconds
from pagedkv.roofline import Work

COPY_BYTES = 1 << 30
PINNED_BYTES = 256 << 20
PIECE_BYTES = 2 << 20
"""A block of 16 tokens of Llama-3-8B over all layers, K and V."""
MATRIX = 8192
NUM_SMALL = 100


def plan() -> list[Measurement]:
    """The ceilings."""
    matmul = Work(2 * 2 * MATRIX**2, 2 * MATRIX**2, 2 * MATRIX**3)
    return [
        Measurement(COPY, _copy, Work(COPY_BYTES, COPY_BYTES), TORCH),
        Measurement("device write", _write, Work(0, COPY_BYTES), TORCH),
        *(_pinned(direction, size) for direction in PINNED for size in (PINNED_BYTES, PIECE_BYTES)),
        Measurement("bf16 matmul", _matmul, matmul, TORCH),
        Measurement("graph of one small kernel", partial(_small_kernels, 1), provider=TORCH),
        Measurement("small kernel in a graph", partial(_small_kernels, NUM_SMALL), provider=TORCH),
    ]


def _copy(device: torch.device) -> float:
    source = torch.ones(COPY_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return graph_seconds([lambda: target.copy_(source)])


def _write(device: torch.device) -> float:
    target = torch.empty(COPY_BYTES, dtype=torch.uint8, device=device)
    return graph_seconds([target.zero_])


def _matmul(device: torch.device) -> float:
    left, right = (torch.randn(MATRIX, MATRIX, dtype=torch.bfloat16, device=device) for _ in range(2))
    out = torch.empty_like(left)
    return graph_seconds([lambda: torch.mm(left, right, out=out)])


def _small_kernels(num_kernels: int, device: torch.device) -> float:
    """Kernels that do next to nothing: with one, what a replay costs; with many, what each more costs."""
    number = torch.zeros(1, device=device)
    return graph_seconds([lambda: number.add_(1)] * num_kernels)


def _pinned(direction: str, piece_bytes: int) -> Measurement:
    suffix = "" if piece_bytes == PINNED_BYTES else f", pieces of {piece_bytes >> 20} MB"
    run = partial(_pinned_copy, direction, piece_bytes)
    return Measurement(PINNED[direction] + suffix, run, Work(link_bytes=PINNED_BYTES), TORCH)


def _pinned_copy(direction: str, piece_bytes: int, device: torch.device) -> float:
    """Copies between pinned host memory and the device, launched one a piece."""
    host = torch.zeros(PINNED_BYTES, dtype=torch.uint8, pin_memory=True)
    target, source = torch.zeros(PINNED_BYTES, dtype=torch.uint8, device=device), host
    if direction == "out":
        target, source = source, target
    pairs = list(zip(*(torch.split(x, piece_bytes) for x in (target, source)), strict=True))

    def copy() -> None:
        for to, of in pairs:
            to.copy_(of, non_blocking=True)

    return stream_seconds(copy)
