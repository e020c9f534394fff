"""What queries read of the pool and see of what they read, under one sliding window and chunk size.

A gather takes whole blocks, so it brings slots along that no query sees: those before the first that is
seen, those behind the end of a sequence (written by nobody, or by an earlier owner of the block), and the
padding of shorter block tables, which repeats the first block that the sequence itself reads. All of them are
set to 0: a mask that is added leaves NaN as it is, and a weight of 0 times NaN or infinity is NaN.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from pagedkv.layout import KVLayout
from pagedkv.options import AttentionOptions


@dataclass(slots=True)
class Context:
    """Of sequences with as many queries each, the last tokens of each sequence."""

    rows: torch.Tensor | None
    """Pool rows to gather, `(num_layers, 2 * num_seqs * num_blocks)`: all K rows of a layer, then all V rows.
    None: the context is the new tokens, nothing is to be read."""
    unseen: torch.Tensor | None
    """Which of the slots gathered no query sees, `(num_unseen,)`; None if there are none."""
    first: torch.Tensor
    """Slot of the first position that each query sees, `(num_seqs, num_queries)`, on the host."""
    last: torch.Tensor
    """Slot of its own position."""
    num_slots: int
    """Slots of each sequence: keys and values beyond them are not used."""
    device: torch.device
    _masks: dict[tuple[torch.dtype, float], torch.Tensor | None] = field(default_factory=dict)

    @property
    def is_causal(self) -> bool:
        """Whether queries and slots are the same tokens, and each query sees all up to itself."""
        return self.rows is None and not self.first.any()

    def mask(self, dtype: torch.dtype, seen: float = 0.0) -> torch.Tensor | None:
        """`(num_seqs, 1, num_queries, num_slots)`: `seen` if the query sees the slot, else -inf; or None.

        None stands for all seen. With 0 it is to be added to finite scores, with inf to limit scores that may
        be infinite.
        """
        if (dtype, seen) not in self._masks:
            self._masks[dtype, seen] = self._mask(dtype, seen)
        return self._masks[dtype, seen]

    def _mask(self, dtype: torch.dtype, seen: float) -> torch.Tensor | None:
        slots = torch.arange(self.num_slots)
        hidden = (slots > self.last[..., None]) | (slots < self.first[..., None])
        if not hidden.any():
            return None
        mask = torch.full(hidden.shape, seen, dtype=dtype).masked_fill_(hidden, -math.inf)
        return mask[:, None].to(self.device, non_blocking=True)


def gathered_context(
    layout: KVLayout,
    tables: Sequence[np.ndarray],
    ends: torch.Tensor,
    num_queries: int,
    options: AttentionOptions,
    device: torch.device,
) -> Context:
    """Of sequences whose KV is in the pool: block tables, and context lengths `(num_seqs,)` on the host."""
    positions = ends[:, None] - num_queries + torch.arange(num_queries)
    first_seen = options.first_seen(positions)
    first_blocks = first_seen[:, 0] // layout.block_size
    first, last = (x - first_blocks[:, None] * layout.block_size for x in (first_seen, positions))
    num_slots = int(last.max()) + 1
    num_blocks = layout.num_blocks(num_slots)
    read = np.empty((len(tables), num_blocks), dtype=np.int64)
    for row, table, low in zip(read, tables, first_blocks.tolist(), strict=True):
        row[: len(table) - low] = table[low:]
        row[len(table) - low :] = table[low]
    first_rows = np.arange(layout.rows_per_block).reshape(layout.num_layers, 2, 1)
    rows = (read.reshape(-1) * layout.rows_per_block + first_rows).reshape(layout.num_layers, -1)
    slots = torch.arange(num_blocks * layout.block_size)
    unseen = (slots < first[:, :1]) | (slots > last[:, -1:]) & (slots < num_slots)
    return Context(
        to_device(torch.from_numpy(rows), device),
        to_device(unseen.expand(2, -1, -1).flatten().nonzero()[:, 0], device) if unseen.any() else None,
        first,
        last,
        num_slots,
        device,
    )


def new_context(num_tokens: int, options: AttentionOptions, device: torch.device) -> Context:
    """Of one sequence that is all in the batch."""
    positions = torch.arange(num_tokens)[None]
    return Context(None, None, options.first_seen(positions), positions, num_tokens, device)


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor there, without waiting for it."""
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)
