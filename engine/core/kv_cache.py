"""Block tables: which physical block holds which positions of which sequence.

A request that runs holds device blocks, one that is swapped out holds host blocks, one that waits holds none.
The tables themselves lie in `Request.tables`; only this class changes them.
"""

from __future__ import annotations

from collections import Counter
from itertools import chain

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
        """Blocks to take before the request's sequences can write up to position `num_tokens` - 1."""
        needed = self.blocks_for(num_tokens)
        if request.n == 1:  # its only table is shared with nobody
            return max(0, needed - len(request.tables.get(0, ())))
        tables = [request.tables.get(seq, ()) for seq in request.seqs]
        growth = sum(max(0, needed - len(table)) for table in tables)
        # Of k sequences that share the block written next, all but the last to write take a copy.
        index = request.num_computed_tokens // self.block_size
        written = [table[index] for table in tables if index < len(table)]
        return growth + len(written) - len(set(written))

    def num_blocks_held(self, request: Request) -> int:
        """Distinct blocks in the request's tables, on whichever side they are."""
        return len(_distinct(request))

    def num_blocks_freed_by(self, request: Request) -> int:
        """Device blocks that nobody but this running request holds."""
        own = Counter(chain.from_iterable(request.tables.values()))
        return sum(self.device.num_holders[block_id] == count for block_id, count in own.items())

    def prepare(self, request: Request, num_tokens: int) -> tuple[list[TableUpdate], list[Transfer]]:
        """Make positions up to `num_tokens` - 1 writable for the sequences that compute next.

        Grows their tables and copies a shared block before it is written (copy-on-write).

        Returns:
            The changes to the tables since the backend last heard of them, and the copies to make.
        """
        if request.n == 1:
            return [self.grow(request, num_tokens)], []
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
                table += self.device.take(needed - len(table))
            updates.append(TableUpdate(request.id, seq, first, tuple(table[first:])))
        self._note_writable(request, table)
        return updates, copies

    def grow(self, request: Request, num_tokens: int) -> TableUpdate:
        """The same for a request with one sequence, which shares its blocks with nobody."""
        table = request.tables.setdefault(0, [])
        num_due = self.blocks_for(num_tokens) - len(table)
        if num_due > 0:
            table += self.device.take(num_due)
        first = request.num_writable_slots // self.block_size
        self._note_writable(request, table)
        return TableUpdate(request.id, 0, first, tuple(table[first:]))

    def _note_writable(self, request: Request, table: list[int]) -> None:
        # The newest token of a sequence has no KV, so the last position is never written.
        num_slots = min(len(table) * self.block_size, request.max_num_tokens - 1)
        request.num_writable_slots = num_slots
        request.num_decode_slots = num_slots if request.is_decoding else 0

    def _unshare(self, request: Request, table: list[int]) -> list[Transfer]:
        """Replace the block that holds the next position, if another sequence holds it too."""
        index = request.num_computed_tokens // self.block_size
        if index >= len(table) or self.device.num_holders[table[index]] == 1:
            return []
        shared, (own,) = table[index], self.device.take(1)
        table[index] = own
        self.device.drop((shared,))
        return [Transfer(TransferKind.COPY, request.id, (shared,), (own,))]

    def fork(self, request: Request) -> None:
        """Give every live sequence a table of its own over the blocks of the prompt. Takes nothing."""
        (table,) = request.tables.values()
        for seq in request.live:
            if seq not in request.tables:
                request.tables[seq] = list(table)
                self.device.hold(table)
        # The last block may be shared, and the backend knows one table only.
        request.num_writable_slots = request.num_decode_slots = 0

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
        dst = target.take(len(src))
        moved = dict(zip(src, dst, strict=True))
        for table in request.tables.values():
            source.drop(table)
            table[:] = [moved[block_id] for block_id in table]
            target.hold(table)
        target.drop(dst)  # taking counted each block once, and the tables have counted themselves
        request.num_writable_slots = request.num_decode_slots = 0
        return Transfer(kind, request.id, tuple(src), tuple(dst))

    def release(self, request: Request, pool: BlockPool) -> None:
        """Give back all blocks of a request, which lie in `pool`."""
        for table in request.tables.values():
            # From the tail: should a prefix be wanted again, its head is what has the best chance to be
            # there.
            pool.drop(reversed(table))
        request.tables = {}
        request.num_writable_slots = request.num_decode_slots = 0

    def release_sequence(self, request: Request, seq: int, pool: BlockPool) -> None:
        """Give back the blocks of one sequence, which lie in `pool`."""
        pool.drop(reversed(request.tables.pop(seq, ())))


def _distinct(request: Request) -> list[int]:
    """The request's blocks, each once, in the order of its tables."""
    return list(dict.fromkeys(block_id for table in request.tables.values() for block_id in table))
