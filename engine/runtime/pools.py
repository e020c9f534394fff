"""The two KV pools, device and host, and the block copies between and within them."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from pagedkv import KVLayout

from engine.core.plan import Transfer, TransferKind
from engine.runtime.kernels import Kernels


class Pools:
    """Allocated once, before the first request."""

    def __init__(
        self,
        layout: KVLayout,
        dtype: torch.dtype,
        device: torch.device,
        num_blocks: int,
        num_host_blocks: int,
        kernels: Kernels,
    ) -> None:
        host = torch.device("cpu")
        self.device = layout.allocate(num_blocks, dtype, device)
        self.host = layout.allocate(num_host_blocks, dtype, host, pin_memory=device.type == "cuda")
        self._kernels = kernels
        self._ends = {
            TransferKind.SWAP_OUT: (self.device, self.host),
            TransferKind.SWAP_IN: (self.host, self.device),
            TransferKind.COPY: (self.device, self.device),
        }

    def execute(self, transfers: Iterable[Transfer]) -> None:
        """Move blocks bit for bit, in the order of the plan; a block is contiguous over all layers.

        On a GPU the copies are queued on the stream of the model, so they are done before the step computes.
        """
        for kind, _, src_ids, dst_ids in transfers:
            self._kernels.copy_blocks(*self._ends[kind], src_ids, dst_ids)
