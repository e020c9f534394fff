"""Physical blocks: who holds them, and which is handed out next."""

from __future__ import annotations

from collections.abc import Iterable


class BlockPool:
    """A fixed number of blocks with reference counts.

    A block is free exactly when its count is 0. Free blocks are reused last in, first out: what was just
    released is the most likely to be still in a cache.
    """

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self.ref_counts = [0] * num_blocks
        self.free = list(range(num_blocks - 1, -1, -1))
        """A stack; the block at its end is allocated next."""

    @property
    def num_free(self) -> int:
        """Blocks that can be allocated now."""
        return len(self.free)

    def allocate(self, num_blocks: int) -> list[int]:
        """Take `num_blocks` free blocks, each with a reference count of 1.

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
            self.ref_counts[block_id] = 1
        return block_ids

    def share(self, block_ids: Iterable[int]) -> None:
        """One more block table holds each of these blocks.

        Raises:
            RuntimeError: a block is free, so nobody may hold it.
        """
        ref_counts = self.ref_counts
        for block_id in block_ids:
            if not ref_counts[block_id]:
                raise RuntimeError(f"block {block_id} is free, and cannot be shared: allocate it")
            ref_counts[block_id] += 1

    def release(self, block_ids: Iterable[int]) -> None:
        """One block table fewer holds each of these blocks; those held by none are free again.

        Raises:
            RuntimeError: a block is free already: it was released twice.
        """
        ref_counts, free = self.ref_counts, self.free
        for block_id in block_ids:
            count = ref_counts[block_id] - 1
            if count == 0:
                free.append(block_id)
            elif count < 0:
                raise RuntimeError(f"block {block_id} is free already: it was released twice")
            ref_counts[block_id] = count
