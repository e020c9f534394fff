"""The rows of the main job's table: each metric of each policy in both worlds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

import pandas as pd

from engine.telemetry.agreement import allowed_error, relative_error, spread

Summary = Mapping[str, float]

METRICS = (
    "output_throughput",
    *(f"{stat}_{name}_ms" for name in ("ttft", "tpot", "e2el") for stat in ("mean", "median", "p90", "p99")),
    "num_preemptions",
    "recompute_tax",
)
"""By the names of summary.json."""


def compare(simulated: Mapping[str, Summary], measured: Mapping[str, Sequence[Summary]]) -> pd.DataFrame:
    """One row for each policy and metric: simulated, mean measured, error, spread, allowed error, verdict."""
    rows = [
        _row(policy, metric, simulated[policy][metric], [run[metric] for run in measured[policy]])
        for policy in simulated
        for metric in METRICS
    ]
    return pd.DataFrame(rows)


def _row(policy: str, metric: str, simulated: float, runs: Sequence[float]) -> dict[str, object]:
    measured = fmean(runs)
    error, run_spread = relative_error(simulated, measured), spread(runs)
    allowed = allowed_error(run_spread)
    return {
        "policy": policy,
        "metric": metric,
        "simulated": simulated,
        "measured": measured,
        "error": error,
        "spread": run_spread,
        "allowed": allowed,
        "holds": abs(error) <= allowed,
    }
