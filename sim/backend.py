"""A backend that executes nothing: a cost model gives the time of a step, the trace the ends of requests."""

from __future__ import annotations

from collections.abc import Sequence
from operator import add, ge
from typing import cast

from engine.core.errors import UserError
from engine.core.fields import Count, check_value
from engine.core.plan import Finish, FinishReason, StepPlan, StepResult
from engine.core.spec import Capacity, RequestSpec
from engine.core.work import Work
from sim.cost.base import CostModel, Extrapolation, MeasuredCostModel
from sim.pace import Pace


class SimulatedBackend:
    """The length oracle and the stopwatch of the simulated world.

    A sequence ends with the token that brings it to `spec.length_limit(max_model_len)`. A plan that neither
    computes nor moves anything takes no time. With a `pace` a step takes as many times longer as it says.
    """

    def __init__(
        self, capacity: Capacity, cost: CostModel, max_model_len: Count, pace: Pace | None = None
    ) -> None:
        check_value("SimulatedBackend.max_model_len", max_model_len, Count)
        self._capacity = capacity
        self._cost = cost
        self._measured = cost if isinstance(cost, MeasuredCostModel) else None
        self._max_model_len = max_model_len
        self._pace = pace
        self._extrapolation = Extrapolation()
        self._limits: dict[str, int] = {}
        """Positions that a sequence computes in all: its last token is sampled and never computed."""
        self._batch_limits: tuple[Sequence[str], list[int]] = ((), [])
        """Request ids of the last batch, and their limits; most batches are of those of the step before."""

    @property
    def capacity(self) -> Capacity:
        """The pools that this backend pretends to have."""
        return self._capacity

    def add(self, spec: RequestSpec) -> None:
        """Learn the true length of a request; ValueError if its id is in use."""
        if spec.request_id in self._limits:
            raise UserError(f"request {spec.request_id} was added twice: ids must be unique within a run")
        self._limits[spec.request_id] = spec.length_limit(self._max_model_len) - 1

    def submit(self, plan: StepPlan) -> object:
        """Price the plan and find the sequences that end with it."""
        finished = self._finished(plan)
        if not plan.chunks and not plan.transfers:
            return StepResult(duration_ns=0, finished=finished)
        return self._priced(Work.of(plan), finished)

    def pop_remark(self) -> str | None:
        """What a reader must know of the times since the last call, in one line: how far they are guessed."""
        extrapolation, self._extrapolation = self._extrapolation, Extrapolation()
        caveat = None if self._measured is None else self._measured.caveat
        return "; ".join(filter(None, (caveat, extrapolation.remark()))) or None

    def _priced(self, step: Work, finished: tuple[Finish, ...]) -> StepResult:
        parts_ns = self._cost.parts_ns(step)
        if self._measured is not None:
            self._extrapolation.note(self._measured.beyond(step))
        duration_ns = round(sum(parts_ns.values()))
        transfer_ns = duration_ns - self._without_transfers_ns(step) if step.num_transfers else 0
        if self._pace is not None:
            factor = self._pace(step)
            parts_ns = {name: factor * ns for name, ns in parts_ns.items()}
            duration_ns, transfer_ns = round(factor * duration_ns), round(factor * transfer_ns)
        return StepResult(duration_ns, finished, None, parts_ns, transfer_ns)

    def _without_transfers_ns(self, step: Work) -> int:
        """What the step would take if it moved nothing: the rest is transfer time that is not hidden."""
        alone = step._replace(
            num_blocks_swapped_out=0, num_blocks_swapped_in=0, num_blocks_copied=0, num_transfers=0
        )
        return round(sum(self._cost.parts_ns(alone).values()))

    def collect(self, ticket: object) -> StepResult:
        """The result that `submit` worked out."""
        return cast(StepResult, ticket)

    def drop(self, request_id: str) -> None:
        """Forget a request; ValueError if it is not known."""
        if self._limits.pop(request_id, None) is None:
            raise ValueError(
                f"request {request_id} was dropped, but the backend does not know it: add it first"
            )

    def _finished(self, plan: StepPlan) -> tuple[Finish, ...]:
        """The sequences whose token is their last."""
        batch = plan.chunks
        limits = self._limits_of(plan)
        ends = map(add, batch.starts, batch.num_tokens)
        if not any(map(ge, ends, limits)):  # nearly always, and so without a Python loop
            return ()
        columns = zip(batch.request_ids, batch.starts, batch.num_tokens, batch.samples, limits, strict=True)
        return tuple(
            Finish(request_id, seq, FinishReason.LENGTH)
            for request_id, start, num_tokens, samples, limit in columns
            if start + num_tokens >= limit
            for seq in samples
        )

    def _limits_of(self, plan: StepPlan) -> list[int]:
        """Positions that each request of the batch computes in all."""
        request_ids, limits = self._batch_limits
        if request_ids is not plan.chunks.request_ids:
            request_ids = plan.chunks.request_ids
            try:
                limits = list(map(self._limits.__getitem__, request_ids))
            except KeyError as error:
                raise ValueError(
                    f"plan {plan.step_id} computes request {error}, which the backend does not know: "
                    "add it first"
                ) from None
            self._batch_limits = request_ids, limits
        return limits
