"""What the queues and the pools held from when to when: the source of every curve and mean over time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, pairwise

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from engine.telemetry.runlog import Log

HELD = (
    "num_running", "num_waiting", "num_swapped", "num_free_blocks", "num_free_host_blocks", "num_kv_tokens",
    "num_written_tokens", "num_table_blocks", "num_unused_slots",
)  # fmt: skip
"""What a stretch of time is described by; the columns of steps.parquet, with num_tokens as the slots that the
step at hand is writing.
"""

Ints = NDArray[np.int64]


def span_ns(log: Log) -> tuple[int, int]:
    """The first arrival and the end of the last step; (0, 0) for a run without either."""
    ends_ns = [int(chunk["end_ns"].max()) for chunk in log.step_chunks("end_ns") if len(chunk)]
    if not len(log.requests) or not ends_ns:
        return 0, 0
    return int(log.requests["arrival_ns"].min()), max(ends_ns)


def time_series(log: Log) -> pd.DataFrame:
    """One row a stretch of time with the columns begin_ns, until_ns and HELD, all int64.

    The rows fill `span_ns` without a hole. A step's state lasts from its start to the end of its period. Then
    the next one starts, or the engine is idle, the queues and pools are empty, and a row says so; also at
    the very end. Were requests outstanding that no step could compute, the state would last until one could.
    """
    nothing = pd.DataFrame({name: np.empty(0, dtype=np.int64) for name in ("begin_ns", "until_ns", *HELD)})
    return pd.concat([*series_chunks(log)] or [nothing], ignore_index=True)


def series_chunks(log: Log) -> Iterator[pd.DataFrame]:
    """The rows of `time_series`, a chunk at a time."""
    first_ns, last_ns = span_ns(log)
    if first_ns == last_ns:
        return
    arrivals = np.sort(log.requests["arrival_ns"].to_numpy())
    departures = np.sort(log.requests["end_ns"].dropna().to_numpy(dtype=np.int64))
    names = ("start_ns", "closed_ns", "num_tokens", *HELD)
    columns = [name for name in names if name != "num_written_tokens"]
    chunks = (chunk for chunk in log.step_chunks(*columns) if len(chunk))
    until_ns = first_ns
    for chunk, following in pairwise(chain(chunks, [None])):
        assert chunk is not None
        begin, closed = chunk["start_ns"].to_numpy(), chunk["closed_ns"].to_numpy()
        next_ns = last_ns if following is None else int(following["start_ns"].iloc[0])
        if following is None:
            closed = np.append(closed[:-1], last_ns)
        is_waiting = _num_by(arrivals, closed) > _num_by(departures, closed)
        until = np.where(is_waiting, np.append(begin[1:], next_ns), closed)
        gaps = np.stack([np.append(until_ns, until[:-1]), begin], axis=1)
        gaps = gaps[gaps[:, 0] < gaps[:, 1]]
        if following is None and not is_waiting[-1]:
            gaps = np.append(gaps, [[until[-1], last_ns]], axis=0)
        busy = chunk.rename(columns={"num_tokens": "num_written_tokens"})[list(HELD)]
        rows = pd.concat([busy.assign(begin_ns=begin, until_ns=until), _idle(log, gaps)])
        rows = rows.sort_values("begin_ns", kind="stable", ignore_index=True)
        yield rows[["begin_ns", "until_ns", *HELD]]
        until_ns = int(until[-1])


def _idle(log: Log, gaps: Ints) -> pd.DataFrame:
    """A row for each stretch in which nothing is held."""
    empty = dict.fromkeys(HELD, 0)
    empty |= {
        "num_free_blocks": log.capacity.num_blocks,
        "num_free_host_blocks": log.capacity.num_host_blocks,
    }
    return pd.DataFrame({"begin_ns": gaps[:, 0], "until_ns": gaps[:, 1]}).assign(**empty)


def _num_by(sorted_ns: Ints, times_ns: Ints) -> Ints:
    """How many of some moments have come by each of some times."""
    return np.searchsorted(sorted_ns, times_ns, "right")


def lengths_ns(series: pd.DataFrame) -> Ints:
    """How long each row of a time series lasts."""
    return np.asarray(series["until_ns"] - series["begin_ns"])


def binned(series: pd.DataFrame, num_bins: int) -> pd.DataFrame:
    """The means over time of a series in equal bins, if it has more rows than that; columns as they were."""
    if len(series) <= num_bins:
        return series
    span_ns = int(series["begin_ns"].iloc[0]), int(series["until_ns"].iloc[-1])
    return binned_chunks([series], span_ns, num_bins)


def binned_chunks(chunks: Iterable[pd.DataFrame], span_ns: tuple[int, int], num_bins: int) -> pd.DataFrame:
    """The same of a series that fills a span and comes in chunks."""
    edges, rest = np.linspace(*span_ns, num_bins + 1), iter(chunks)
    head: list[pd.DataFrame] = []
    for chunk in rest:
        head.append(chunk)
        if sum(map(len, head)) > num_bins:
            break
    else:
        return pd.concat(head, ignore_index=True) if head else pd.DataFrame()
    total: pd.DataFrame | int = 0
    for chunk in chain(head, rest):
        values = chunk.drop(columns=["begin_ns", "until_ns"])
        total = total + pd.DataFrame({name: integrals(chunk, values[name], edges) for name in values})
    assert isinstance(total, pd.DataFrame)
    bins = pd.DataFrame({"begin_ns": edges[:-1], "until_ns": edges[1:]})
    return bins.join(total.div(np.diff(edges), axis=0))


def integrals(series: pd.DataFrame, values: pd.Series, edges: NDArray[np.float64]) -> NDArray[np.float64]:
    """Values of a time series integrated from each edge to the next, as far as the series goes."""
    times = np.append(series["begin_ns"], series["until_ns"].iloc[-1])
    integral = np.append(0, np.cumsum(values * lengths_ns(series)))
    return np.diff(np.interp(edges, times, integral))
