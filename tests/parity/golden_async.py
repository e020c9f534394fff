"""Run a golden scenario through our core with two plans in flight, as vLLM's engine core drives its
AsyncScheduler, and say what it decided in the words of the golden traces.

The core is asked for its queues, its free blocks and the chunks of its plans; who is new, resumed or
preempted is seen from the queues before and after.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from engine.core.plan import Finish, FinishReason, StepPlan, StepResult
from engine.core.request import Request
from tests.parity.golden import NS_PER_STEP, Record, Run

MAX_IN_FLIGHT = 2


def expected_v1_async(golden: Record) -> Record:
    """A record of the real scheduler, with the calls that planned or committed nothing spelt out."""
    return {"plan": None, "update": None} | golden


class AsyncRun:
    """A scheduler in the hands of the engine core's loop, with the fake model of the golden traces.

    Real plans and empty ones (None) alike have a number and a place among those in flight.
    """

    def __init__(self, run: Run) -> None:
        self.scheduler = run.scheduler
        self._arrivals = deque(run.specs)
        # A request's place in the file is in the fraction of its arrival.
        self._position = {spec.request_id: spec.arrival_ns % NS_PER_STEP for spec in run.specs}
        self._specs = {spec.request_id: spec for spec in run.specs}
        self._length = {spec.request_id: spec.num_prompt_tokens for spec in run.specs}
        self._ran: set[str] = set()
        self._in_flight: deque[tuple[int, StepPlan | None]] = deque()
        self._num_planned = 0
        self._ended_since_plan = False
        self._rejected: list[str] = []

    def records(self, num_calls: int) -> Iterator[Record]:
        """One record a call; `finished` and `rejected` are of the whole call."""
        for call in range(num_calls):
            now_ns = call * NS_PER_STEP
            self._rejected = self._arrive(now_ns)
            record = {"plan": None, "update": None} | self._call(now_ns)
            finished = (record["update"] or {}).get("finished", [])
            yield {"call": call, **record, "finished": finished, "rejected": self._rejected}

    def _arrive(self, now_ns: int) -> list[str]:
        """Requests that are refused at once."""
        refused = []
        while self._arrivals and self._arrivals[0].arrival_ns < now_ns + NS_PER_STEP:
            spec = self._arrivals.popleft()
            self.scheduler.add(Request(spec), now_ns)
            if spec.request_id not in self.scheduler.state.requests:
                refused.append(spec.request_id)
        return refused

    def _has_requests(self) -> bool:
        return bool(self.scheduler.state.requests) or self._ended_since_plan

    def _call(self, now_ns: int) -> Record:
        record: Record = {}
        if self._has_requests():
            plan, record["plan"] = self._schedule(now_ns)
            self._in_flight.append((record["plan"]["number"], plan))
            if len(self._in_flight) < MAX_IN_FLIGHT and (record["plan"]["tokens"] or self._has_requests()):
                return record
        if self._in_flight:
            record["update"] = self._commit(*self._in_flight.popleft(), now_ns)
        return record

    def _schedule(self, now_ns: int) -> tuple[StepPlan | None, Record]:
        before = self._queues()
        plan = self.scheduler.schedule(now_ns)
        after = self._queues()
        self._rejected += [name for name in before["waiting"] if name not in self.scheduler.state.requests]
        chunks = plan.chunks if plan is not None else ()
        number, self._num_planned = self._num_planned, self._num_planned + 1
        self._ended_since_plan = False
        admitted = [name for name in after["running"] if name in set(before["waiting"])]
        fresh = [name for name in admitted if name not in self._ran]
        self._ran.update(fresh)
        return plan, {
            "number": number,
            "tokens": [[chunk.request_id, chunk.num_tokens] for chunk in chunks],
            "new": [[name, 0] for name in fresh],
            "resumed": self._in_file_order(set(admitted) - set(fresh)),
            "preempted": self._in_file_order(set(before["running"]) & set(after["waiting"])),
            "samples": [chunk.request_id for chunk in chunks if chunk.samples],
            "free_blocks": self.scheduler.state.kv.device.num_free,
            **after,
        }

    def _queues(self) -> dict[str, list[str]]:
        return {
            "running": [request.id for request in self.scheduler.state.running],
            "waiting": [request.id for request in self.scheduler.state.waiting],
        }

    def _commit(self, number: int, plan: StepPlan | None, now_ns: int) -> Record:
        accepted = [chunk.request_id for chunk in plan.chunks if chunk.samples] if plan is not None else []
        for name in accepted:
            self._length[name] += 1
        ended = [Finish(name, 0, FinishReason.LENGTH) for name in accepted if self._ends(name)]
        held = set(self.scheduler.state.requests)
        if plan is not None:
            self.scheduler.commit(plan, StepResult(0, tuple(ended)), now_ns)
        finished = held - set(self.scheduler.state.requests)
        self._ended_since_plan |= bool(finished)
        return {
            "number": number,
            "accepted": accepted,
            "finished": self._in_file_order(finished),
            "free_after": self.scheduler.state.kv.device.num_free,
            **self._queues(),
        }

    def _ends(self, name: str) -> bool:
        spec, length = self._specs[name], self._length[name]
        room = self.scheduler.limits.max_model_len
        return length >= room or length - spec.num_prompt_tokens >= spec.max_tokens

    def _in_file_order(self, names: set[str]) -> list[str]:
        return sorted(names, key=self._position.__getitem__)
