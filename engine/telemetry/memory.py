"""What the device pool held: token states, waste and free blocks, at each step and averaged over time.

Shares of all slots C, as in the PagedAttention paper (section 4, figure 2), for a paged pool:

    U  slots that hold KV
    R  allocated, empty, and written later (reserved)
    I  allocated, and never written: final lengths are known after the run (internal fragmentation)
    E  too fragmented to be allocated: 0, every free block serves any request
    F  free                         K  cached and unreferenced

The log does not tell cached from free blocks, so K is part of F. U + R + I + E + F + K = 1.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from engine.telemetry.latency import Floats
from engine.telemetry.runlog import RunLog

SHARES = ("U", "R", "I", "E", "F", "K")


def memory_states(log: RunLog) -> pd.DataFrame:
    """One row a step: SHARES, tail waste W = R + I, block_usage and token_usage, as shares of the pool.

    With several sequences a request, a block shared by all of them until one writes to it is charged once,
    so I is capped by W: exact from the moment that each has its last block to itself.

    Raises:
        ValueError: a share is negative or the shares do not add up to 1; the log contradicts itself.
    """
    num_blocks, block_size = log.capacity.num_blocks, log.capacity.block_size
    slots = num_blocks * block_size
    free = log.steps["num_free_blocks"].to_numpy() * block_size
    kv = log.steps["num_kv_tokens"].to_numpy()
    waste = slots - free - kv
    unused = np.minimum(log.steps["num_unused_slots"].to_numpy(), waste)
    none = np.zeros_like(kv)
    states = pd.DataFrame(
        {"U": kv, "R": waste - unused, "I": unused, "E": none, "F": free, "K": none}, dtype="float64"
    )
    states /= slots
    broken = (states < 0).any(axis=1) | ((states.sum(axis=1) - 1).abs() > 1e-9)
    if broken.any():
        step = int(log.steps["step_id"][broken].iloc[0])
        raise ValueError(f"memory of step {step} does not add up: {states[broken].iloc[0].to_dict()}")
    return states.assign(W=states["R"] + states["I"], block_usage=1 - free / slots, token_usage=states["U"])


def held_ns(log: RunLog) -> Floats:
    """How long the state of each step lasts: to the start of the next one, or to its own end before an idle
    gap.

    A gap is idle if every request that had arrived had also ended; the pool is empty then.
    """
    starts, ends = log.steps["start_ns"].to_numpy(), log.steps["end_ns"].to_numpy()
    if not len(starts):
        return np.empty(0)
    arrivals = np.sort(log.requests["arrival_ns"].to_numpy())
    departures = np.sort(log.requests["end_ns"].dropna().to_numpy(dtype=np.int64))
    outstanding = np.searchsorted(arrivals, ends, "right") > np.searchsorted(departures, ends, "right")
    until = np.where(outstanding, np.append(starts[1:], ends[-1]), ends)
    held: Floats = (until - starts).astype(np.float64)
    return held


def memory_summary(log: RunLog, duration_ns: float) -> dict[str, float]:
    """Averages over `duration_ns` (integral / duration), idle time counted as an empty pool; and peaks.

    `sharing_saving` = (blocks over all block tables - distinct blocks) / blocks over all block tables.
    `tail_waste_tokens` is W over the number of running requests: about (block size - 1) / 2 where n = 1.
    """
    states, weights = memory_states(log), held_ns(log)
    slots = log.capacity.num_blocks * log.capacity.block_size

    def average(values: pd.Series) -> float:
        return float((values.to_numpy() * weights).sum() / duration_ns) if duration_ns else np.nan

    def ratio(part: pd.Series, whole: pd.Series) -> float:
        return average(part) / average(whole) if average(whole) > 0 else np.nan

    used_blocks = states["block_usage"] * log.capacity.num_blocks
    tables = log.steps["num_table_blocks"]
    idle = 1 - average(pd.Series(np.ones(len(states))))
    shares = {name: average(states[name]) for name in SHARES}
    shares["F"] += idle
    names = ("token_states", "reserved", "internal", "external", "free", "cached")
    return {
        **{f"mean_{long}_share": shares[short] for long, short in zip(names, SHARES, strict=True)},
        "mean_block_usage": average(states["block_usage"]),
        "mean_token_usage": average(states["token_usage"]),
        "max_block_usage": float(states["block_usage"].max()) if len(states) else np.nan,
        "mean_tail_waste_share": average(states["W"]),
        "mean_tail_waste_tokens": ratio(states["W"] * slots, log.steps["num_running"]),
        # Tables that have ended keep no block, shared ones count once: never negative but for rounding.
        "sharing_saving": float(np.maximum(0.0, ratio(tables - used_blocks, tables))),
    }
