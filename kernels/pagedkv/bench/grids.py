"""What is timed: shapes of Llama-3-8B, each with the work it must do; the names are those of the targets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pagedkv import roofline
from pagedkv.roofline import LLAMA3_8B, Shape, Work

BLOCK_SIZES = (16, 64)
NUM_SEQS = 64
ZIPF_EXPONENT = 1.0


@dataclass(frozen=True, slots=True)
class DecodePoint:
    """Decode attention of one layer, one new token a sequence."""

    batch: str
    contexts: tuple[int, ...]
    block_size: int
    shape: Shape = LLAMA3_8B

    @property
    def name(self) -> str:
        """Name of the case."""
        return f"decode {self.batch}, pages of {self.block_size}"

    @property
    def work(self) -> Work:
        """What one layer must do."""
        return roofline.decode_attention(self.shape, self.contexts, self.block_size)

    @property
    def num_blocks(self) -> int:
        """Blocks that the sequences hold together."""
        return sum(-(-context // self.block_size) for context in self.contexts)


@dataclass(frozen=True, slots=True)
class PrefillPoint:
    """Prefill attention of one layer: of each sequence (tokens cached, new tokens)."""

    batch: str
    chunks: tuple[tuple[int, int], ...]
    block_size: int = 16
    shape: Shape = LLAMA3_8B

    @property
    def name(self) -> str:
        """Name of the case."""
        return f"prefill {self.batch}"

    @property
    def work(self) -> Work:
        """What one layer must do."""
        return roofline.prefill_attention(self.shape, self.chunks, self.block_size)

    @property
    def num_blocks(self) -> int:
        """Blocks that the sequences hold together."""
        return sum(-(-(cached + new) // self.block_size) for cached, new in self.chunks)


def zipf_contexts(num_seqs: int, total_tokens: int) -> tuple[int, ...]:
    """Context lengths in proportion to 1 / rank, rounded, that add up to about `total_tokens`."""
    weights = [rank**-ZIPF_EXPONENT for rank in range(1, num_seqs + 1)]
    return tuple(max(1, round(total_tokens * weight / sum(weights))) for weight in weights)


def decode_batches() -> dict[str, tuple[int, ...]]:
    """The batches of the targets; Zipf has the tokens of 64 x 4k, spread unevenly."""
    return {
        "64 x 4k": (4096,) * NUM_SEQS,
        "32 x 2k": (2048,) * 32,
        "1 x 32k": (32768,),
        "1 x 1k": (1024,),
        "Zipf-64": zipf_contexts(NUM_SEQS, NUM_SEQS * 4096),
    }


def decode_grid() -> list[DecodePoint]:
    """Every batch, with pages of each size."""
    return [
        DecodePoint(batch, contexts, block_size)
        for batch, contexts in decode_batches().items()
        for block_size in BLOCK_SIZES
    ]


def prefill_grid() -> list[PrefillPoint]:
    """Fresh prompts, a batch of prompts, and chunks that continue one."""
    return [
        PrefillPoint("1 x 2k", ((0, 2048),)),
        PrefillPoint("1 x 8k", ((0, 8192),)),
        PrefillPoint("4 x 2k", ((0, 2048),) * 4),
        PrefillPoint("2k after 6k", ((6144, 2048),)),
        PrefillPoint("512 after 15.5k", ((15872, 512),)),
    ]


TOKENS = (64, 8192)
"""Tokens of a batch of decodes, and of a large prefill."""


def memory_grid(shape: Shape = LLAMA3_8B) -> Iterator[tuple[str, int, Work]]:
    """The kernels that are all bandwidth: name of the case, tokens or sequences, work."""
    for num_tokens in TOKENS:
        suffix = f"{num_tokens} tokens"
        yield f"KV store, {suffix}", num_tokens, roofline.kv_store(shape, num_tokens)
        yield f"KV store with RoPE, {suffix}", num_tokens, roofline.kv_store(shape, num_tokens, rope=True)
        yield f"add + RMSNorm, {suffix}", num_tokens, roofline.add_rms_norm(shape, num_tokens)
        yield f"SiLU and mul, {suffix}", num_tokens, roofline.silu_and_mul(shape, num_tokens)
    yield f"sampling, {NUM_SEQS} sequences", NUM_SEQS, roofline.sampling(shape, NUM_SEQS)


def copy_grid(shape: Shape = LLAMA3_8B) -> Iterator[tuple[str, int, Work]]:
    """Blocks of 16 tokens within a pool: name of the case, blocks, work."""
    for num_blocks in (64, 512):
        yield f"block copy, {num_blocks} blocks", num_blocks, roofline.block_copy(shape, num_blocks)


def swap_grid(shape: Shape = LLAMA3_8B) -> Iterator[tuple[str, int, Work]]:
    """Blocks of 16 tokens, 2 MB over all layers: name of the case, blocks, work."""
    for direction in ("out", "in"):
        for num_blocks in (1, 64):
            plural = "s" * (num_blocks > 1)
            name = f"swap {direction}, {num_blocks} block{plural} of 2 MB"
            yield name, num_blocks, roofline.swap(shape, num_blocks)
