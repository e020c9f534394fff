"""The least that each kernel can do: bytes to move, FLOPs to do, and the time of the slower of the two.

A floor counts every input once and every output once, at the rates of the data sheet. It says how far a
measurement is from the hardware, not what a perfect kernel reaches: a copy on an H200 measures about 4.3 of
its 4.8 TB/s. The model: S. Williams, A. Waterman, D. Patterson, Roofline, CACM 52(4), 2009.

    python -m pagedkv.roofline [--write]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from pagedkv.markdown import table, write_between

README = Path(__file__).parents[1] / "README.md"
MARKER = "roofline"
INDEX_BYTES = 4
"""Of a block id in a table."""
SLOT_BYTES = 8
"""Of a slot, and of a token id."""


class Accelerator(NamedTuple):
    """Rates of a device, from its data sheet."""

    name: str
    bytes_per_s: float
    """Of device memory, reads and writes together."""
    flops_per_s: float
    """Dense bf16 matrix products."""
    link_bytes_per_s: float
    """To the host, one way."""
    source: str


H200 = Accelerator("H200", 4.8e12, 989e12, 64e9, "NVIDIA H200 data sheet, SXM; PCIe 5.0 x16")
H100 = Accelerator("H100", 3.35e12, 989e12, 64e9, "NVIDIA H100 data sheet, SXM; PCIe 5.0 x16")
A100 = Accelerator("A100", 2.039e12, 312e12, 32e9, "NVIDIA A100 data sheet, SXM 80GB; PCIe 4.0 x16")
ACCELERATORS = (H200, H100, A100)


class Shape(NamedTuple):
    """What the floors need to know of a model."""

    num_layers: int = 32
    num_q_heads: int = 32
    num_kv_heads: int = 8
    head_dim: int = 128
    hidden: int = 4096
    intermediate: int = 14336
    vocabulary: int = 128256
    dtype_bytes: int = 2

    @property
    def slot_bytes(self) -> int:
        """K and V of one token in one layer."""
        return 2 * self.num_kv_heads * self.head_dim * self.dtype_bytes

    @property
    def query_bytes(self) -> int:
        """Query, or output, of one token in one layer."""
        return self.num_q_heads * self.head_dim * self.dtype_bytes


LLAMA3_8B = Shape()
"""arXiv:2407.21783, table 3; the vocabulary as released."""


class Work(NamedTuple):
    """What a kernel must do."""

    bytes_read: int = 0
    bytes_written: int = 0
    flops: int = 0
    link_bytes: int = 0
    """Over the link to the host."""

    @property
    def num_bytes(self) -> int:
        """Read and written, of device memory."""
        return self.bytes_read + self.bytes_written


def times(work: Work, accelerator: Accelerator) -> dict[str, float]:
    """Seconds that each resource is busy."""
    return {
        "memory": work.num_bytes / accelerator.bytes_per_s,
        "arithmetic": work.flops / accelerator.flops_per_s,
        "link": work.link_bytes / accelerator.link_bytes_per_s,
    }


def floor_s(work: Work, accelerator: Accelerator) -> float:
    """The time of the resource that is busy longest."""
    return max(times(work, accelerator).values())


def limit(work: Work, accelerator: Accelerator) -> str:
    """The resource that is busy longest."""
    busy = times(work, accelerator)
    return max(busy, key=busy.__getitem__)


def decode_attention(shape: Shape, contexts: Sequence[int], block_size: int = 16) -> Work:
    """One layer, one new token a sequence; `contexts` has the tokens that each attends to.

    K and V of every token are read once, whatever the number of query heads: 4 head_dim FLOPs a score (the
    product with K and the one with V, a multiplication and an addition each).
    """
    num_blocks = sum(-(-context // block_size) for context in contexts)
    return Work(
        bytes_read=sum(contexts) * shape.slot_bytes
        + len(contexts) * shape.query_bytes
        + num_blocks * INDEX_BYTES,
        bytes_written=len(contexts) * shape.query_bytes,
        flops=4 * sum(contexts) * shape.num_q_heads * shape.head_dim,
    )


def prefill_attention(shape: Shape, chunks: Sequence[tuple[int, int]], block_size: int = 16) -> Work:
    """One layer; of each sequence (tokens in the cache before, new tokens), the mask causal.

    Query i of a chunk of n after c cached tokens sees c + i + 1, so the chunk has n c + n (n + 1) / 2 scores.
    """
    num_blocks = sum(-(-(cached + new) // block_size) for cached, new in chunks)
    num_new = sum(new for _, new in chunks)
    scores = sum(new * cached + new * (new + 1) // 2 for cached, new in chunks)
    return Work(
        bytes_read=sum(map(sum, chunks)) * shape.slot_bytes
        + num_new * shape.query_bytes
        + num_blocks * INDEX_BYTES,
        bytes_written=num_new * shape.query_bytes,
        flops=4 * scores * shape.num_q_heads * shape.head_dim,
    )


def kv_store(shape: Shape, num_tokens: int, *, rope: bool = False) -> Work:
    """One layer; with `rope`, queries and keys are rotated on the way, by cosines and sines of their type."""
    kv_bytes = num_tokens * shape.slot_bytes
    read, written, flops = kv_bytes + num_tokens * SLOT_BYTES, kv_bytes, 0
    if rope:
        read += num_tokens * (shape.query_bytes + 2 * shape.head_dim * shape.dtype_bytes)
        written += num_tokens * shape.query_bytes
        flops = 3 * num_tokens * (shape.num_q_heads + shape.num_kv_heads) * shape.head_dim
    return Work(read, written, flops)


def block_bytes(shape: Shape, block_size: int) -> int:
    """Bytes of a block over all layers."""
    return shape.num_layers * block_size * shape.slot_bytes


def block_copy(shape: Shape, num_blocks: int, block_size: int = 16) -> Work:
    """All layers."""
    num_bytes = num_blocks * block_bytes(shape, block_size)
    return Work(num_bytes + 2 * num_blocks * INDEX_BYTES, num_bytes)


def swap(shape: Shape, num_blocks: int, block_size: int = 16) -> Work:
    """All layers, one way."""
    num_bytes = num_blocks * block_bytes(shape, block_size)
    return Work(bytes_read=num_bytes, link_bytes=num_bytes)


def add_rms_norm(shape: Shape, num_tokens: int) -> Work:
    """Reads the layer's output, the residual and the weight; writes the new residual and its norm."""
    num_bytes = num_tokens * shape.hidden * shape.dtype_bytes
    flops = 5 * num_tokens * shape.hidden
    return Work(2 * num_bytes + shape.hidden * shape.dtype_bytes, 2 * num_bytes, flops)


