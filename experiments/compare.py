"""The figures of the main job: each metric of each contender at each load, simulated and measured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import pandas as pd

from engine.telemetry.agreement import half_width, pooled_std, relative_error, spread
from experiments.campaign import Cell
from experiments.verdict import HOLDS_CONFIDENCE, OFF_LEVEL, Tolerance, told

Summary = Mapping[str, float]
Errors = Mapping[str, list[float]]
"""One a repeat, by kind of error."""
Halves = Mapping[str, float]
Row = dict[str, Any]

KINDS_OF_ERROR = ("as_it_is", "unbiased", "undrifted", "followed")
MEANS = ("output_throughput", "mean_ttft_ms", "mean_tpot_ms", "mean_e2el_ms")
PERCENTILES = tuple(
    f"{stat}_{name}_ms" for name in ("ttft", "tpot", "e2el") for stat in ("median", "p90", "p99")
)
COUNTS = ("num_preemptions", "recompute_tax")
"""Shown and not judged: a few preemptions more or less say little, and their cost is in the latencies."""
METRICS = (
    "output_throughput",
    *(f"{stat}_{name}_ms" for name in ("ttft", "tpot", "e2el") for stat in ("mean", "median", "p90", "p99")),
    *COUNTS,
)
"""By the names of summary.json."""


@dataclass(frozen=True, slots=True)
class Repeat:
    """A measured run and its simulated twins."""

    cell: Cell
    measured: Summary
    as_it_is: Summary
    """With the cost model as it was fitted."""
    unbiased: Summary
    """With the step bias of this repeat taken out of all step times."""
    undrifted: Summary
    """With a cost model at one speed of the machine, and this run at the speed that the probe found."""
    followed: Summary
    """At the speed that the machine had in this run, second by second, by the run's own steps."""


def compare(
    repeats: Sequence[Repeat], ensembles: Mapping[Cell, Sequence[Summary]], tolerance: Tolerance
) -> pd.DataFrame:
    """One row a cell and metric.

    Columns: load, policy, metric; simulated and measured (mean of the repeats); relative errors: error as it
    is, unbiased with the step bias taken out, undrifted with the drift of the machine taken out, followed
    with its speed from second to second taken out; error_half, half and followed_half: half of the 90 %
    intervals of error, unbiased and followed; spread of the engine's runs and of the
    ensemble of simulated ones; limit and answer of what is judged (holds, off, unclear; empty otherwise).
    """
    cells = list(dict.fromkeys(repeat.cell for repeat in repeats))
    num_judged = len(cells) * len(MEANS + PERCENTILES)
    rows = []
    for metric in METRICS:
        errors = {cell: _errors([r for r in repeats if r.cell == cell], metric) for cell in cells}
        half = _halves(errors, HOLDS_CONFIDENCE)
        off_half = _halves(errors, 1 - OFF_LEVEL / num_judged)
        for cell in cells:
            mine = [repeat for repeat in repeats if repeat.cell == cell]
            row = _row(metric, mine, errors[cell], [summary[metric] for summary in ensembles[cell]])
            rows.append(row | _judged(metric, row["unbiased"], half, off_half, tolerance))
    order = [rows[j * len(cells) + i] for i in range(len(cells)) for j in range(len(METRICS))]
    return pd.DataFrame(order)


def _row(metric: str, repeats: Sequence[Repeat], errors: Errors, ensemble: Sequence[float]) -> Row:
    measured = [repeat.measured[metric] for repeat in repeats]
    return {
        "load": repeats[0].cell.load,
        "policy": repeats[0].cell.contender,
        "metric": metric,
        "simulated": repeats[0].as_it_is[metric],
        "measured": fmean(measured),
        "error": fmean(errors["as_it_is"]),
        "unbiased": fmean(errors["unbiased"]),
        "undrifted": fmean(errors["undrifted"]),
        "followed": fmean(errors["followed"]),
        "spread": spread(measured),
        "ensemble": spread(ensemble),
    }


def _judged(metric: str, unbiased: float, half: Halves, off_half: Halves, tolerance: Tolerance) -> Row:
    halves = {
        "error_half": half["as_it_is"],
        "half": half["unbiased"],
        "followed_half": half["followed"],
    }
    if metric in COUNTS:
        return halves | {"limit": math.nan, "answer": ""}
    limit = tolerance.mean if metric in MEANS else tolerance.percentile
    return halves | {"limit": limit, "answer": told(unbiased, limit, half["unbiased"], off_half["unbiased"])}


def _errors(repeats: Sequence[Repeat], metric: str) -> Errors:
    """The relative errors of one metric in one cell, one a repeat."""
    return {
        name: [relative_error(getattr(repeat, name)[metric], repeat.measured[metric]) for repeat in repeats]
        for name in KINDS_OF_ERROR
    }


def _halves(errors: Mapping[Cell, Errors], confidence: float) -> Halves:
    """Half of the interval of a cell's mean error; one metric is taken to be as noisy in all cells."""
    halves = {}
    for name in KINDS_OF_ERROR:
        groups = [of_cell[name] for of_cell in errors.values()]
        halves[name] = half_width(*pooled_std(groups), min(map(len, groups)), confidence)
    return halves
