"""A second opinion on vLLM V1's AsyncScheduler, with two plans in flight as the engine core drives it.

Written from the rules that accompany the golden traces and from reading vLLM (v1/core/sched/scheduler.py,
v1/core/sched/async_scheduler.py, v1/engine/core.py), without a look at `engine/core`. What is the same with
nothing in flight is the synchronous model's.

Progress is made when a plan is made: a token that a plan in flight samples counts as there (`pending`), only
its value is unknown. A preempted request loses its count of them, but gets the tokens when they return. They
return before the next plan is made: the call that preempts admits nobody, and ends with the commit of the
plan that holds them. So the real scheduler's rule that a request waits for its stale tokens has no effect.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tests.parity.model_v1 import STUCK_AFTER, Job, ModelV1, Record, in_file_order

MAX_IN_FLIGHT = 2


@dataclass(frozen=True)
class Plan:
    """A plan whose result has not come."""

    number: int
    computes: bool
    samples: list[tuple[Job, int]]
    """Requests that sample a token, and how often each had been preempted before."""


class ModelV1Async(ModelV1):
    """The scheduler of a scenario, the engine core's loop around it, and the fake model behind both."""

    def __init__(self, scenario: dict[str, Any]) -> None:
        super().__init__(scenario)
        self.in_flight: list[Plan] = []
        self._num_planned = 0
        self._ended_since_plan = False  # the workers are told with the next plan, even if nothing is left

    def records(self) -> Iterator[Record]:
        """The trace, in the golden format: a record for each call of the engine core."""
        call = empty = 0
        while self._arrivals or self._has_requests() or self.in_flight:
            self._arrive(call)
            record = self._call()
            yield {"call": call, **record}
            nothing_moves = not self._arrivals and record.get("plan", {}).get("tokens") == []
            empty = empty + 1 if nothing_moves and (self.waiting or self.running) else 0
            if empty == STUCK_AFTER:
                self.defect = self.defect or "stuck"
                return
            call += 1

    def _has_requests(self) -> bool:
        return bool(self.waiting or self.running or self._ended_since_plan)

    def _call(self) -> Record:
        record: Record = {}
        if self._has_requests():
            plan, record["plan"] = self._schedule()
            self.in_flight.append(plan)
            if len(self.in_flight) < MAX_IN_FLIGHT and (plan.computes or self._has_requests()):
                return record
        if self.in_flight:
            record["update"] = self._commit(self.in_flight.pop(0))
        return record

    def _schedule(self) -> tuple[Plan, Record]:
        batch, record = self._plan()
        samples = []
        for job, tokens in batch.items():
            job.computed += tokens
            if job.computed == job.length + job.pending:
                job.pending += 1
                samples.append((job, job.num_preemptions))
        plan = Plan(self._num_planned, bool(batch), samples)
        self._num_planned += 1
        self._ended_since_plan = False
        decided = ("tokens", "new", "resumed", "preempted")
        after = ("free_blocks", "running", "waiting")
        return plan, {
            "number": plan.number,
            **{key: record[key] for key in decided},
            "samples": [job.name for job, _ in samples],
            **{key: record[key] for key in after},
        }

    def _behind(self, job: Job) -> int:
        length = job.length + job.pending
        return 0 if self._ends(job, length) else length - job.computed

    def _preempt(self, job: Job) -> None:
        super()._preempt(job)
        job.pending = 0
        job.num_preemptions += 1

    def _commit(self, plan: Plan) -> Record:
        finished = []
        for job, num_preemptions in plan.samples:
            job.length += 1
            if job.num_preemptions == num_preemptions:
                job.pending -= 1
            if self._ends(job, job.length):
                finished.append(job)
                self.free += job.blocks
                queue = self.running if job in self.running else self.waiting
                queue.remove(job)
            elif job in self.waiting:
                self._note_if_hopeless(job)
        self._ended_since_plan |= bool(finished)
        return {
            "number": plan.number,
            "accepted": [job.name for job, _ in plan.samples],
            "finished": in_file_order(finished),
            "free_after": self.free,
            "running": [job.name for job in self.running],
            "waiting": [job.name for job in self.waiting],
        }
