"""The two KV pools, device and host, and the block copies between and within them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import repeat

import torch
from pagedkv import KVLayout

from engine.core.plan import Transfer, TransferKind


class Pools:
    """Allocated once, before the first request."""

    def __init__(
        self,
        layout: KVLayout,
        dtype: torch.dtype,
        device: torch.device,
        num_blocks: int,
        num_host_blocks: int,
    ) -> None:
        host = torch.device("cpu")
        self.device = layout.allocate(num_blocks, dtype, device)
        self.host = layout.allocate(num_host_blocks, dtype, host, pin_memory=device.type == "cuda")
        self._ends = {
            TransferKind.SWAP_OUT: (self.device, self.host),
            TransferKind.SWAP_IN: (self.host, self.device),
            TransferKind.COPY: (self.device, self.device),
        }

    def execute(self, transfers: Iterable[Transfer]) -> None:
        """Move blocks bit for bit, in the order of the plan.

        A block is contiguous over all layers; between the pools, a run of neighbours is moved as one piece.
        On a GPU the copies are queued on the stream of the model, so they are done before the step computes.
        """
        for kind, _, src_ids, dst_ids in transfers:
            source, target = self._ends[kind]
            # Within one pool a run could overlap its own target, so there it is block by block.
            pieces = runs(src_ids, dst_ids) if source is not target else zip(src_ids, dst_ids, repeat(1))
            for src, dst, num_blocks in pieces:
                target[dst : dst + num_blocks].copy_(source[src : src + num_blocks], non_blocking=True)


def runs(src: tuple[int, ...], dst: tuple[int, ...]) -> Iterator[tuple[int, int, int]]:
    """Maximal runs in which both block ids go up by one: (first source, first target, number of blocks)."""
    first = 0
    for i in range(1, len(src) + 1):
        if i == len(src) or src[i] != src[i - 1] + 1 or dst[i] != dst[i - 1] + 1:
            yield src[first], dst[first], i - first
            first = i
