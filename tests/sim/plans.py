"""Plans made by hand."""

from __future__ import annotations

from collections.abc import Sequence

from engine.core.plan import Batch, Chunk, PoolState, StepPlan, Transfer


def make_plan(chunks: Sequence[Chunk] = (), transfers: Sequence[Transfer] = (), step_id: int = 0) -> StepPlan:
    return StepPlan(
        step_id=step_id,
        chunks=Batch.of(chunks),
        updates=(),
        transfers=tuple(transfers),
        preemptions=(),
        admitted=(),
        resumed=(),
        rejections=(),
        num_tokens=sum(chunk.num_tokens * len(chunk.seqs) for chunk in chunks),
        after=PoolState(len(chunks), 0, 0, 0, 0, 0),
    )


def prefill(request_id: str, num_tokens: int, start: int = 0, samples: tuple[int, ...] = (0,)) -> Chunk:
    return Chunk(request_id, start, num_tokens, (0,), samples)


def decode(request_id: str, start: int, seqs: tuple[int, ...] = (0,)) -> Chunk:
    return Chunk(request_id, start, 1, seqs, seqs)
