"""Both worlds, alike in everything but who owns the time: runs in them must be equal to the nanosecond."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from engine.core.drive import Clock, Source, drive
from engine.core.events import Event
from engine.core.plan import StepPlan, StepResult
from engine.core.policies.admission import FullPrompt
from engine.core.policies.base import Policies
from engine.core.policies.batching import DecodeFirst
from engine.core.policies.order import Fcfs
from engine.core.policies.reservation import OnDemand
from engine.core.policies.restore import Swap
from engine.core.policies.victim import LastAdmitted
from engine.core.scheduler import Scheduler
from engine.core.serving import Serving
from engine.core.sources import NO_ABORTS, Listed
from engine.core.spec import Capacity, Limits, RequestSpec
from engine.core.work import Work
from engine.runtime.clock import VirtualClock
from sim.backend import SimulatedBackend
from sim.clock import SimulatedClock

POOL = Capacity(64, 64, block_size=4)
WINDOW = 200


class UnitCost:
    """100 ns a step and 1 ns a token."""

    def parts_ns(self, step: Work) -> dict[str, float]:
        return {"overhead": 100.0, "linear": float(step.num_tokens), "transfers": 10.0 * step.num_transfers}

    def recompute_ns(self, num_tokens: int) -> int:
        return num_tokens

    def transfer_ns(self, num_blocks: int) -> int:
        return 10


class Step(NamedTuple):
    start_ns: int
    end_ns: int
    request_ids: tuple[str, ...]


class Recorder:
    """Everything that an observer hears, in the order in which it hears it."""

    def __init__(self) -> None:
        self.heard: list[object] = []
        self.events: list[Event] = []
        self.arrival_ns: dict[str, int] = {}

    def arrived(self, spec: RequestSpec, now_ns: int) -> None:
        self.arrival_ns[spec.request_id] = spec.arrival_ns
        self.heard.append((spec.request_id, now_ns))

    def refused(self, spec: RequestSpec, reason: str, now_ns: int) -> None:
        self.heard.append((spec.request_id, now_ns, reason))

    def stepped(
        self, plan: StepPlan, result: StepResult, start_ns: int, end_ns: int, events: Sequence[Event]
    ) -> None:
        self.heard.append(Step(start_ns, end_ns, tuple(chunk.request_id for chunk in plan.chunks)))
        self.events.extend(events)

    def closed(self, now_ns: int) -> None:
        assert now_ns == max(step.end_ns for step in self.heard if isinstance(step, Step))


class Working(SimulatedBackend):
    """A backend that works for as long as a step takes: on the machine's clock, which only that pushes on."""

    work_ns = 0

    def collect(self, ticket: object) -> StepResult:
        result = super().collect(ticket)
        Working.work_ns += result.duration_ns
        return result


class World:
    """One of the two, with everything alike but who owns the time."""

    def __init__(self, name: str) -> None:
        self._kind = Working if name == "engine" else SimulatedBackend
        self._is_engine = name == "engine"

    def backend(self, capacity: Capacity = POOL) -> SimulatedBackend:
        return self._kind(capacity, UnitCost(), WINDOW)

    def clock(self) -> Clock:
        return VirtualClock(Working.work_ns) if self._is_engine else SimulatedClock()

    def drive(
        self, source: Source, num_blocks: int = POOL.num_blocks, in_flight: int = 1
    ) -> tuple[int, Recorder]:
        """Serve with a plain scheduler; the end, and what was heard."""
        capacity = replace(POOL, num_blocks=num_blocks)
        policies = Policies(Fcfs(), FullPrompt(), DecodeFirst(), LastAdmitted(), Swap(), OnDemand())
        limits = Limits(max_num_seqs=8, max_num_batched_tokens=64, max_model_len=WINDOW)
        recorder = Recorder()
        serving = Serving(Scheduler(capacity, limits, policies), self.backend(capacity), [recorder])
        return drive(serving, source, self.clock(), in_flight), recorder

    def serve(
        self,
        specs: Iterable[RequestSpec],
        num_blocks: int = POOL.num_blocks,
        aborts_ns: Mapping[str, int] = NO_ABORTS,
    ) -> tuple[int, Recorder]:
        return self.drive(Listed(specs, aborts_ns), num_blocks)


def spec(request_id: str, arrival_ns: int, num_prompt: int = 10, num_output: int = 2) -> RequestSpec:
    return RequestSpec(request_id, arrival_ns, num_prompt, max_tokens=100, num_output_tokens=num_output)
