"""The driver of both worlds: requests arrive and are aborted, and steps follow one another.

What happens at the same moment happens in this order: a step ends, requests enter in order of their ids,
requests are aborted, the next step is planned. Who arrives during a step enters then and waits for the next
plan; an abort takes effect at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Protocol

from engine.core.events import Event
from engine.core.fields import Count, check_value
from engine.core.laws import LawBroken
from engine.core.plan import StepResult
from engine.core.serving import Flight, Serving

MAX_EMPTY_STEPS = 1000
"""A backstop against a run that never ends; LawfulScheduler holds law 6 to a bound of a few steps."""
FOREVER_NS = 1 << 62
"""When something is due of which only its coming will tell the time."""


class Source(Protocol):
    """Who arrives, who goes away, and when."""

    def next_ns(self) -> int | None:
        """When the next arrival or abort is due; None if none will come any more, unless some request ends.

        FOREVER_NS if one may come at any time: then the clock is woken for it.
        """
        ...

    def deliver(self, now_ns: int, serving: Serving) -> None:
        """All that is due by now enters or is aborted: in order of time, arrivals first, then by id."""
        ...

    def told(self, events: Sequence[Event]) -> None:
        """What the clients hear when a step has been committed."""
        ...


class Clock(Protocol):
    """Time in integer nanoseconds, which never goes back."""

    def now_ns(self) -> int:
        """Since the clock was made."""
        ...

    def wait_until(self, time_ns: int) -> None:
        """Let time pass, to `time_ns` or until something has happened for which the driver should look."""
        ...

    def end_ns(self, flight: Flight, result: StepResult) -> int:
        """When this step ends, whose result has been collected. Asked once for each, in order."""
        ...


def drive(serving: Serving, source: Source, clock: Clock, in_flight: Count = 1) -> int:
    """Serve what comes, to the end; the time in ns at which the last step ended, 0 if there was none.

    Up to `in_flight` plans are out at once: with 1 a step is planned when the one before has been committed,
    with 2 while it runs. A request that cannot be served is refused: the observers are told why, and the
    others go on.

    Tokens are dated by the end of their step, at which it is committed. Then the clock is read again
    (`Observer.closed`): in the engine commit and observers have done their work by that time, so the period
    of a step holds its own planning, execution and bookkeeping, and busy periods leave no gap.

    Raises:
        LawBroken: requests are outstanding, and the scheduler plans nothing, or only empty steps (law 6).
    """
    check_value("driver.in_flight", in_flight, Count)
    flights: deque[Flight] = deque()
    num_empty_steps = end_ns = 0
    while True:
        now_ns = clock.now_ns()
        source.deliver(now_ns, serving)
        flight = serving.begin(now_ns)
        if flight is not None:
            flights.append(flight)
            if len(flights) < in_flight:
                continue
        if flights:
            flight = flights.popleft()
            end_ns = _land(flight, serving, source, clock)
            num_empty_steps = 0 if flight.plan.num_tokens else num_empty_steps + 1
            if num_empty_steps > MAX_EMPTY_STEPS:
                raise LawBroken(
                    6, f"{num_empty_steps} steps in a row computed no token, the last at {end_ns} ns"
                )
        elif (next_ns := source.next_ns()) is not None:
            clock.wait_until(next_ns)
        elif serving.scheduler.is_idle:
            return end_ns
        else:
            what = "none will arrive, and the scheduler plans nothing"
            raise LawBroken(6, f"requests are outstanding at {now_ns} ns, {what}")


def _land(flight: Flight, serving: Serving, source: Source, clock: Clock) -> int:
    """A step comes to its end, which is returned; what is due before then happens at its own time."""
    result = serving.collect(flight)
    end_ns = clock.end_ns(flight, result)
    while (due_ns := source.next_ns()) is not None and due_ns < end_ns:
        clock.wait_until(due_ns)
        source.deliver(due_ns, serving)
    clock.wait_until(end_ns)
    source.told(serving.finish(flight, result, end_ns))
    return end_ns
