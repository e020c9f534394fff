"""The two KV pools, device and host, and the block copies between and within them."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from pagedkv import KVLayout

from engine.core.errors import UserError
from engine.core.plan import Transfer, TransferKind
from engine.core.spec import Capacity
from engine.runtime.kernels import Kernels
from engine.runtime.memory import device_memory


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


def check_room(device: torch.device, capacity: Capacity, block_bytes: int) -> None:
    """Refuse pools that are larger than the memory that is free; the system might kill the process later.

    Raises:
        UserError: one is; the message says what to lower.
    """
    device_bytes, host_bytes = capacity.num_blocks * block_bytes, capacity.num_host_blocks * block_bytes
    host = torch.device("cpu")
    pools = f"a KV pool of {capacity.num_blocks:,} blocks"
    host_pool = f"a host pool of {capacity.num_host_blocks:,} blocks"
    if device.type == "cpu":
        wanted = [(device, device_bytes + host_bytes, f"{pools} with {host_pool}", "num_blocks")]
    else:
        wanted = [
            (device, device_bytes, pools, "num_blocks"),
            (host, host_bytes, host_pool, "num_host_blocks"),
        ]
    for place, num_bytes, what, name in wanted:
        memory = device_memory(place)
        if num_bytes > memory.free_bytes:
            raise UserError(
                f"{what} takes {num_bytes / 2**30:,.1f} GiB of {place}, and {memory.free_bytes / 2**30:,.1f} "
                f"of {memory.total_bytes / 2**30:,.1f} GiB are free: lower {name}"
            )
