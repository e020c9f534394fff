"""SimPy owns the time of a simulation: its processes run where the driver lets time pass."""

from __future__ import annotations

from collections.abc import Generator

from simpy import Event

from sim.clock import SimulatedClock


def test_whatever_happens_by_a_moment_has_happened_when_the_driver_looks() -> None:
    clock = SimulatedClock()
    seen: list[int] = []

    def link() -> Generator[Event, object, None]:
        for _ in range(4):
            yield clock.env.timeout(10)
            seen.append(clock.now_ns())
            yield clock.env.timeout(0)
            seen.append(clock.now_ns())

    clock.env.process(link())
    clock.wait_until(25)
    assert (clock.now_ns(), seen) == (25, [10, 10, 20, 20])
    clock.wait_until(30)
    assert (clock.now_ns(), seen[4:]) == (30, [30, 30])
    clock.wait_until(30)
    clock.wait_until(7)
    assert clock.now_ns() == 30 and type(clock.now_ns()) is int
    clock.wait_until(100)
    assert (clock.now_ns(), seen[6:]) == (100, [40, 40])


def test_a_process_that_begins_when_the_driver_has_looked_runs_with_the_next_wait() -> None:
    clock = SimulatedClock()
    clock.wait_until(5)
    seen: list[int] = []

    def link() -> Generator[Event, object, None]:
        seen.append(clock.now_ns())
        yield clock.env.timeout(0)
        seen.append(clock.now_ns())

    clock.env.process(link())
    clock.wait_until(5)
    assert seen == [5, 5]
