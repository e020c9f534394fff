"""Arrivals that were logged in ticks: found in the stamps themselves, and spread."""

from __future__ import annotations

import numpy as np

from sim.workloads.base import IntArray

JITTER_NS = 10_000_000
"""How far a stamp may lie from its tick: those of Mooncake's conversation trace lie within 3 ms."""
MIN_TICK_NS = 20 * JITTER_NS
"""Below this a stamp lies at a multiple by chance too often."""
MIN_TICKS = 8
"""With fewer, nothing is said about the others."""
NEARLY_ALL = 0.99
MOST_ALONE = 0.9
"""Requests that are paced, one a second say, are no batch of a log: in a log many share a tick."""


def share_at_multiples(times_ns: IntArray, tick_ns: int) -> float:
    """The share of times that lie within JITTER_NS of a multiple of the tick."""
    distance_ns = np.abs((times_ns + tick_ns // 2) % tick_ns - tick_ns // 2)
    return float((distance_ns <= JITTER_NS).mean())


def detect_tick_ns(times_ns: IntArray) -> int | None:
    """The tick, in whole milliseconds, at whose multiples nearly all of these ascending times lie; or None.

    Times closer together than the jitter are one tick. The gap between two ticks is one tick or several, so
    the median gap, or a small part of it, is a first guess; counting the ticks of all gaps makes it exact.
    """
    distinct = np.unique(times_ns)
    ticks = distinct[np.diff(distinct, prepend=distinct[0] - MIN_TICK_NS) > 2 * JITTER_NS]
    if len(ticks) < MIN_TICKS or len(ticks) > MOST_ALONE * len(times_ns):
        return None
    gaps_ns = np.diff(ticks)
    median_ns = float(np.quantile(gaps_ns, 0.5, method="lower"))
    for parts in range(1, 5):
        num_ticks = np.maximum(np.rint(gaps_ns * parts / median_ns), 1).sum()
        tick_ns = round(float(gaps_ns.sum() / num_ticks) / 1e6) * 10**6
        if tick_ns >= MIN_TICK_NS and share_at_multiples(times_ns - ticks[0], tick_ns) >= NEARLY_ALL:
            return tick_ns
    return None


def spread(times_ns: IntArray, tick_ns: int, rng: np.random.Generator) -> IntArray:
    """Ascending times, quantised to ticks, spread uniformly inside their ticks; the order stays.

    Stamps lie within milliseconds of multiples of the tick (0, 2999, 6000), so round to find their tick.
    """
    ticks = (times_ns + tick_ns // 2) // tick_ns
    return np.sort(ticks * tick_ns + rng.integers(tick_ns, size=len(times_ns)))
