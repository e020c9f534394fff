from __future__ import annotations

import pytest

from engine.core.blocks import BlockPool


def test_blocks_are_handed_out_from_zero() -> None:
    pool = BlockPool(4)
    assert pool.allocate(3) == [0, 1, 2]
    assert pool.num_free == 1
    assert pool.ref_counts == [1, 1, 1, 0]


def test_the_last_block_released_is_the_first_reused() -> None:
    pool = BlockPool(4)
    pool.allocate(4)
    pool.release([2])
    pool.release([0])
    assert pool.allocate(2) == [0, 2]


def test_a_shared_block_is_free_only_when_nobody_holds_it() -> None:
    pool = BlockPool(2)
    block_ids = pool.allocate(1)
    pool.share(block_ids)
    pool.release(block_ids)
    assert (pool.num_free, pool.ref_counts[0]) == (1, 1)
    pool.release(block_ids)
    assert (pool.num_free, pool.ref_counts[0]) == (2, 0)


def test_more_than_there_is_takes_nothing() -> None:
    pool = BlockPool(3)
    pool.allocate(2)
    with pytest.raises(MemoryError, match="2 blocks wanted, 1 of 3 are free"):
        pool.allocate(2)
    assert pool.num_free == 1


def test_an_empty_pool_can_only_give_nothing() -> None:
    pool = BlockPool(0)
    assert pool.allocate(0) == []
    with pytest.raises(MemoryError):
        pool.allocate(1)


def test_a_block_is_released_once_for_each_holder() -> None:
    pool = BlockPool(2)
    (block_id,) = pool.allocate(1)
    pool.share([block_id])
    pool.release([block_id])
    pool.release([block_id])
    with pytest.raises(RuntimeError, match=f"block {block_id} is free already: it was released twice"):
        pool.release([block_id])
    assert (pool.num_free, pool.ref_counts) == (2, [0, 0]), "nothing has changed"


def test_a_free_block_cannot_be_shared() -> None:
    with pytest.raises(RuntimeError, match="block 1 is free, and cannot be shared"):
        BlockPool(2).share([1])
