"""The parts of a plan until it is frozen: who computes what, what is moved, what was decided about whom."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from engine.core.plan import (
    Batch,
    Chunk,
    PoolState,
    Preemption,
    Recomputed,
    Rejection,
    StepPlan,
    TableUpdate,
    Transfer,
)
from engine.core.request import Request
from engine.core.state import State


class Draft:
    """What the verbs of a step put together.

    Most of a batch computes its newest token and gets one more; only who does something else has a chunk
    here, so that a step of decodes is a handful of columns.
    """

    __slots__ = (
        "_arrivals_rejected",
        "admitted",
        "batch",
        "chunks",
        "preempted",
        "rejected",
        "resumed",
        "transfers",
        "updates",
    )

    def __init__(self, rejections: list[Rejection]) -> None:
        self.batch: list[Request] = []
        """Those that compute something, in batch order."""
        self.chunks: dict[Request, Chunk] = {}
        """Of those that do more than compute their newest token and get another."""
        self.updates: dict[Request, list[TableUpdate]] = {}
        self.transfers: list[Transfer] = []
        self.admitted: list[Request] = []
        self.resumed: list[Request] = []
        self.preempted: list[tuple[Request, Preemption]] = []
        """In the order in which the victims were taken."""
        self._arrivals_rejected = rejections
        self.rejected: list[tuple[Request, str]] = []
        """By this step, and why."""

    @property
    def is_empty(self) -> bool:
        """Nothing is computed or moved, and nobody had to go."""
        return not (self.batch or self.transfers or self.preempted or self.rejections)

    @property
    def rejections(self) -> list[Rejection]:
        """What the plan tells of: arrivals since the last one first."""
        return self._arrivals_rejected + [Rejection(request.id, why) for request, why in self.rejected]

    def compute(self, request: Request, num_tokens: int) -> None:
        """A request computes its next tokens, and samples if that brings it up to date."""
        start = request.num_computed_tokens
        self.batch.append(request)
        is_last = start + num_tokens == request.num_tokens
        if num_tokens > 1 or not is_last or start < request.num_prefill_tokens:
            samples = request.live if is_last else ()
            self.chunks[request] = Chunk(request.id, start, num_tokens, request.seqs, samples)

    def retract(self, request: Request) -> int:
        """A request computes nothing after all; the tokens, over its sequences, that it would have."""
        self.updates.pop(request, None)
        if request not in self.batch:
            return 0
        self.batch.remove(request)
        chunk = self.chunks.pop(request, None)
        return len(request.live) if chunk is None else chunk.num_tokens * len(chunk.seqs)

    def sort(self, place: Callable[[Request], int]) -> None:
        """Bring the batch into another order; those of equal place keep theirs."""
        self.batch.sort(key=place)

    def first_tokens(self) -> list[Request]:
        """Those whose prompt is complete with this step, in batch order."""
        if not self.chunks:
            return []
        return [
            request
            for request in self.batch
            if (chunk := self.chunks.get(request)) is not None
            and chunk.samples
            and chunk.start + chunk.num_tokens == request.num_prompt_tokens
        ]

    def freeze(self, state: State, step_id: int, num_tokens: int) -> StepPlan:
        """The plan, which computes `num_tokens` over all; everybody in it makes the progress it plans."""
        state.seat()
        plan = StepPlan(
            step_id,
            self._columns(state),
            tuple([update for updates in self.updates.values() for update in updates]),
            tuple(self.transfers),
            tuple([preemption for _, preemption in self.preempted]),
            tuple([request.id for request in self.admitted]),
            tuple([request.id for request in self.resumed]),
            tuple(self.rejections),
            num_tokens,
            PoolState(
                len(state.running),
                len(state.waiting),
                len(state.swapped),
                state.kv.device.num_free,
                state.kv.host.num_free,
                state.num_kv_tokens,
            ),
            tuple(self._recomputed()) if self.chunks else (),
        )
        self._progress(state, num_tokens)
        return plan

    def _recomputed(self) -> Iterator[Recomputed]:
        """What had been computed before, in batch order; a decode of an up-to-date request never had."""
        for request in self.batch:
            chunk = self.chunks.get(request)
            if chunk is not None and chunk.start < request.max_computed_tokens:
                num_tokens = min(request.max_computed_tokens, chunk.start + chunk.num_tokens) - chunk.start
                yield Recomputed(request.id, num_tokens * len(chunk.seqs))

    def _progress(self, state: State, num_tokens: int) -> None:
        chunks = self.chunks
        for request, chunk in chunks.items():
            num_tokens -= chunk.num_tokens * len(chunk.seqs)
            state.advance(request, chunk.num_tokens, samples=bool(chunk.samples))
        decodes = [request for request in self.batch if request not in chunks] if chunks else self.batch
        state.advance_decodes(decodes, num_tokens)

    def _columns(self, state: State) -> Batch:
        """The chunks as columns. If they are the decodes of the last step, only the positions are new."""
        batch, chunks = self.batch, self.chunks
        starts = [request.num_computed_tokens for request in batch]
        decodes, last = state.last_batch
        if not chunks and decodes == batch:
            return Batch(last.request_ids, starts, last.num_tokens, last.seqs, last.samples)
        live = [request.live for request in batch]
        request_ids = [request.id for request in batch]
        if not chunks:
            state.last_batch = batch, Batch(request_ids, starts, [1] * len(live), live, live)
            return state.last_batch[1]
        num_tokens, seqs, samples = [1] * len(live), live, list(live)
        for index, chunk in enumerate(map(chunks.get, batch)):
            if chunk is not None:
                _, _, num_tokens[index], seqs[index], samples[index] = chunk
        return Batch(request_ids, starts, num_tokens, seqs, samples)
