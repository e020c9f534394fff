"""Block tables: which physical block holds which positions of which sequence.

A request that runs holds device blocks, one that is swapped out holds host blocks, one that waits holds none.
The tables themselves lie in `Request.tables`; only this class changes them.
"""

from __future__ import annotations

from engine.core.blocks import BlockPool
from engine.core.plan import TableUpdate, Transfer, TransferKind
from engine.core.request import Request
from engine.core.spec import Capacity


class KVCache:
    """The device pool, the host pool, and the moves between block tables."""

    def __init__(self, capacity: Capacity) -> None:
        self.block_size = capacity.block_size
        self.device = BlockPool(capacity.num_blocks)
        self.host = BlockPool(capacity.num_host_blocks)

    @property
    def num_blocks(self) -> int:
        """Device blocks in all."""
        return self.device.num_blocks

    @property
    def num_free(self) -> int:
        """Device blocks that can be allocated now."""
        return len(self.device.free)

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that one sequence of this length needs."""
        return -(-num_tokens // self.block_size)

    def blocks_to_hold(self, request: Request) -> int:
        """Blocks that a request needs for all its tokens, starting from none.

        Sequences share the full blocks of their prompt, and each has its own from there on.
        """
        num_blocks = self.blocks_for(request.num_tokens)
        if request.num_tokens == request.num_prompt_tokens:
            return num_blocks
        num_shared = request.num_prompt_tokens // self.block_size
        return num_shared + (num_blocks - num_shared) * len(request.live)

    def blocks_due(self, request: Request, num_tokens: int) -> int:
        """Blocks to allocate before the request's sequences can write up to position `num_tokens` - 1."""
        tables = [request.tables.get(seq, ()) for seq in request.seqs]
        needed = self.blocks_for(num_tokens)
        growth = sum(max(0, needed - len(table)) for table in tables)
        # Of k sequences that share the block written next, all but the last to write take a copy.
        index = request.num_computed_tokens // self.block_size
        written = [table[index] for table in tables if index < len(table)]
        return growth + len(written) - len(set(written))

    def num_blocks_held(self, request: Request) -> int:
        """Distinct blocks in the request's tables, on whichever side they are."""
        return len(_distinct(request))

    def prepare(self, request: Request, num_tokens: int) -> tuple[list[TableUpdate], list[Transfer]]:
        """Make positions up to `num_tokens` - 1 writable for the sequences that compute next.

        Grows their tables and copies a shared block before it is written (copy-on-write).

        Returns:
            The changes to the tables since the backend last heard of them, and the copies to make.
        """
        first = request.num_writable_slots // self.block_size
        needed = self.blocks_for(num_tokens)
        updates: list[TableUpdate] = []
        copies: list[Transfer] = []
        tables = request.tables
        for seq in request.seqs:
            table = tables.setdefault(seq, [])
            if len(tables) > 1:
                copies += self._unshare(request, table)
            if len(table) < needed:
                table += self.device.allocate(needed - len(table))
            updates.append(TableUpdate(request.id, seq, first, tuple(table[first:])))
            request.num_writable_slots = len(table) * self.block_size
        return updates, copies

    def _unshare(self, request: Request, table: list[int]) -> list[Transfer]:
        """Replace the block that holds the next position, if another sequence holds it too."""
        index = request.num_computed_tokens // self.block_size
        if index >= len(table) or self.device.ref_counts[table[index]] == 1:
            return []
        shared, (own,) = table[index], self.device.allocate(1)
        table[index] = own
        self.device.release((shared,))
        return [Transfer(TransferKind.COPY, request.id, (shared,), (own,))]

    def fork(self, request: Request) -> None:
        """Give every live sequence a table of its own over the blocks of the prompt. Allocates nothing."""
        (table,) = request.tables.values()
        for seq in request.live:
            if seq not in request.tables:
                request.tables[seq] = list(table)
                self.device.share(table)
        request.num_writable_slots = 0  # the last block may be shared, and the backend knows one table only

    def swap_out(self, request: Request) -> Transfer:
        """Move every block of a running request to the host pool; needs `num_blocks_held` free host
        blocks.
        """
        return self._move(request, TransferKind.SWAP_OUT, self.device, self.host)

    def swap_in(self, request: Request) -> Transfer:
        """Move every block of a swapped request back to the device pool."""
        return self._move(request, TransferKind.SWAP_IN, self.host, self.device)

    def _move(self, request: Request, kind: TransferKind, source: BlockPool, target: BlockPool) -> Transfer:
        """Move distinct blocks one to one, so that what was shared stays shared."""
        src = _distinct(request)
        dst = target.allocate(len(src))
        moved = dict(zip(src, dst, strict=True))
        for table in request.tables.values():
            source.release(table)
            table[:] = [moved[block_id] for block_id in table]
            target.share(table)
        target.release(dst)  # allocation counted each block once, and the tables have counted themselves
        request.num_writable_slots = 0
        return Transfer(kind, request.id, tuple(src), tuple(dst))

    def release(self, request: Request, pool: BlockPool) -> None:
        """Give back all blocks of a request that lie in `pool`."""
        for table in request.tables.values():
            # From the tail: should a prefix be wanted again, its head is what has the best chance to be
            # there.
            pool.release(reversed(table))
        request.tables = {}
        request.num_writable_slots = 0

    def release_sequence(self, request: Request, seq: int) -> None:
        """Give back the blocks of one sequence of a running request."""
        self.device.release(reversed(request.tables.pop(seq, ())))


def _distinct(request: Request) -> list[int]:
    """The request's blocks, each once, in the order of its tables."""
    return list(dict.fromkeys(block_id for table in request.tables.values() for block_id in table))
