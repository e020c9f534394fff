"""Rows to rows: slices, rates, and lengths that fit a model's window."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from sim.workloads.arrivals import NS_PER_S, check_rate
from sim.workloads.base import IntArray, Rows, WorkloadError, check_span


def cut(rows: Rows, start: int, num_requests: int | None, max_requests: int | None = None) -> Rows:
    """`num_requests` rows from row `start` on, the first of them at time 0.

    None: all that follow, or the first `max_requests` of them.
    """
    if not 0 <= start < len(rows):
        raise WorkloadError(
            f"workload.start is {start}, but the trace has {len(rows)} requests, counted from 0"
        )
    if max_requests is not None and max_requests < 1:
        raise WorkloadError(f"workload.max_requests is {max_requests}, must be at least 1, or null")
    num_left = len(rows) - start
    wanted = min(num_left, max_requests or num_left) if num_requests is None else num_requests
    if not 1 <= wanted <= num_left:
        raise WorkloadError(
            f"workload.num_requests is {num_requests}, but {num_left} follow from row {start} on: "
            "give a number from 1 to that, or null for all of them"
        )
    part = slice(start, start + wanted)
    note = f"only the first {wanted:,} of {num_left:,} requests: workload.max_requests=null takes all"
    return replace(
        rows,
        number=rows.number[part],
        arrival_ns=rows.arrival_ns[part] - rows.arrival_ns[start],
        num_prompt_tokens=rows.num_prompt_tokens[part],
        num_output_tokens=rows.num_output_tokens[part],
        notes=rows.notes if num_requests is not None or wanted == num_left else (*rows.notes, note),
    )


def stretch(rows: Rows, time_factor: float) -> Rows:
    """Multiply the gaps between arrivals: 0.5 doubles the rate."""
    if not 0 < time_factor < np.inf:
        raise WorkloadError(f"workload.time_factor is {time_factor}, must be above 0 (0.5 doubles the rate)")
    return _stretched(rows, time_factor, f"workload.time_factor is {time_factor}")


def _stretched(rows: Rows, factor: float, cause: str) -> Rows:
    check_span(int(rows.arrival_ns[-1]) * factor, cause)
    return replace(rows, arrival_ns=np.rint(rows.arrival_ns * factor).astype(np.int64))


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
    factor = (len(rows) - 1) * NS_PER_S / span_ns / rate_per_s
    return _stretched(rows, factor, f"workload.rate_per_s is {rate_per_s}")


class Fitted(NamedTuple):
    """Rows that were fitted to a window, and how."""

    rows: Rows
    scale: float = 1.0
    """The factor of all lengths."""
    num_clipped: int = 0


def clip(rows: Rows, max_model_len: int, quantile: float) -> Fitted:
    """Cut what does not fit the window: the prompt first, and the output where it alone fills the window."""
    num_output_tokens = np.minimum(rows.num_output_tokens, max_model_len - 1)
    num_prompt_tokens = np.minimum(rows.num_prompt_tokens, max_model_len - num_output_tokens)
    clipped = replace(rows, num_prompt_tokens=num_prompt_tokens, num_output_tokens=num_output_tokens)
    return Fitted(clipped, num_clipped=int((rows.total_tokens > max_model_len).sum()))


def scale(rows: Rows, max_model_len: int, quantile: float) -> Fitted:
    """Shrink all lengths by one factor, so that this quantile of the total lengths fills the window; clip the
    rest. A workload that fits already stays as it is.
    """
    longest = int(np.quantile(rows.total_tokens, quantile, method="higher"))
    if longest <= max_model_len:
        return clip(rows, max_model_len, quantile)
    # Whole numbers throughout: floor(x * window / longest) has no rounding that depends on the machine.
    shrunk = replace(
        rows,
        num_prompt_tokens=_shrink(rows.num_prompt_tokens, max_model_len, longest),
        num_output_tokens=_shrink(rows.num_output_tokens, max_model_len, longest),
    )
    return clip(shrunk, max_model_len, quantile)._replace(scale=max_model_len / longest)


def _shrink(lengths: IntArray, numerator: int, denominator: int) -> IntArray:
    return np.maximum(lengths * numerator // denominator, 1)


def keep(rows: Rows, max_model_len: int, quantile: float) -> Fitted:
    """Leave requests that do not fit: the scheduler rejects a prompt that fills the window, with a reason,
    and an output ends at the window.
    """
    return Fitted(rows)


Fit = Callable[[Rows, int, float], Fitted]
"""(rows, max_model_len, quantile): the quantile matters to `scale` only."""

FITS: Mapping[str, Fit] = {"clip": clip, "none": keep, "scale": scale}
