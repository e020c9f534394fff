"""Physical blocks: who holds them, and which is handed out next."""

from __future__ import annotations

from collections.abc import Iterable


class BlockPool:
    """A fixed number of blocks behind three verbs: take, hold, drop.

    A block is free exactly when nobody holds it. Free blocks are taken last in, first out: what was just
    dropped is the most likely to be still in a cache.
    """

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self.num_holders = [0] * num_blocks
        self.free = list(range(num_blocks - 1, -1, -1))
        """A stack; the block at its end is taken next."""

    @property
    def num_free(self) -> int:
        """Blocks that can be taken now."""
        return len(self.free)

    def take(self, num_blocks: int) -> list[int]:
        """That many free blocks, each with one holder.

        Raises:
            MemoryError: fewer are free. Callers ask `num_free` first, so this is a bug in a policy or the
            scheduler.
        """
        num_left = len(self.free) - num_blocks
        if num_left < 0:
            raise MemoryError(f"{num_blocks} blocks wanted, {len(self.free)} of {self.num_blocks} are free")
        block_ids = self.free[num_left:]
        del self.free[num_left:]
        block_ids.reverse()
        for block_id in block_ids:
            self.num_holders[block_id] = 1
        return block_ids

    def hold(self, block_ids: Iterable[int]) -> None:
        """One more holder for each of these blocks.

        Raises:
            RuntimeError: a block is free, so nobody may hold it.
        """
        num_holders = self.num_holders
        for block_id in block_ids:
            if not num_holders[block_id]:
                raise RuntimeError(f"block {block_id} is free, and cannot be held: take it")
            num_holders[block_id] += 1

    def drop(self, block_ids: Iterable[int]) -> None:
        """One holder fewer for each of these blocks; those without one are free again.

        Raises:
            RuntimeError: a block is free already: it was dropped twice.
        """
        num_holders, free = self.num_holders, self.free
        for block_id in block_ids:
            count = num_holders[block_id] - 1
            if count == 0:
                free.append(block_id)
            elif count < 0:
                raise RuntimeError(f"block {block_id} is free already: it was dropped twice")
            num_holders[block_id] = count
