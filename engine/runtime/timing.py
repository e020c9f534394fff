"""How long work takes that may only be queued when the call returns."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter_ns

import torch


def timed(device: torch.device, work: Callable[[], object]) -> Callable[[], int]:
    """Do `work` now; what is returned tells its nanoseconds, once the device has been synchronized.

    On a GPU two events in the current stream enclose the work (torch.cuda.Event, about 0.5 us resolution):
    the time is from the moment that the stream comes to the work until all of it is done.
    """
    if device.type != "cuda":
        start_ns = perf_counter_ns()
        work()
        took_ns = perf_counter_ns() - start_ns
        return lambda: took_ns
    stream = torch.cuda.current_stream(device)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    start.record(stream)
    work()
    end.record(stream)
    return lambda: round(start.elapsed_time(end) * 1e6)  # it counts in ms
