"""Did the queue grow for as long as requests arrived?"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from engine.telemetry.runlog import Log
from engine.telemetry.series import integrals, series_chunks, span_ns

BATCHES = 10
MAX_P_VALUE = 0.01
MIN_UNSERVED = 0.05


def saturation(log: Log) -> dict[str, float]:
    """`saturated`: 1 if requests came faster than they were served, 0 if not; NaN if that cannot be told.

    The time from the first arrival to the last is cut into BATCHES equal stretches, and the mean number of
    requests that wait, or are swapped out, taken in each (batch means: Law and Kelton, Simulation Modeling
    and Analysis, section 9.5). The run is saturated if

    - these means rise: the test of Mann (1945) and Kendall (1975) for a trend, one-sided, p below
      MAX_P_VALUE, which with 10 means asks for a tau of 0.6; and
    - the rise is no trifle: of the requests that came between the first stretch and the last, more than
      MIN_UNSERVED are what the queue grew by.

    A queue below saturation rises and falls about a mean. One that grows has none: every latency then tells
    how long the run was. Near saturation a short run may look like one above it; its latencies depend on its
    length just as much. With fewer than 2 * BATCHES requests, or all of them at once, it is undefined.
    """
    arrivals = log.requests["arrival_ns"].to_numpy()
    if len(arrivals) < 2 * BATCHES or arrivals.max() == arrivals.min() or span_ns(log) == (0, 0):
        return {"saturated": np.nan}
    edges = np.linspace(arrivals.min(), arrivals.max(), BATCHES + 1)
    queued_ns = np.zeros(BATCHES)
    for series in series_chunks(log):
        queued_ns += integrals(series, series["num_waiting"] + series["num_swapped"], edges)
    means = queued_ns / np.diff(edges)
    num_between = len(arrivals) * (BATCHES - 1) / BATCHES
    grows = means[-1] - means[0] > MIN_UNSERVED * num_between
    return {"saturated": float(grows and trend_p_value(means) < MAX_P_VALUE)}


def trend_p_value(values: NDArray[np.float64]) -> float:
    """One-sided p-value of the test of Mann and Kendall for a rise: normal, with the variance of ties.

    S, the pairs that rise less those that fall, has the variance (n(n-1)(2n+5) - sum t(t-1)(2t+5)) / 18, with
    t the sizes of the ties (Kendall 1975, chapter 4). 1 if all values are equal.
    """
    num, ties = len(values), np.unique(values, return_counts=True)[1]
    rising_pairs = float(np.triu(np.sign(values[None, :] - values[:, None])).sum())
    variance = (num * (num - 1) * (2 * num + 5) - (ties * (ties - 1) * (2 * ties + 5)).sum()) / 18
    return float(ndtr(-rising_pairs / np.sqrt(variance))) if variance else 1.0
