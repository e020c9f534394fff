"""The two clocks of a driver; both count integer nanoseconds from the moment they are made."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Protocol


class Clock(Protocol):
    """Monotonic time, and a way to let it pass."""

    def now_ns(self) -> int:
        """Nanoseconds since the clock was made."""
        ...

    def wait_until(self, time_ns: int) -> None:
        """Return when `now_ns()` is at least `time_ns`."""
        ...


@dataclass(slots=True)
class WallClock:
    """Real time: waiting sleeps."""

    _origin_ns: int = field(default_factory=time.perf_counter_ns)

    def now_ns(self) -> int:
        """Nanoseconds since the clock was made."""
        return time.perf_counter_ns() - self._origin_ns

    def wait_until(self, time_ns: int) -> None:
        """Sleep until then."""
        while (remaining_ns := time_ns - self.now_ns()) > 0:
            time.sleep(remaining_ns / 1e9)


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
