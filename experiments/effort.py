"""What a run cost the machine that it ran on."""

from __future__ import annotations

import gc
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Effort:
    """CPU time of the whole process, and wall time, of one serving loop; memory of the process so far."""

    cpu_s: float
    wall_s: float
    peak_rss_bytes: int


def measured(loop: Callable[[], object]) -> Effort:
    """Run a serving loop and say what it cost.

    The cyclic garbage collector rests meanwhile: the loop makes next to no cycles (a few small objects a
    request), so memory comes back by reference counts alone, and a collection is a quarter of the
    simulator's time and a pause in the middle of an engine's step. What survives the collection before the
    loop is frozen: torch and a model are a third of a second of every later one.
    """
    gc.collect()
    gc.freeze()
    gc.disable()
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    try:
        loop()
    finally:
        gc.enable()
    cpu_s, wall_s = time.process_time() - cpu_s, time.perf_counter() - wall_s
    return Effort(cpu_s, wall_s, peak_rss_bytes())


def peak_rss_bytes() -> int:
    """The largest resident size that this process ever had (getrusage: KiB on Linux, bytes on macOS)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
