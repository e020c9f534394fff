"""The clock of the simulated world: SimPy owns the time, in integer nanoseconds."""

from __future__ import annotations

from simpy import Environment, Event
from simpy.events import EventPriority

from engine.core.plan import StepResult
from engine.core.serving import Flight

LAST = EventPriority(2)
"""Behind SimPy's own two priorities, which are 0 and 1."""


class SimulatedClock:
    """Time passes where the driver lets it, and SimPy's processes run meanwhile.

    When the driver looks, all that they do by that moment has been done.
    """

    def __init__(self) -> None:
        self.env = Environment(initial_time=0)
        """For processes that share the time with the driver."""
        self._end_ns = 0

    def now_ns(self) -> int:
        """Nanoseconds since the clock was made."""
        return int(self.env.now)

    def wait_until(self, time_ns: int) -> None:
        """Run all events up to then."""
        moment = _Moment(self.env, max(0, time_ns - self.now_ns()))
        while not moment.processed:
            self.env.step()

    def end_ns(self, flight: Flight, result: StepResult) -> int:
        """Steps run one after the other: one begins when it is planned, or when the one before it ends."""
        self._end_ns = max(self._end_ns, flight.start_ns) + result.duration_ns
        return self._end_ns


class _Moment(Event):
    """Comes when everything else has happened that happens at its time."""

    def __init__(self, env: Environment, delay_ns: int) -> None:
        super().__init__(env)
        self._ok = True
        self._value = None
        env.schedule(self, LAST, delay_ns)
