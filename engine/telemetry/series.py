"""What the queues and the pools held from when to when: the source of every curve and mean over time."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from engine.telemetry.runlog import RunLog

HELD = (
    "num_running", "num_waiting", "num_swapped", "num_free_blocks", "num_free_host_blocks", "num_kv_tokens",
    "num_written_tokens", "num_table_blocks", "num_unused_slots",
)  # fmt: skip
"""What a stretch of time is described by; the columns of steps.parquet, with num_tokens as the slots that the
step at hand is writing.
"""

Ints = NDArray[np.int64]


def span_ns(log: RunLog) -> tuple[int, int]:
    """The first arrival and the end of the last step; (0, 0) for a run without either."""
    if not len(log.requests) or not len(log.steps):
        return 0, 0
    return int(log.requests["arrival_ns"].min()), int(log.steps["end_ns"].max())


def time_series(log: RunLog) -> pd.DataFrame:
    """One row a stretch of time with the columns begin_ns, until_ns and HELD, all int64.

    The rows fill `span_ns` without a hole. A step's state lasts from its start to the end of its period. Then
    the next one starts, or the engine is idle, the queues and pools are empty, and a row says so; also at
    the very end. Were requests outstanding that no step could compute, the state would last until one could.
    """
    first_ns, last_ns = span_ns(log)
    if first_ns == last_ns:
        return pd.DataFrame({name: np.empty(0, dtype=np.int64) for name in ("begin_ns", "until_ns", *HELD)})
    begin = log.steps["start_ns"].to_numpy()
    closed = np.append(log.steps["closed_ns"].to_numpy()[:-1], last_ns)
    is_waiting = _are_outstanding(log, closed)
    until = np.where(is_waiting, np.append(begin[1:], last_ns), closed)
    busy = log.steps.rename(columns={"num_tokens": "num_written_tokens"})[list(HELD)]
    idle = _idle(log, np.append(first_ns, until), np.append(begin, last_ns), at_end=not is_waiting[-1])
    rows = pd.concat([busy.assign(begin_ns=begin, until_ns=until), idle])
    rows = rows.sort_values("begin_ns", kind="stable", ignore_index=True)
    return rows[["begin_ns", "until_ns", *HELD]]


def _idle(log: RunLog, begin_ns: Ints, until_ns: Ints, *, at_end: bool) -> pd.DataFrame:
    """The rows of the stretches of some length, and if wanted of the last one, which has none."""
    is_gap = np.append((begin_ns < until_ns)[:-1], at_end)
    empty = dict.fromkeys(HELD, 0)
    empty |= {
        "num_free_blocks": log.capacity.num_blocks,
        "num_free_host_blocks": log.capacity.num_host_blocks,
    }
    return pd.DataFrame({"begin_ns": begin_ns[is_gap], "until_ns": until_ns[is_gap]}).assign(**empty)


def _are_outstanding(log: RunLog, times_ns: Ints) -> NDArray[np.bool_]:
    """Whether a request had arrived and not ended, at each of some times."""
    arrivals = np.sort(log.requests["arrival_ns"].to_numpy())
    departures = np.sort(log.requests["end_ns"].dropna().to_numpy(dtype=np.int64))
    num_arrived = np.searchsorted(arrivals, times_ns, "right")
    return np.asarray(num_arrived > np.searchsorted(departures, times_ns, "right"))


def lengths_ns(series: pd.DataFrame) -> Ints:
    """How long each row of a time series lasts."""
    return np.asarray(series["until_ns"] - series["begin_ns"])


def time_mean(series: pd.DataFrame, values: pd.Series) -> float:
    """The integral of some values of a time series over its span, divided by the span; NaN without one."""
    weights = lengths_ns(series)
    return float((values.to_numpy() * weights).sum() / weights.sum()) if weights.sum() else np.nan


def binned(series: pd.DataFrame, num_bins: int) -> pd.DataFrame:
    """The means over time of a series in equal bins, if it has more rows than that; columns as they were."""
    if len(series) <= num_bins:
        return series
    times = np.append(series["begin_ns"], series["until_ns"].iloc[-1])
    edges = np.linspace(times[0], times[-1], num_bins + 1)
    values = series.drop(columns=["begin_ns", "until_ns"])
    bins = {"begin_ns": edges[:-1], "until_ns": edges[1:]}
    for name in values.columns:
        integral = np.append(0, np.cumsum(values[name] * lengths_ns(series)))
        bins[name] = np.diff(np.interp(edges, times, integral)) / np.diff(edges)
    return pd.DataFrame(bins)
