"""How kernels are launched: one small table a kernel, each row with what chose it.

A choice is plain Python on the shapes of a call, never a decorator that measures: the same call is launched
the same way on every run, in the interpreter, and in ahead-of-time compilation.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch


class Launch(NamedTuple):
    """Configuration of one kernel launch."""

    tile: int
    """Elements, tokens or slots that a program takes at once; which, the kernel says."""
    num_warps: int
    num_stages: int
    why: str
    """The measurement or the compiler report that chose this row."""


def store_launch(num_tokens: int) -> Launch:
    """Elements of K, and as many of V, that a program of `store_kv` takes.

    A decode batch must fill the SMs with its few programs: one 16-byte piece of K and one of V a thread. In a
    prefill 2048 threads an SM with 4 such pieces each have 128 KB in flight, where 4.3 TB/s (kernels.md) over
    132 SMs at about 1 us of latency ask for 33 KB. By arithmetic; not measured.
    """
    if num_tokens <= 512:
        return Launch(1024, 4, 1, "16 bytes of K and of V a thread, by arithmetic; not measured")
    return Launch(2048, 4, 1, "32 bytes of K and of V a thread, by arithmetic; not measured")


class AttentionLaunch(NamedTuple):
    """Configuration of an attention kernel."""

    rows: int
    """Query tokens x query heads of a KV head that a program takes at once."""
    tile: int
    """Tokens of KV that it takes at once."""
    num_warps: int
    num_stages: int
    why: str
    """The measurement or the compiler report that chose this row."""


MIN_ROWS = 16
"""Rows of the smallest matrix instruction."""
SPLIT_TOKENS = 64
"""Where decode cuts a context; a multiple of the tiles of all rows below."""
PROGRAMS_PER_SM = 2
"""Decode programs that an SM holds at once."""

DECODE = {
    (64, 2): AttentionLaunch(16, 64, 4, 3, ""),
    (128, 2): AttentionLaunch(16, 64, 4, 3, ""),
    (256, 2): AttentionLaunch(16, 32, 4, 3, ""),
    (64, 1): AttentionLaunch(16, 64, 4, 3, ""),
    (128, 1): AttentionLaunch(16, 64, 4, 3, ""),
    (256, 1): AttentionLaunch(16, 64, 4, 3, ""),
    (64, 4): AttentionLaunch(16, 32, 4, 2, ""),
    (128, 4): AttentionLaunch(16, 32, 4, 2, ""),
    (256, 4): AttentionLaunch(16, 16, 4, 2, ""),
}
PREFILL = {
    (64, 2): AttentionLaunch(128, 64, 4, 3, ""),
    (128, 2): AttentionLaunch(128, 64, 8, 3, ""),
    (256, 2): AttentionLaunch(64, 32, 8, 2, ""),
    (64, 1): AttentionLaunch(128, 64, 4, 3, ""),
    (128, 1): AttentionLaunch(128, 64, 8, 3, ""),
    (256, 1): AttentionLaunch(64, 32, 8, 2, ""),
    (64, 4): AttentionLaunch(32, 32, 4, 2, ""),
    (128, 4): AttentionLaunch(32, 32, 4, 2, ""),
    (256, 4): AttentionLaunch(16, 16, 4, 2, ""),
}


def decode_launch(head_dim: int, kv_dtype: torch.dtype, num_rows: int) -> AttentionLaunch:
    """How decode is launched for `num_rows` rows an item."""
    row = DECODE[_padded(head_dim), kv_dtype.itemsize]
    return row._replace(rows=max(MIN_ROWS, _padded(num_rows)))


def prefill_launch(head_dim: int, kv_dtype: torch.dtype) -> AttentionLaunch:
    """How prefill is launched."""
    return PREFILL[_padded(head_dim), kv_dtype.itemsize]


def _padded(number: int) -> int:
    """The next power of two."""
    return 1 << (number - 1).bit_length()


def rope_launch(num_tokens: int) -> Launch:
    """Elements (of a padded head, times tokens) that a program of `store_kv_rope` takes at once."""
    return Launch(2048, 4, 1, "two 16-byte pieces a thread; 56-72 registers at head size 128, Triton 3.7.1")


def rope_heads(num_tokens: int, num_q_heads: int, num_kv_heads: int) -> int:
    """Heads that a program of `store_kv_rope` takes, one after the other.

    More heads reuse the cosines, whose loads are otherwise as large as those of a head; but a decode batch
    must fill the SMs first: 64 tokens of 32 + 8 heads are 160 programs of 16 tokens and one head.
    By arithmetic; not measured.
    """
    return 1 if num_tokens <= 512 else math.gcd(num_q_heads, num_kv_heads, 4)


COPY_LAUNCH = Launch(4096, 4, 1, "eight 16-byte pieces a thread, 44 registers; not measured")
"""32-bit words that a program of `copy_blocks` takes: 2 MB blocks are 128 programs each, 32 KB ones 2."""

SWIGLU_LAUNCH = Launch(1024, 4, 1, "16 bytes of gate and of up a thread; divides 14336; not measured")
"""Elements that a program of `silu_and_mul` takes."""


def norm_launch(hidden_size: int) -> Launch:
    """Elements of the whole row, padded, that a program of `add_rms_norm` takes; 16 a thread.

    With 16 a thread two 16-byte pieces of x and of the residual are in flight; a row of 4096 has 8 warps.
    """
    tile = _padded(hidden_size)
    num_warps = min(max(tile // 512, 1), 16)
    return Launch(tile, num_warps, 1, "two 16-byte pieces a thread; no spills up to 16384; not measured")
