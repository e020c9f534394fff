"""Stamps of a trace to nanoseconds since its first one, without overflow and without a guess at the unit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sim.workloads.base import MAX_SPAN_NS, MAX_YEARS, IntArray, WorkloadError
from sim.workloads.table import Columns, Number

UNITS_NS = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}
_YEAR_2000_NS = 946_684_800 * 10**9
_YEAR_2100_NS = 4_102_444_800 * 10**9


def since_first_ns(columns: Columns, name: str, unit: str) -> IntArray:
    """A column of stamps, relative to the earliest, which need not come first in the file.

    Whole numbers are subtracted before they are multiplied, so the result is exact whatever they count from.
    """
    stamps: Sequence[Any] = columns.values[name]  # int, float or Decimal, all of them the same
    unit_ns = UNITS_NS[unit]
    first = min(stamps)
    times_ns = [round((stamp - first) * unit_ns) for stamp in stamps]
    latest = max(range(len(times_ns)), key=times_ns.__getitem__)
    if times_ns[latest] > MAX_SPAN_NS:
        raise WorkloadError(
            f"{columns.place(latest, name)}: lies more than {MAX_YEARS} years after the earliest time, that "
            f"of line {columns.lines[stamps.index(first)]}: one of them is wrong, or the unit ({unit})"
        )
    return np.array(times_ns, np.int64)


def epoch_unit(stamp: Number) -> str | None:
    """The unit in which this stamp would be a time between 2000 and 2100; None if there is none."""
    for unit, unit_ns in UNITS_NS.items():
        if _YEAR_2000_NS <= stamp * unit_ns < _YEAR_2100_NS:
            return unit
    return None


def check_unit(columns: Columns, name: str, unit: str, key: str) -> None:
    """Raise if the earliest stamp is no time since 1970 in this unit, but is one in another."""
    stamps = columns.values[name]
    first = min(stamps)
    found = epoch_unit(first)
    if found not in (None, unit):
        raise WorkloadError(
            f"{columns.place(stamps.index(first), name)}: {first} looks like {found} since 1970, but {unit} "
            f"are expected: set {key}={found}, or {key}={unit} if that is what they are"
        )
