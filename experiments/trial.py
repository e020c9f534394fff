"""A scheduler on trial: every law checked after every verb, and the contents of memory after every step.

Who adds, aborts and ends is up to the driver: a seeded one (experiments.soak) or Hypothesis (tests/laws).
"""

from __future__ import annotations

from collections import Counter, deque
from itertools import product

from engine.core.events import ENDINGS, Event
from engine.core.laws import LawBroken
from engine.core.plan import StepPlan
from engine.core.policies.admission import Admission, FirstChunk, FullPrompt, Padded, Watermark
from engine.core.policies.base import Policies
from engine.core.policies.batching import ArrivalFirstChunked, Batching, DecodeFirst, PrefillFirst, Static
from engine.core.policies.order import Fcfs, Order, Priority
from engine.core.policies.reservation import OnDemand, Reservation, WholePrompt
from engine.core.policies.restore import Recompute, Restore, Swap, SwapIfSeveral
from engine.core.policies.victim import LastAdmitted, LowestPriority, Victim
from engine.core.request import Request
from engine.core.scheduler import Scheduler
from engine.core.serving import Flight, Serving
from engine.core.spec import Capacity, RequestSpec
from experiments.symbolic import SymbolicBackend


def every_combination() -> list[Policies]:
    """One Policies for each combination of the shipped choices."""
    orders: list[Order] = [
        Fcfs(),
        Fcfs(sorts=("running", "swapped")),
        Priority(),
        Priority(ageing_per_s=0.5),
    ]
    admissions: list[Admission] = [
        FullPrompt(),
        FullPrompt(watermark=0.2),
        FirstChunk(),
        Watermark(fraction=0.1),
        Watermark(fraction=0.1, headroom_per_seq=3),
        Padded(),
    ]
    batchings: list[Batching] = [Static(), PrefillFirst(), ArrivalFirstChunked(), DecodeFirst()]
    victims: list[Victim] = [LastAdmitted(), LowestPriority()]
    restores: list[Restore] = [Swap(), Recompute(), SwapIfSeveral()]
    reservations: list[Reservation] = [OnDemand(), WholePrompt()]
    return [
        Policies(*choices)
        for choices in product(orders, admissions, batchings, victims, restores, reservations)
    ]


class Trial:
    """Serves requests on a symbolic backend, step by step, and keeps count of what happened."""

    def __init__(self, scheduler: Scheduler, in_flight: int = 1) -> None:
        kv = scheduler.state.kv
        self.scheduler = scheduler
        capacity = Capacity(kv.device.num_blocks, kv.host.num_blocks, kv.block_size)
        self.backend = SymbolicBackend(capacity, scheduler.limits.max_model_len)
        self.serving = Serving(scheduler, self.backend)
        self.now_ns = 0
        self.in_flight = in_flight
        """Plans that may be out at once."""
        self.flights: deque[Flight] = deque()
        self.tally: Counter[str] = Counter()

    @property
    def outstanding(self) -> list[str]:
        """Requests that have not ended, in the order in which they came."""
        return list(self.scheduler.state.requests)

    def arrive(self, spec: RequestSpec) -> None:
        """A request enters."""
        self.serving.arrive(spec, self.now_ns)
        self.tally["requests"] += 1

    def abort(self, request_id: str) -> None:
        """A client goes away; a step may be in flight."""
        if not self.serving.abort(request_id, self.now_ns):
            raise LawBroken(2, f"{request_id} was outstanding, and cannot be aborted")

    def check_refuses_again(self, spec: RequestSpec) -> None:
        """An id that is outstanding, or whose end is still untold, is refused. Raises LawBroken 2 if not."""
        try:
            self.scheduler.add(Request(spec), self.now_ns)
        except ValueError:
            self.tally["refusals"] += 1
        else:
            raise LawBroken(2, f"{spec.request_id} entered a second time before its end was told")

    def begin(self) -> StepPlan | None:
        """Plan a step and execute it.

        Raises LawBroken 8 if the updates of the plan do not give the backend the tables of the block manager.
        """
        self._wipe_free_blocks()
        flight = self.serving.begin(self.now_ns)
        if flight is None:
            return None
        self.flights.append(flight)
        plan = flight.plan
        for chunk in plan.chunks:
            tables = self.scheduler.state.requests[chunk.request_id].tables
            for seq in chunk.seqs:
                if self.backend.tables[chunk.request_id, seq] != tables[seq]:
                    raise LawBroken(8, f"{chunk}: the updates do not give the tables {tables}")
        self.tally["steps"] += 1
        self.tally["tokens"] += plan.num_tokens
        for preemption in plan.preemptions:
            self.tally["fallbacks" if preemption.fell_back else preemption.kind] += 1
        return plan

    def end(self) -> list[Event]:
        """Commit the oldest step in flight."""
        flight = self.flights.popleft()
        result = self.serving.collect(flight)
        self.now_ns += result.duration_ns
        events = self.serving.finish(flight, result, self.now_ns)
        self.tally.update(event.kind for event in events)
        return events

    def drain(self) -> None:
        """Serve to the end. Raises LawBroken if that takes too long (6), or leaves anything behind (2, 3)."""
        since_end = 0
        while not self.scheduler.is_idle:
            plan = self.begin()
            if plan is None and not self.flights:
                raise LawBroken(6, f"nothing to do, but not idle: {self.outstanding}")
            if plan is not None and len(self.flights) < self.in_flight:
                continue
            kinds = {event.kind for event in self.end()}
            since_end = 0 if kinds & set(ENDINGS) else since_end + 1
            if since_end > self._patience():
                raise LawBroken(6, f"in {since_end} steps nobody ended: {self.scheduler.state.requests}")
        kv, backend = self.scheduler.state.kv, self.backend
        if kv.device.num_free != kv.device.num_blocks or kv.host.num_free != kv.host.num_blocks:
            raise LawBroken(3, f"idle, with {kv.device.num_free} of {kv.device.num_blocks} blocks free")
        if backend.requests or backend.tables:
            raise LawBroken(2, f"the backend still knows {sorted(backend.requests)}")

    def report(self) -> Counter[str]:
        """Counts of steps, requests, events, preemptions, and of what the backend was asked to do."""
        return self.tally + self.backend.tally

    def _patience(self) -> int:
        """Steps in which some request must end.

        At worst each token of the request that goes first costs a recomputation, token by token, and an entry
        of each of the others.
        """
        max_len = self.scheduler.limits.max_model_len
        return 8 + max_len * (max_len + 2 * len(self.scheduler.state.requests))

    def _wipe_free_blocks(self) -> None:
        kv = self.scheduler.state.kv
        self.backend.wipe(kv.device.free, kv.host.free)
