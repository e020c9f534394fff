from __future__ import annotations

import pytest

from engine.core.journal import plan_text
from engine.core.plan import Batch, Chunk, PoolState, StepPlan
from engine.core.request import Request
from engine.core.spec import RequestSpec

CHUNKS = [Chunk("a", 0, 4, (0,), ()), Chunk("b", 6, 1, (0, 1), (0, 1)), Chunk("c", 9, 1, (0,), (0,))]


def plan(chunks: list[Chunk]) -> StepPlan:
    return StepPlan(
        0,
        Batch.of(chunks),
        (),
        (),
        (),
        (),
        (),
        (),
        sum(chunk.num_tokens for chunk in chunks),
        PoolState(*range(6)),
    )


def test_a_batch_is_a_sequence_of_chunks() -> None:
    batch = Batch.of(CHUNKS)
    assert list(batch) == CHUNKS
    assert len(batch) == 3
    assert (batch[1], batch[-1]) == (CHUNKS[1], CHUNKS[2])
    assert list(batch[1:]) == CHUNKS[1:]
    assert CHUNKS[0] in batch
    assert list(batch.request_ids) == ["a", "b", "c"]
    with pytest.raises(IndexError):
        batch[3]


def test_an_empty_batch() -> None:
    assert list(Batch.of([])) == []
    assert not Batch.of([])


def test_batches_are_equal_when_their_chunks_are() -> None:
    assert Batch.of(CHUNKS) == Batch.of(tuple(CHUNKS))
    assert Batch.of(CHUNKS) != Batch.of(CHUNKS[::-1])
    assert hash(Batch.of(CHUNKS)) == hash(Batch.of(list(CHUNKS)))


def test_plans_have_the_same_text_exactly_when_they_are_equal() -> None:
    one = plan(CHUNKS)
    assert plan_text(one) == plan_text(plan(list(CHUNKS)))
    assert "\n" not in plan_text(one)
    for other in (plan(CHUNKS[:2]), one._replace(step_id=1), one._replace(admitted=("a",)), None):
        assert one != other
        assert plan_text(other) != plan_text(one)


@pytest.mark.parametrize(
    ("num_computed", "live", "seqs", "num_slots"),
    [
        (0, (0, 1, 2), (0,), 0),
        (5, (1, 2), (1,), 5),
        (6, (0, 1, 2), (0, 1, 2), 6),
        (8, (1, 2), (1, 2), 6 + 2 * 2),
    ],
)
def test_a_request_counts_its_prompt_once(
    num_computed: int, live: tuple[int, ...], seqs: tuple[int, ...], num_slots: int
) -> None:
    request = Request(RequestSpec("a", 0, 6, 8, n=3))
    request.num_computed_tokens, request.live = num_computed, live
    assert (request.seqs, request.num_kv_slots) == (seqs, num_slots)
    assert f"{num_computed}/6 tokens" in repr(request)
