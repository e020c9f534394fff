"""What the device pool held: token states, waste and free blocks, from when to when and averaged over time.

Shares of all slots C, as in the PagedAttention paper (section 4, figure 2), for a paged pool:

    U  slots that hold KV
    S  slots that the step at hand is writing
    R  allocated, empty, and written by a later step (reserved)
    I  allocated, and never written: final lengths are known after the run (internal fragmentation)
    E  too fragmented to be allocated: 0, every free block serves any request
    F  free                         K  cached and unreferenced

A step's blocks are allocated when it is planned and its KV is there when it is committed, so a prefill fills
S for as long as it runs: that is memory at work, not waste. The log does not tell cached from free blocks, so
K is part of F. U + S + R + I + E + F + K = 1.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from engine.telemetry.runlog import Log
from engine.telemetry.series import binned_chunks, lengths_ns, series_chunks, span_ns, time_series
from engine.telemetry.window import clipped

SHARES = ("U", "S", "R", "I", "E", "F", "K")
NAMES = ("token_states", "written", "reserved", "internal", "external", "free", "cached")


def memory_states(log: Log) -> pd.DataFrame:
    """`time_series` with SHARES, tail waste W = R + I, block_usage and token_usage as shares of the pool.

    With several sequences a request, a block shared by all of them until one writes to it is charged once,
    so I is capped by W: exact from the moment that each has its last block to itself.

    Raises:
        ValueError: a share is negative or the shares do not add up to 1; the log contradicts itself.
    """
    return _states(time_series(log), log)


def binned_states(log: Log, num_bins: int) -> pd.DataFrame:
    """`memory_states`, averaged over equal stretches of time if there are more rows than that."""
    chunks = (_states(series, log) for series in series_chunks(log))
    states = binned_chunks(chunks, span_ns(log), num_bins)
    return states if len(states) else memory_states(log)


def _states(series: pd.DataFrame, log: Log) -> pd.DataFrame:
    slots = log.capacity.num_blocks * log.capacity.block_size
    free = series["num_free_blocks"] * log.capacity.block_size
    kv, written = series["num_kv_tokens"], series["num_written_tokens"]
    waste = slots - free - kv - written
    unused = np.minimum(series["num_unused_slots"], waste)
    shares = {"U": kv, "S": written, "R": waste - unused, "I": unused, "E": 0, "F": free, "K": 0}
    states = pd.DataFrame(shares, index=series.index, dtype="float64") / slots
    broken = (states < 0).any(axis=1) | ((states.sum(axis=1) - 1).abs() > 1e-9)
    if broken.any():
        begin_ns = int(series["begin_ns"][broken].iloc[0])
        raise ValueError(f"memory at {begin_ns} ns does not add up: {states[broken].iloc[0].to_dict()}")
    usage = {"block_usage": 1 - free / slots, "token_usage": states["U"]}
    return series.assign(**states, W=states["R"] + states["I"], **usage)


AVERAGED = (*SHARES, "W", "block_usage", "token_usage", "num_running", "num_table_blocks")


def memory_summary(log: Log, window_ns: tuple[int, int] | None = None) -> dict[str, float]:
    """Means over the run (integral / duration), in which idle time counts as an empty pool; and peaks.

    `window_ns` is the part of the run to look at, if not all.

    `sharing_saving` = (blocks over all block tables - distinct blocks) / blocks over all block tables.
    `tail_waste_tokens` is W over the number of running requests: about (block size - 1) / 2 where blocks are
    taken on demand and n = 1.
    """
    num_blocks, block_size = log.capacity.num_blocks, log.capacity.block_size
    sums, length_ns, peak = dict.fromkeys(AVERAGED, 0.0), 0, np.nan
    for series in series_chunks(log):
        states = _states(series if window_ns is None else clipped(series, window_ns), log)
        weights = lengths_ns(states)
        length_ns += int(weights.sum())
        for name in AVERAGED:
            sums[name] += float((states[name].to_numpy() * weights).sum())
        peak = np.fmax(peak, states["block_usage"].max())
    mean = {name: total / length_ns if length_ns else np.nan for name, total in sums.items()}

    def ratio(part: float, whole: float) -> float:
        return part / whole if whole > 0 else np.nan

    tables = mean["num_table_blocks"]
    return {
        **{f"mean_{name}_share": mean[share] for name, share in zip(NAMES, SHARES, strict=True)},
        "mean_block_usage": mean["block_usage"],
        "mean_token_usage": mean["token_usage"],
        "max_block_usage": float(peak),
        "mean_tail_waste_share": mean["W"],
        "mean_tail_waste_tokens": ratio(mean["W"] * num_blocks * block_size, mean["num_running"]),
        # Tables that have ended keep no block, shared ones count once: never negative but for rounding.
        "sharing_saving": float(np.maximum(0.0, ratio(tables - mean["block_usage"] * num_blocks, tables))),
    }
