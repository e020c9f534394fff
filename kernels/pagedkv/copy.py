"""Whole blocks from pool to pool: copy-on-write within one, swap between device and pinned host memory.

A block is one contiguous piece (pagedkv/layout.py), so its type does not matter: it is moved as 32-bit words,
four of which make a 16-byte load. Program (i, t) of the gather kernel moves tile t of the i-th block:

    target[target_ids[i] * W + w] = source[source_ids[i] * W + w],    w in tile t,  W words a block

One launch moves any number of scattered blocks. The kernel also reads and writes pinned host memory: the
driver maps it into the address space of the device (CUDA driver API, cuPointerGetAttribute, DEVICE_POINTER).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
import triton
import triton.language as tl

from pagedkv.aot import Variant
from pagedkv.contracts import require
from pagedkv.launch import COPY_LAUNCH
from pagedkv.transfers import copy_runs, find_runs

MIN_DMA_BYTES = 128 << 10
"""From this size on a transfer is worth a call of its own.

kernels.md: DMA wins on large blocks (0.5-2 MB), a gather kernel on small ones (32 KB). Between them lies what
PCIe 5 moves (50 GB/s, kernels.md) in the time of one asynchronous copy call, taken as 2.6 us: 130 KB. Not
measured; `python -m pagedkv.bench` times both ways.
"""
WORD_BYTES = 4


@triton.jit
def copy_blocks_kernel(
    source_ptr, target_ptr, ids_ptr, num_pairs, BLOCK_WORDS: tl.constexpr, TILE: tl.constexpr
):
    """Program (i, t) moves tile t of block `ids[0, i]` of the source to block `ids[1, i]` of the target."""
    pair = tl.program_id(0)
    source_id = tl.load(ids_ptr + pair)
    target_id = tl.load(ids_ptr + num_pairs + pair)
    word = tl.program_id(1) * TILE + tl.arange(0, TILE)
    mask = word < BLOCK_WORDS
    words = tl.load(source_ptr + source_id * BLOCK_WORDS + word, mask)
    tl.store(target_ptr + target_id * BLOCK_WORDS + word, words, mask)


def copy_blocks(
    source_pool: torch.Tensor,
    target_pool: torch.Tensor,
    source_ids: Sequence[int],
    target_ids: Sequence[int],
) -> None:
    """Copy block `source_ids[i]` of a pool to block `target_ids[i]` of another or the same, in one launch.

    Pools `(num_blocks, *block_shape)`, contiguous, of one type; a block has a multiple of 16 bytes. A pool in
    host memory is pinned. A source may be copied to several targets. Raises ValueError if pools do not fit
    each other, an id is out of range, a target occurs twice, or, within one pool, is a source as well.
    """
    _check(source_pool, target_pool, source_ids, target_ids)
    if not source_ids:
        return
    device = source_pool.device if source_pool.is_cuda else target_pool.device
    ids = torch.tensor([list(source_ids), list(target_ids)], dtype=torch.int64)
    if device.type == "cuda":
        ids = ids.pin_memory().to(device, non_blocking=True)
    block_words = _block_bytes(source_pool) // WORD_BYTES
    grid = (len(source_ids), triton.cdiv(block_words, COPY_LAUNCH.tile))
    copy_blocks_kernel[grid](
        _words(source_pool),
        _words(target_pool),
        ids,
        len(source_ids),
        BLOCK_WORDS=block_words,
        TILE=COPY_LAUNCH.tile,
        num_warps=COPY_LAUNCH.num_warps,
    )


def swap_blocks(
    source_pool: torch.Tensor,
    target_pool: torch.Tensor,
    source_ids: Sequence[int],
    target_ids: Sequence[int],
) -> None:
    """Copy blocks between the device pool and a pinned host pool, either way, without waiting for the end.

    Arguments as in `copy_blocks`. Neighbours in both pools form runs; runs that are `MIN_DMA_BYTES` long on
    average go one by one to the copy engines, shorter ones together through the gather kernel. Between two
    pools in host memory, each run is a plain copy.
    """
    _check(source_pool, target_pool, source_ids, target_ids)
    if not source_ids:
        return
    num_runs = len(find_runs(source_ids, target_ids))
    on_device = source_pool.is_cuda or target_pool.is_cuda
    if on_device and len(source_ids) * _block_bytes(source_pool) < MIN_DMA_BYTES * num_runs:
        copy_blocks(source_pool, target_pool, source_ids, target_ids)
    else:
        copy_runs(source_pool, target_pool, source_ids, target_ids)


def copy_blocks_reference(
    source_pool: torch.Tensor,
    target_pool: torch.Tensor,
    source_ids: Sequence[int],
    target_ids: Sequence[int],
) -> None:
    """The same in torch, block by block."""
    for source_id, target_id in zip(source_ids, target_ids, strict=True):
        target_pool[target_id].copy_(source_pool[source_id])


def _block_bytes(pool: torch.Tensor) -> int:
    return math.prod(pool.shape[1:]) * pool.dtype.itemsize


def _words(pool: torch.Tensor) -> torch.Tensor:
    return pool.view(pool.shape[0], -1).view(torch.int32)


def _check(
    source_pool: torch.Tensor,
    target_pool: torch.Tensor,
    source_ids: Sequence[int],
    target_ids: Sequence[int],
) -> None:
    source, target = source_pool, target_pool
    require(
        source.shape[1:] == target.shape[1:] and source.dtype == target.dtype,
        f"blocks differ: {tuple(source.shape[1:])} {source.dtype}, {tuple(target.shape[1:])} {target.dtype}",
    )
    block_bytes = _block_bytes(source)
    require(
        block_bytes % 16 == 0 and block_bytes > 0, f"a block has {block_bytes} bytes, not a multiple of 16"
    )
    for name, pool, ids in (("source", source, source_ids), ("target", target, target_ids)):
        require(pool.is_contiguous(), f"the {name} pool is not contiguous: strides {pool.stride()}")
        outside = [i for i in ids if not 0 <= i < pool.shape[0]]
        require(not outside, f"{name} ids {outside[:4]} are not in the pool of {pool.shape[0]} blocks")
    require(
        len(source_ids) == len(target_ids), f"{len(source_ids)} source ids, but {len(target_ids)} target ids"
    )
    require(len(set(target_ids)) == len(target_ids), f"a target occurs twice in {list(target_ids)[:16]}")
    if source.data_ptr() == target.data_ptr():
        both = sorted(set(source_ids) & set(target_ids))
        require(not both, f"blocks {both[:4]} are both source and target within one pool")
    if source.is_cuda != target.is_cuda:
        host = target if source.is_cuda else source
        require(host.is_pinned(), "the pool in host memory is not pinned, so the device cannot read it")


def variants() -> Iterator[Variant]:
    """For ahead-of-time compilation: blocks of Llama-3-8B, and one that is no whole number of tiles."""
    for block_bytes in (2 << 20, 15_360):
        constexprs = {"BLOCK_WORDS": block_bytes // WORD_BYTES, "TILE": COPY_LAUNCH.tile}
        yield Variant(
            f"copy_blocks {block_bytes:,} bytes",
            copy_blocks_kernel,
            {"source_ptr": "*i32", "target_ptr": "*i32", "ids_ptr": "*i64", "num_pairs": "i32"},
            constexprs,
            COPY_LAUNCH.num_warps,
            COPY_LAUNCH.num_stages,
            max_registers=64,
            max_shared_bytes=0,
        )
