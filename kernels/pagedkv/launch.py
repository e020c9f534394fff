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
"""Decode programs that an SM runs at once, by which work is split.

At 16 rows of head size 128 shared memory has room for 2 on sm_80 and 3 on sm_90. Two have 4 tiles of 32 KB
in flight, where 4.3 TB/s over 132 SMs at about 1 us of latency ask for 33 KB. By arithmetic; not measured.
"""

_DECODE_2_BYTES = "3 stages are the fewest that keep two tiles in flight; 2 programs fit an SM of sm_80"
_DECODE_8_BITS = "3 stages keep two tiles in flight; tiles as for 2 bytes, for SPLIT_TOKENS"
_FLOAT32 = "the largest tile without spills on sm_90, where float32 products take no matrix instructions"

DECODE = {
    (64, 2): AttentionLaunch(16, 64, 4, 3, _DECODE_2_BYTES + ": 37 KB, 80 registers"),
    (128, 2): AttentionLaunch(16, 64, 4, 3, _DECODE_2_BYTES + ": 72 KB, 143 registers"),
    (256, 2): AttentionLaunch(16, 32, 4, 3, _DECODE_2_BYTES + ": 75 KB, 154 registers; a tile of 64: 141 KB"),
    (64, 1): AttentionLaunch(16, 64, 4, 3, _DECODE_8_BITS + ": 20 KB, 122 registers"),
    (128, 1): AttentionLaunch(16, 64, 4, 3, _DECODE_8_BITS + ": 39 KB, 168 registers"),
    (256, 1): AttentionLaunch(16, 32, 4, 3, "a tile of 64 takes 255 registers; 32: 42 KB, 168 registers"),
    (64, 4): AttentionLaunch(16, 32, 4, 2, _FLOAT32 + ": 67 registers"),
    (128, 4): AttentionLaunch(16, 16, 4, 2, _FLOAT32 + ": 72 registers; a tile of 32 spills"),
    (256, 4): AttentionLaunch(16, 16, 4, 2, _FLOAT32 + ": 110 registers"),
}
"""By head size (to the next power of two) and bytes of an element of KV; for 16 rows."""

PREFILL = {
    (64, 2): AttentionLaunch(128, 64, 8, 3, "155 registers on sm_80, where 4 warps spill"),
    (128, 2): AttentionLaunch(128, 64, 8, 3, "212 registers; 4 warps and tiles of 128 x 128 spill on sm_80"),
    (256, 2): AttentionLaunch(64, 32, 8, 2, "185 registers, 98 KB: 2 programs an SM; 128 rows spill"),
    (64, 1): AttentionLaunch(128, 64, 8, 3, "163 registers on sm_80; as for 2 bytes"),
    (128, 1): AttentionLaunch(128, 32, 8, 2, "181 registers on sm_80; a tile of 64 spills, 3 stages: 255"),
    (256, 1): AttentionLaunch(64, 32, 8, 2, "250 registers on sm_80 with all options; as for 2 bytes"),
    (64, 4): AttentionLaunch(32, 16, 4, 2, _FLOAT32 + ": 78 registers; a tile of 32 spills"),
    (128, 4): AttentionLaunch(16, 16, 4, 2, _FLOAT32 + ": 71 registers; 32 rows spill"),
    (256, 4): AttentionLaunch(16, 16, 4, 2, _FLOAT32 + ": 106 registers"),
}
"""By head size (to the next power of two) and bytes of an element of KV."""


def decode_launch(head_dim: int, kv_dtype: torch.dtype, num_rows: int) -> AttentionLaunch:
    """How decode is launched for `num_rows` rows an item.

    More than 16 rows get 8 warps: with 4, 64 rows of head size 256 spill on sm_80. 64 rows of float32 get 16
    from head size 128 on: there 8 spill on sm_90.
    """
    row = DECODE[_padded(head_dim), kv_dtype.itemsize]
    rows = max(MIN_ROWS, _padded(num_rows))
    max_warps = 16 if kv_dtype.itemsize == 4 and head_dim > 64 else 8
    return row._replace(rows=rows, num_warps=min(row.num_warps * rows // MIN_ROWS, max_warps))


def prefill_launch(head_dim: int, kv_dtype: torch.dtype, group: int = 1) -> AttentionLaunch:
    """How prefill is launched; at least one query token of `group` query heads a KV head fits the rows."""
    row = PREFILL[_padded(head_dim), kv_dtype.itemsize]
    return row._replace(rows=max(row.rows, _padded(group)))


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


def sampling_launch(vocab_size: int) -> Launch:
    """Logits that a program of `sample` takes at once.

    An SM has one row or none to do at batch 64, so a row gets as many warps as a program may have. Compiled
    for 128,256 logits by Triton 3.7.1: 4096 by 32 warps 49-56 registers; 4096 by 16, and 8192 by 32, spill.
    Not measured.
    """
    tile = min(4096, _padded(vocab_size))
    return Launch(tile, max(tile // 128, 1), 1, "49-56 registers, where larger tiles spill; not measured")
