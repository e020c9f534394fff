"""Rows to rows: slices, rates, and lengths that fit a model's window."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from sim.workloads.arrivals import NS_PER_S, check_rate
from sim.workloads.base import IntArray, Rows, WorkloadError


def cut(rows: Rows, start: int, num_requests: int | None) -> Rows:
    """`num_requests` rows (None: all) from row `start` on, the first of them at time 0."""
    if not 0 <= start < len(rows):
        raise WorkloadError(
            f"workload.start is {start}, but the trace has {len(rows)} requests, counted from 0"
        )
    stop = len(rows) if num_requests is None else start + num_requests
    if not start < stop <= len(rows):
        raise WorkloadError(
            f"workload.num_requests is {num_requests}, but {len(rows) - start} follow from row {start} on: "
            "give a number from 1 to that, or null for all of them"
        )
    part = slice(start, stop)
    return Rows(
        number=rows.number[part],
        arrival_ns=rows.arrival_ns[part] - rows.arrival_ns[start],
        num_prompt_tokens=rows.num_prompt_tokens[part],
        num_output_tokens=rows.num_output_tokens[part],
    )


def stretch(rows: Rows, time_factor: float) -> Rows:
    """Multiply the gaps between arrivals: 0.5 doubles the rate."""
    if not 0 < time_factor < np.inf:
        raise WorkloadError(f"workload.time_factor is {time_factor}, must be above 0 (0.5 doubles the rate)")
    return replace(rows, arrival_ns=np.rint(rows.arrival_ns * time_factor).astype(np.int64))


def at_rate(rows: Rows, rate_per_s: float) -> Rows:
    """Stretch the arrivals to this mean rate, the reciprocal of the mean gap; bursts keep their shape."""
    check_rate(rate_per_s)
    if len(rows) == 1:
        return rows
    span_ns = int(rows.arrival_ns[-1])
    if span_ns == 0:
        raise WorkloadError(
            "workload.rate_per_s: all requests of the trace arrive at once, there is no rate to scale"
        )
    return stretch(rows, (len(rows) - 1) * NS_PER_S / (rate_per_s * span_ns))


def clip(rows: Rows, max_model_len: int, quantile: float) -> Rows:
    """Cut what does not fit the window: the prompt first, and the output where it alone fills the window."""
    num_output_tokens = np.minimum(rows.num_output_tokens, max_model_len - 1)
    num_prompt_tokens = np.minimum(rows.num_prompt_tokens, max_model_len - num_output_tokens)
    return replace(rows, num_prompt_tokens=num_prompt_tokens, num_output_tokens=num_output_tokens)


def scale(rows: Rows, max_model_len: int, quantile: float) -> Rows:
    """Shrink all lengths by one factor, so that this quantile of the total lengths fills the window; clip the
    rest. A workload that fits already stays as it is.
    """
    longest = int(np.quantile(rows.total_tokens, quantile, method="higher"))
    if longest > max_model_len:
        # Whole numbers throughout: floor(x * window / longest) has no rounding that depends on the machine.
        rows = replace(
            rows,
            num_prompt_tokens=_shrink(rows.num_prompt_tokens, max_model_len, longest),
            num_output_tokens=_shrink(rows.num_output_tokens, max_model_len, longest),
        )
    return clip(rows, max_model_len, quantile)


def _shrink(lengths: IntArray, numerator: int, denominator: int) -> IntArray:
    return np.maximum(lengths * numerator // denominator, 1)


def keep(rows: Rows, max_model_len: int, quantile: float) -> Rows:
    """Leave requests that do not fit: the scheduler rejects them with a reason."""
    return rows


Fit = Callable[[Rows, int, float], Rows]
"""(rows, max_model_len, quantile): the quantile matters to `scale` only."""

FITS: Mapping[str, Fit] = {"clip": clip, "none": keep, "scale": scale}
