"""The memory layout of the KV pool, drawn once.

One tensor holds everything. A block holds `block_size` tokens of one sequence, for every layer, K and V:

    pool[num_blocks, num_layers, 2, block_size, num_kv_heads, head_dim]

    block 0                                               block 1
    | layer 0           | layer 1           | ...        || layer 0           | ...
    | K: bs x H x D | V | K: bs x H x D | V | ...        || K: bs x H x D | V | ...
      ^ a slot: H x D of one token
      ^-----------^ a row: bs x H x D, the K (or V) of one block in one layer

A block is one contiguous piece, so a swap is one memory copy a block, whatever the number of layers. The
attention of layer l reads rows: of block b, K is row (b * num_layers + l) * 2 and V is the row after it. The
price is that the blocks of a sequence are never neighbours within a layer, so its KV is gathered before it is
used.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class KVLayout:
    """Shape of the KV pool, without its number of blocks."""

    num_layers: int
    num_kv_heads: int
    head_dim: int
    block_size: int
    """Tokens a block."""

    @property
    def block_shape(self) -> tuple[int, ...]:
        """Shape of one block: layers, K and V, tokens, heads, elements."""
        return (self.num_layers, 2, self.block_size, self.num_kv_heads, self.head_dim)

    @property
    def rows_per_block(self) -> int:
        """Rows of one block: K and V of each layer."""
        return 2 * self.num_layers

    def block_bytes(self, dtype: torch.dtype) -> int:
        """Bytes of one block over all layers."""
        return math.prod(self.block_shape) * dtype.itemsize

    def num_blocks(self, num_tokens: int) -> int:
        """Blocks that `num_tokens` tokens of one sequence occupy."""
        return -(-num_tokens // self.block_size)

    def allocate(
        self, num_blocks: int, dtype: torch.dtype, device: torch.device, *, pin_memory: bool = False
    ) -> torch.Tensor:
        """A pool of zeros, `(num_blocks, *block_shape)`.

        Written, so that the operating system hands over the memory now, not in the middle of a step; no
        kernel counts on zeros.
        """
        pool = torch.empty((num_blocks, *self.block_shape), dtype=dtype, device=device, pin_memory=pin_memory)
        return pool.zero_()

    def rows(self, pool: torch.Tensor) -> torch.Tensor:
        """The pool as `(num_blocks * rows_per_block, block_size * num_kv_heads * head_dim)`; a view."""
        return pool.view(-1, self.block_size * self.num_kv_heads * self.head_dim)

    def slots(self, pool: torch.Tensor) -> torch.Tensor:
        """The pool as `(num_blocks * rows_per_block * block_size, num_kv_heads, head_dim)`; a view."""
        return pool.view(-1, self.num_kv_heads, self.head_dim)
