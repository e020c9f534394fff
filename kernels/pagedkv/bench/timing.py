"""Time on a GPU: CUDA events around replays of a CUDA graph, so that no launch by Python is in it."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

import torch

ROUNDS = 7
ROUND_SECONDS = 0.02
"""A round lasts about so long: far above the resolution of an event, 0.5 us, and the start of a replay."""
WARM_UPS = 2
"""Calls before a capture: they compile, choose algorithms and load modules, none of which may be captured."""

Call = Callable[[], object]


def graph_seconds(calls: Sequence[Call]) -> float:
    """Seconds a call, the median of several rounds; the calls are captured in one graph, one after another.

    Each call should read other memory than the one before, three times the L2 cache in all, so that none
    finds its data there.
    """
    graph = _capture(calls)
    graph.replay()
    torch.cuda.synchronize()
    once = _elapsed_seconds(graph.replay, 1)
    replays = max(1, round(ROUND_SECONDS / max(once, 1e-6)))
    return statistics.median(_elapsed_seconds(graph.replay, replays) for _ in range(ROUNDS)) / len(calls)


def _capture(calls: Sequence[Call]) -> torch.cuda.CUDAGraph:
    """Warm up on a side stream, as capture asks for, then capture on the same stream."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UPS):
            for call in calls:
                call()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for call in calls:
            call()
    return graph


def stream_seconds(call: Call) -> float:
    """Seconds a call that is launched from Python each time, the median of several rounds.

    For what cannot be captured, and for what is launched so in the engine; the first calls warm up.
    """
    for _ in range(WARM_UPS):
        call()
    torch.cuda.synchronize()
    once = _elapsed_seconds(call, 1)
    repeats = max(1, round(ROUND_SECONDS / max(once, 1e-6)))
    return statistics.median(_elapsed_seconds(call, repeats) for _ in range(ROUNDS))


def _elapsed_seconds(call: Call, repeats: int) -> float:
    """Seconds a call between two events on the current stream."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(repeats):
        call()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3 / repeats


def num_cold(bytes_a_call: int, device: torch.device, max_calls: int = 64) -> int:
    """How many calls on memory of their own it takes to read three times the L2 cache, at least two."""
    cache_bytes = torch.cuda.get_device_properties(device).L2_cache_size
    return min(max_calls, max(2, -(-3 * cache_bytes // bytes_a_call)))
