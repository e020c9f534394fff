from __future__ import annotations

import pytest

from engine.core.blocks import BlockPool


def test_blocks_are_handed_out_from_zero() -> None:
    pool = BlockPool(4)
    assert pool.take(3) == [0, 1, 2]
    assert pool.num_free == 1
    assert pool.num_holders == [1, 1, 1, 0]


def test_the_last_block_released_is_the_first_reused() -> None:
    pool = BlockPool(4)
    pool.take(4)
    pool.drop([2])
    pool.drop([0])
    assert pool.take(2) == [0, 2]


def test_a_shared_block_is_free_only_when_nobody_holds_it() -> None:
    pool = BlockPool(2)
    block_ids = pool.take(1)
    pool.hold(block_ids)
    pool.drop(block_ids)
    assert (pool.num_free, pool.num_holders[0]) == (1, 1)
    pool.drop(block_ids)
    assert (pool.num_free, pool.num_holders[0]) == (2, 0)


def test_more_than_there_is_takes_nothing() -> None:
    pool = BlockPool(3)
    pool.take(2)
    with pytest.raises(MemoryError, match="2 blocks wanted, 1 of 3 are free"):
        pool.take(2)
    assert pool.num_free == 1


def test_an_empty_pool_can_only_give_nothing() -> None:
    pool = BlockPool(0)
    assert pool.take(0) == []
    with pytest.raises(MemoryError):
        pool.take(1)


def test_a_block_is_released_once_for_each_holder() -> None:
    pool = BlockPool(2)
    (block_id,) = pool.take(1)
    pool.hold([block_id])
    pool.drop([block_id])
    pool.drop([block_id])
    with pytest.raises(RuntimeError, match=f"block {block_id} is free already: it was dropped twice"):
        pool.drop([block_id])
    assert (pool.num_free, pool.num_holders) == (2, [0, 0]), "nothing has changed"


def test_a_free_block_cannot_be_shared() -> None:
    with pytest.raises(RuntimeError, match="block 1 is free, and cannot be held"):
        BlockPool(2).hold([1])
