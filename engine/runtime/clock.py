"""The two clocks of the engine; both count integer nanoseconds from the moment they are made."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

from engine.core.plan import StepResult
from engine.core.serving import Flight


@dataclass(slots=True)
class WallClock:
    """Real time: waiting sleeps, until `wake` is called from another thread."""

    _origin_ns: int = field(default_factory=time.perf_counter_ns)
    _woken: threading.Event = field(default_factory=threading.Event)

    def now_ns(self) -> int:
        """Nanoseconds since the clock was made."""
        return time.perf_counter_ns() - self._origin_ns

    def wait_until(self, time_ns: int) -> None:
        """Sleep until then, or until woken; whoever was woken before it waited does not wait."""
        while (remaining_ns := time_ns - self.now_ns()) > 0:
            if self._woken.wait(min(remaining_ns / 1e9, threading.TIMEOUT_MAX)):
                self._woken.clear()
                return

    def wake(self) -> None:
        """End the wait of the driver, or its next one: there is something to look at."""
        self._woken.set()

    def end_ns(self, flight: Flight, result: StepResult) -> int:
        """Now: whose result has been collected, that step has ended."""
        return self.now_ns()


@dataclass(slots=True)
class VirtualClock:
    """Real time without the idle parts: work takes as long as it takes, waiting takes nothing."""

    _origin_ns: int = field(default_factory=time.perf_counter_ns)
    skipped_ns: int = 0
    """Idle time that was leapt over."""

    def now_ns(self) -> int:
        """Nanoseconds since the clock was made, the skipped ones included."""
        return time.perf_counter_ns() - self._origin_ns + self.skipped_ns

    def wait_until(self, time_ns: int) -> None:
        """Move the clock forward to then."""
        self.skipped_ns += max(0, time_ns - self.now_ns())

    def end_ns(self, flight: Flight, result: StepResult) -> int:
        """Now: whose result has been collected, that step has ended."""
        return self.now_ns()