def silu_and_mul(shape: Shape, num_tokens: int) -> Work:
    """Reads gate and up, writes their product; the exponential counts as one FLOP."""
    num_bytes = num_tokens * shape.intermediate * shape.dtype_bytes
    return Work(2 * num_bytes, num_bytes, 5 * num_tokens * shape.intermediate)


def sampling(shape: Shape, batch: int) -> Work:
    """Reads float32 logits once, writes a token id each."""
    return Work(batch * shape.vocabulary * 4, batch * SLOT_BYTES, 2 * batch * shape.vocabulary)


def examples(shape: Shape = LLAMA3_8B) -> dict[str, Work]:
    """The rows of the README's table."""
    return {
        "decode attention, 64 x 4k": decode_attention(shape, [4096] * 64),
        "decode attention, 32 x 2k": decode_attention(shape, [2048] * 32),
        "decode attention, 1 x 32k": decode_attention(shape, [32768]),
        "decode attention, 1 x 1k": decode_attention(shape, [1024]),
        "prefill attention, 8k": prefill_attention(shape, [(0, 8192)]),
        "prefill attention, 2k after 14k": prefill_attention(shape, [(14336, 2048)]),
        "KV store, 8k tokens": kv_store(shape, 8192),
        "KV store with RoPE, 8k tokens": kv_store(shape, 8192, rope=True),
        "block copy, 64 blocks of 16, all layers": block_copy(shape, 64),
        "swap, 64 blocks of 16, all layers": swap(shape, 64),
        "add + RMSNorm, 8k tokens": add_rms_norm(shape, 8192),
        "SiLU and mul, 8k tokens": silu_and_mul(shape, 8192),
        "sampling, 64 sequences": sampling(shape, 64),
    }


def markdown() -> str:
    """Floors of the examples on all accelerators."""
    names = ["kernel", "MB read", "MB written", "GFLOP", *(f"{a.name}, us" for a in ACCELERATORS), "limit"]
    rows = [
        [
            name,
            *(f"{x:,.2f}" for x in (work.bytes_read / 1e6, work.bytes_written / 1e6, work.flops / 1e9)),
            *(f"{floor_s(work, accelerator) * 1e6:,.1f}" for accelerator in ACCELERATORS),
            limit(work, H200),
        ]
        for name, work in examples().items()
    ]
    sources = "; ".join(
        f"{a.name} {a.bytes_per_s / 1e12:g} TB/s, {a.flops_per_s / 1e12:g} TFLOP/s, "
        f"{a.link_bytes_per_s / 1e9:g} GB/s ({a.source})"
        for a in ACCELERATORS
    )
    return f"Rates: {sources}.\n\n{table(names, rows)}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table, and write it into the README where asked to."""
    parser = argparse.ArgumentParser(prog="python -m pagedkv.roofline")
    parser.add_argument("--write", action="store_true", help="write the table into kernels/README.md")
    if parser.parse_args(arguments).write:
        write_between(README, MARKER, markdown())
    print(markdown())
    return 0


if __name__ == "__main__":
    sys.exit(main())
