"""Several seeds a point: means with intervals, and what two policies differ by on equal requests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import pandas as pd

from engine.telemetry.agreement import half_width

SEED = "seed"
CONFIDENCE = 0.95
WORKLOAD = "workload"
"""Choices below it make other requests of the same seed, so nothing is paired across them."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over runs, and half the width of its 95 % interval; NaN where it is undefined."""

    mean: float
    half: float
    num_runs: int


def estimate(values: Sequence[float]) -> Estimate:
    """The mean with Student's interval for `len(values) - 1` degrees of freedom; NaN values are left out."""
    sample = np.asarray(values, dtype=np.float64)
    sample = sample[~np.isnan(sample)]
    num = len(sample)
    if num == 0:
        return Estimate(np.nan, np.nan, 0)
    if num == 1:
        return Estimate(float(sample[0]), np.nan, 1)
    return Estimate(
        float(sample.mean()), half_width(float(sample.std(ddof=1)), num - 1, num, CONFIDENCE), num
    )


def varied(table: pd.DataFrame) -> list[str]:
    """The overrides that differ from run to run, in the order in which they were given."""
    return [axis for axis in table.attrs["axes"] if table[axis].nunique(dropna=False) > 1]


def point_axes(table: pd.DataFrame) -> list[str]:
    """What tells points from one another: the seed does not."""
    return [axis for axis in varied(table) if axis != SEED]


def is_numeric(values: pd.Series) -> bool:
    """Whether every value of an axis that was given is a number."""
    return bool(pd.to_numeric(values.dropna(), errors="coerce").notna().all()) and bool(values.notna().any())


def contender_axes(table: pd.DataFrame) -> list[str]:
    """The choices, as opposed to numbers, that leave the requests as they are: what policies differ by."""
    return [
        axis
        for axis in point_axes(table)
        if not is_numeric(table[axis]) and axis.partition(".")[0].partition("/")[0] != WORKLOAD
    ]


def by(table: pd.DataFrame, axes: Sequence[str]) -> dict[tuple[str, ...], pd.DataFrame]:
    """The runs of each combination of values of some axes, as they come first; "" where one is not given."""
    keys = [tuple(row) for row in table[list(axes)].fillna("").astype(str).itertuples(index=False, name=None)]
    order = sorted(range(len(keys)), key=lambda i: (keys.index(keys[i]), i))
    return {key: table.iloc[list(rows)] for key, rows in groupby(order, key=keys.__getitem__)}


def points(table: pd.DataFrame, metrics: Sequence[str]) -> pd.DataFrame:
    """A row a point and metric: its axes, metric, mean, half (of the 95 % interval), num_runs (completed)."""
    axes = point_axes(table)
    rows = [
        {**dict(zip(axes, key, strict=True)), "metric": metric, **_columns(estimate(runs[metric].to_list()))}
        for key, runs in by(table, axes).items()
        for metric in metrics
    ]
    return pd.DataFrame(rows)


def paired(table: pd.DataFrame, metrics: Sequence[str]) -> pd.DataFrame:
    """What each contender differs from the first by, in percent of the first, on equal seeds and points.

    A row a point, contender and metric: axes, against, metric, mean, half, num_runs. The differences are
    taken seed by seed and then averaged, so what the requests of a seed have in common drops out.
    """
    choices = contender_axes(table)
    rest = [axis for axis in point_axes(table) if axis not in choices]
    rows = []
    for key, runs in by(table, rest).items():
        groups = by(runs, choices)
        (first, base), *others = groups.items()
        for contender, mine in others:
            for metric in metrics:
                columns = _columns(estimate(_differences(mine, base, metric)))
                axes = dict(zip((*rest, *choices), (*key, *contender), strict=True))
                rows.append({**axes, "against": " ".join(first), "metric": metric, **columns})
    return pd.DataFrame(rows)


def _differences(mine: pd.DataFrame, base: pd.DataFrame, metric: str) -> list[float]:
    """100 * (mine / base - 1) for each seed that both have; undefined where the base is 0."""
    both = [frame.drop_duplicates(SEED).set_index(SEED)[metric] for frame in (mine, base)]
    ratio = (both[0] / both[1].replace(0, np.nan)).dropna()
    return [float(value) for value in 100 * (ratio - 1)]


def _columns(result: Estimate) -> dict[str, float]:
    return {"mean": result.mean, "half": result.half, "num_runs": result.num_runs}
