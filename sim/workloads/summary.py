"""A workload in one line of a table."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from engine.core.spec import RequestSpec
from sim.workloads.arrivals import NS_PER_S, mean_rate_per_s
from sim.workloads.base import FloatArray, WorkloadError


def describe(specs: Sequence[RequestSpec], name: str = "workload") -> pd.DataFrame:
    """One row, indexed by `name`: count, rate, coefficient of variation of the gaps, and lengths in tokens.

    `rate_per_s` is the reciprocal of the mean gap. What a workload cannot tell is NaN: the rate of a single
    request, the variation of gaps that are all zero, outputs without an oracle. `pd.concat` makes a table of
    several.
    """
    if not specs:
        raise WorkloadError("describe: there are no requests")
    arrivals_s = np.array([spec.arrival_ns for spec in specs], np.float64) / NS_PER_S
    gaps_s = np.diff(arrivals_s)
    mean_gap_s = float(gaps_s.mean()) if len(gaps_s) else 0.0
    prompts = np.array([spec.num_prompt_tokens for spec in specs], np.float64)
    outputs = np.array([_known(spec.num_output_tokens) for spec in specs], np.float64)
    row = {
        "num_requests": len(specs),
        "duration_s": float(arrivals_s[-1]),
        "rate_per_s": mean_rate_per_s(np.array([spec.arrival_ns for spec in specs], np.int64)),
        "interarrival_cv": float(gaps_s.std()) / mean_gap_s if mean_gap_s else np.nan,
        **_lengths("prompt", prompts),
        **_lengths("output", outputs),
        **_lengths("total", prompts + outputs),
    }
    return pd.DataFrame([row], index=[name])


def _known(num_output_tokens: int | None) -> float:
    return np.nan if num_output_tokens is None else num_output_tokens


def _lengths(name: str, lengths: FloatArray) -> dict[str, float]:
    p50, p90, p99 = np.quantile(lengths, [0.5, 0.9, 0.99]).tolist()
    return {
        f"mean_{name}_tokens": float(lengths.mean()),
        f"p50_{name}_tokens": p50,
        f"p90_{name}_tokens": p90,
        f"p99_{name}_tokens": p99,
        f"max_{name}_tokens": float(lengths.max()),
    }
