"""The driver of the simulated world: SimPy owns the time, in integer nanoseconds."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple, cast

from simpy import Environment, Event

from engine.core.laws import LawBroken
from engine.core.serving import Serving
from engine.core.spec import RequestSpec

MAX_EMPTY_STEPS = 1000
"""A backstop against a simulation that never ends; LawfulScheduler holds law 6 to a bound of a few steps."""
NO_ABORTS: Mapping[str, int] = MappingProxyType({})


def simulate(
    serving: Serving,
    specs: Sequence[RequestSpec],
    *,
    aborts_ns: Mapping[str, int] = NO_ABORTS,
) -> int:
    """Serve a workload to its end and return the time at which the last step ended, in ns from 0.

    `aborts_ns` says when the clients of some requests go away; one that has not arrived by then, or has
    ended, is not touched.

    What happens at the same moment happens in this order: a step ends, requests enter in order of their ids,
    requests are aborted, the next step is planned. Those that arrive during a step wait for the next; an
    abort takes effect at once. A request that is refused is told to the observers, and the others go on.
    Raises LawBroken if the scheduler gives up on outstanding requests (law 6, progress).
    """
    env = Environment(initial_time=0)
    clients = _Clients(env, serving, specs, aborts_ns)
    engine = env.process(_engine(env, serving, clients))
    # The conjunction hands on an exception of either process as it is; SimPy would make a copy of one.
    env.run(until=engine & env.process(clients.run()))
    return cast(int, engine.value)


class _Turn(NamedTuple):
    """A request arrives, or its client goes away. In order of time; arrivals first, then by id."""

    time_ns: int
    is_abort: bool
    request_id: str


class _Clients:
    """What they have not done yet, and the event for which an idle engine waits."""

    def __init__(
        self, env: Environment, serving: Serving, specs: Sequence[RequestSpec], aborts_ns: Mapping[str, int]
    ) -> None:
        self._env = env
        self._serving = serving
        turns: list[tuple[_Turn, RequestSpec | None]]
        turns = [(_Turn(spec.arrival_ns, False, spec.request_id), spec) for spec in specs]
        turns += [(_Turn(time_ns, True, request_id), None) for request_id, time_ns in aborts_ns.items()]
        turns.sort(key=lambda turn: turn[0])
        self._to_come = deque(turns)
        self._turn = env.event()

    @property
    def are_done(self) -> bool:
        """Nobody will arrive or go away any more."""
        return not self._to_come

    def next_turn(self) -> Event:
        """The event of the next arrival or abort."""
        self._turn = self._env.event()
        return self._turn

    def act(self) -> None:
        """All that is due by now happens."""
        now_ns = int(self._env.now)
        while self._to_come and self._to_come[0][0].time_ns <= now_ns:
            turn, spec = self._to_come.popleft()
            if spec is None:
                self._serving.abort(turn.request_id, now_ns)
            else:
                self._serving.try_arrive(spec, now_ns)

    def run(self) -> Generator[Event, object, None]:
        while self._to_come:
            yield self._env.timeout(self._to_come[0][0].time_ns - int(self._env.now))
            # A step that ends at this moment is committed first, whichever of the two events SimPy had first;
            # the engine lets the clients act then.
            yield self._env.timeout(0)
            self.act()
            if not self._turn.triggered:
                self._turn.succeed()


def _engine(env: Environment, serving: Serving, clients: _Clients) -> Generator[Event, object, int]:
    num_empty_steps = end_ns = 0
    while True:
        clients.act()
        flight = serving.begin(int(env.now))
        if flight is None:
            if clients.are_done:
                break
            yield clients.next_turn()
            continue
        result = serving.collect(flight)
        yield env.timeout(result.duration_ns)
        end_ns = int(env.now)
        serving.finish(flight, result, end_ns)
        num_empty_steps = 0 if flight.plan.num_tokens else num_empty_steps + 1
        if num_empty_steps > MAX_EMPTY_STEPS:
            raise LawBroken(
                6, f"{num_empty_steps} steps in a row computed no token, the last at {env.now} ns"
            )
    if not serving.scheduler.is_idle:
        text = f"requests are outstanding at {env.now} ns, none will arrive, and the scheduler plans nothing"
        raise LawBroken(6, text)
    return end_ns
