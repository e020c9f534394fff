"""The driver of the simulated world: SimPy owns the time, in integer nanoseconds."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Sequence

from simpy import Environment, Event

from engine.core.backend import RequestSpec
from engine.core.laws import LawBroken
from engine.core.serving import Serving

FOREVER_NS = 1 << 62
MAX_BARREN_STEPS = 1000
"""A backstop against a simulation that never ends; LawfulScheduler holds law 6 to a bound of a few steps."""


def simulate(serving: Serving, specs: Sequence[RequestSpec], *, leaps: bool = True) -> int:
    """Serve a workload to its end and return the time at which the last step ended, in ns from 0.

    With `leaps`, stretches of steps that can only repeat the one before are taken at once; the run log is the
    same as without (law 10), sooner.

    Requests enter in order of (arrival, id). Those that arrive at the very moment at which a step starts
    enter before it is planned; those that arrive during a step wait for the next. Raises LawBroken if the
    scheduler gives up on outstanding requests (law 6, progress).
    """
    env = Environment(initial_time=0)
    door = _Door(env, serving, specs)
    # The conjunction hands on an exception of either process as it is; SimPy would make a copy of the door's.
    env.run(until=env.process(_engine(env, serving, door, leaps)) & env.process(door.run()))
    return int(env.now)


class _Door:
    """Requests that have not arrived yet, and the event for which an idle engine waits."""

    def __init__(self, env: Environment, serving: Serving, specs: Sequence[RequestSpec]) -> None:
        self._env = env
        self._serving = serving
        self._to_come = deque(sorted(specs, key=lambda spec: (spec.arrival_ns, spec.request_id)))
        self._knock = env.event()

    @property
    def closed(self) -> bool:
        """Everybody has arrived."""
        return not self._to_come

    @property
    def quiet_ns(self) -> int:
        """Time until the next arrival."""
        return self._to_come[0].arrival_ns - int(self._env.now) if self._to_come else FOREVER_NS

    def knock(self) -> Event:
        """The event of the next arrival."""
        self._knock = self._env.event()
        return self._knock

    def let_in(self) -> None:
        """Whoever has arrived by now enters.

        Both processes call this, so it does not matter which of two simultaneous events SimPy handles first.
        """
        now_ns = int(self._env.now)
        while self._to_come and self._to_come[0].arrival_ns <= now_ns:
            self._serving.arrive(self._to_come.popleft(), now_ns)

    def run(self) -> Generator[Event, object, None]:
        while self._to_come:
            yield self._env.timeout(self._to_come[0].arrival_ns - int(self._env.now))
            self.let_in()
            if not self._knock.triggered:
                self._knock.succeed()


def _engine(env: Environment, serving: Serving, door: _Door, leaps: bool) -> Generator[Event, object, None]:
    num_barren_steps = 0
    while True:
        door.let_in()
        flight = serving.begin(int(env.now), door.quiet_ns if leaps else None)
        if flight is None:
            if door.closed:
                break
            yield door.knock()
            continue
        result = serving.collect(flight)
        yield env.timeout(result.total_ns)
        serving.finish(flight, result, int(env.now))
        num_barren_steps = 0 if flight.plan.num_tokens else num_barren_steps + 1
        if num_barren_steps > MAX_BARREN_STEPS:
            raise LawBroken(
                6, f"{num_barren_steps} steps in a row computed no token, the last at {env.now} ns"
            )
    if not serving.scheduler.is_idle:
        text = f"requests are outstanding at {env.now} ns, none will arrive, and the scheduler plans nothing"
        raise LawBroken(6, text)
