from __future__ import annotations

import pytest

from engine.core.kv_cache import KVCache
from engine.core.plan import TableUpdate, Transfer, TransferKind
from engine.core.request import Request
from engine.core.spec import Capacity, RequestSpec


def request(num_prompt_tokens: int, n: int = 1, name: str = "a") -> Request:
    return Request(RequestSpec(name, 0, num_prompt_tokens, 8, n=n))


def computed(request: Request, num_tokens: int, *, sampled: bool = True) -> None:
    """What a commit does to a request."""
    request.num_computed_tokens = num_tokens
    if sampled:
        request.num_tokens = num_tokens + 1


def forked(kv: KVCache, num_prompt_tokens: int, n: int) -> Request:
    """A request whose prompt is computed and whose sequences have parted."""
    one = request(num_prompt_tokens, n)
    kv.prepare(one, num_prompt_tokens)
    computed(one, num_prompt_tokens)
    kv.fork(one)
    return one


@pytest.fixture
def kv() -> KVCache:
    return KVCache(Capacity(num_blocks=8, num_host_blocks=4, block_size=4))


@pytest.mark.parametrize(("num_tokens", "num_blocks"), [(0, 0), (1, 1), (4, 1), (5, 2), (8, 2)])
def test_blocks_for(kv: KVCache, num_tokens: int, num_blocks: int) -> None:
    assert kv.blocks_for(num_tokens) == num_blocks


def test_admit_and_grow_tell_the_backend_what_it_does_not_know(kv: KVCache) -> None:
    one = request(6)
    assert kv.blocks_due(one, 6) == 2
    assert kv.prepare(one, 6) == ([TableUpdate("a", 0, 0, (0, 1))], [])
    assert (kv.device.num_free, one.num_writable_slots) == (6, 8)
    computed(one, 8)
    assert kv.blocks_due(one, 9) == 1
    assert kv.prepare(one, 9) == ([TableUpdate("a", 0, 2, (2,))], [])
    assert one.tables == {0: [0, 1, 2]}


def test_blocks_to_hold_counts_the_shared_prompt_once(kv: KVCache) -> None:
    one = request(6, n=3)
    assert kv.blocks_to_hold(one) == 2
    one.num_tokens = 7  # one full block is shared, the second one is each sequence's own
    assert kv.blocks_to_hold(one) == 1 + 3
    one.num_tokens = 9
    assert kv.blocks_to_hold(one) == 1 + 3 * 2


def test_fork_shares_and_allocates_nothing(kv: KVCache) -> None:
    one = forked(kv, 6, n=3)
    assert one.tables == {0: [0, 1], 1: [0, 1], 2: [0, 1]}
    assert kv.device.num_holders[:2] == [3, 3]
    assert (kv.device.num_free, one.num_writable_slots, kv.num_blocks_held(one)) == (6, 0, 2)


def test_all_but_the_last_to_write_copy_the_block_they_share(kv: KVCache) -> None:
    one = forked(kv, 6, n=3)
    assert kv.blocks_due(one, 7) == 2
    updates, copies = kv.prepare(one, 7)
    assert copies == [
        Transfer(TransferKind.COPY, "a", (1,), (2,)),
        Transfer(TransferKind.COPY, "a", (1,), (3,)),
    ]
    assert [update.block_ids for update in updates] == [(0, 2), (0, 3), (0, 1)]
    assert all(update.first == 0 for update in updates), "the backend knew one table only"
    assert kv.device.num_holders[:4] == [3, 1, 1, 1]


def test_a_prompt_that_fills_its_blocks_needs_no_copy(kv: KVCache) -> None:
    one = forked(kv, 8, n=2)
    assert kv.blocks_due(one, 9) == 2
    updates, copies = kv.prepare(one, 9)
    assert copies == []
    assert [update.block_ids for update in updates] == [(0, 1, 2), (0, 1, 3)]


def test_swap_keeps_shared_blocks_shared(kv: KVCache) -> None:
    one = forked(kv, 6, n=2)
    kv.prepare(one, 7)
    out = kv.swap_out(one)
    assert out == Transfer(TransferKind.SWAP_OUT, "a", (0, 2, 1), (0, 1, 2))
    assert one.tables == {0: [0, 1], 1: [0, 2]}
    assert (kv.device.num_free, kv.host.num_free, kv.host.num_holders) == (8, 1, [2, 1, 1, 0])
    assert one.num_writable_slots == 0, "the backend must be told of the tables anew"
    back = kv.swap_in(one)
    assert (back.kind, back.src) == (TransferKind.SWAP_IN, (0, 1, 2))
    assert (kv.device.num_free, kv.host.num_free) == (5, 4)
    assert [kv.device.num_holders[block_id] for block_id in back.dst] == [2, 1, 1]


def test_swap_needs_room_on_the_other_side(kv: KVCache) -> None:
    one = request(20)
    kv.prepare(one, 20)
    with pytest.raises(MemoryError, match="5 blocks wanted, 4 of 4 are free"):
        kv.swap_out(one)
    assert one.tables == {0: [0, 1, 2, 3, 4]}


def test_release_gives_all_back(kv: KVCache) -> None:
    one, other = forked(kv, 6, n=2), request(4, name="b")
    kv.prepare(one, 7)
    kv.prepare(other, 4)
    kv.release_sequence(one, 0, kv.device)
    assert (kv.device.num_free, kv.device.num_holders[:4]) == (5, [1, 1, 0, 1])
    kv.release(one, kv.device)
    assert (kv.device.num_free, one.tables, one.num_writable_slots) == (7, {}, 0)


def test_a_sequence_without_a_table_has_nothing_to_give(kv: KVCache) -> None:
    one = request(6, n=2)
    kv.prepare(one, 6)
    kv.release_sequence(one, 1, kv.device)
    assert kv.device.num_free == 6
