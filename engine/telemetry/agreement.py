"""How well the simulated world agrees with the measured one, and the measured one with itself."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
from scipy.special import stdtrit


def relative_error(simulated: float, measured: float) -> float:
    """(simulated - measured) / measured; 0 if both are 0, infinite if only the measured value is."""
    if measured:
        return (simulated - measured) / abs(measured)
    return simulated - measured if simulated == measured else math.copysign(math.inf, simulated)


def spread(values: Sequence[float]) -> float:
    """(max - min) / mean of repeated measurements; NaN for fewer than two of them, which show no spread."""
    if len(values) < 2 or any(map(math.isnan, values)):
        return math.nan
    mean = math.fsum(values) / len(values)
    return (max(values) - min(values)) / abs(mean) if mean else 0.0


def pooled_std(groups: Sequence[Sequence[float]]) -> tuple[float, int]:
    """Standard deviation within groups that are noisy alike, and its degrees of freedom.

    sqrt(sum of squared distances from the group means / sum of (size - 1)). Three repeats of one figure say
    little of its noise; three repeats in each of several places say more. (NaN, 0) if no group has two
    values.
    """
    squares, freedom = 0.0, 0
    for values in groups:
        mean = math.fsum(values) / len(values)
        squares += math.fsum((value - mean) ** 2 for value in values)
        freedom += len(values) - 1
    return (math.sqrt(squares / freedom), freedom) if freedom else (math.nan, 0)


def half_width(std: float, freedom: int, num_values: int, confidence: float) -> float:
    """Half of the interval of a mean, Student's t x std / sqrt(num_values); infinite without freedom."""
    if not freedom:
        return math.inf
    return float(stdtrit(freedom, (1 + confidence) / 2)) * std / math.sqrt(num_values)


def kendall_tau(simulated: Mapping[str, float], measured: Mapping[str, float]) -> float:
    """Kendall's tau-b between the rankings of the same policies in two worlds: 1 same order, -1 reversed.

    NaN for fewer than two policies, or if one world does not tell any two of them apart.

    Raises:
        ValueError: the policies differ.
    """
    if simulated.keys() != measured.keys():
        raise ValueError(f"rankings of different policies: {sorted(simulated)} and {sorted(measured)}")
    names = sorted(simulated)
    x, y = (
        np.sign([world[b] - world[a] for a, b in combinations(names, 2)]) for world in (simulated, measured)
    )
    told_apart = float(np.abs(x).sum() * np.abs(y).sum())
    return float(x @ y) / math.sqrt(told_apart) if told_apart else math.nan


def winner(values: Mapping[str, float], *, lower_is_better: bool) -> str:
    """The policy with the best value, ties by name; NaN never wins. ValueError if no value is defined."""
    defined = [(name, value) for name, value in values.items() if not math.isnan(value)]
    if not defined:
        raise ValueError(f"no policy has a defined value: {dict(values)}")
    return min(defined, key=lambda item: (item[1] if lower_is_better else -item[1], item[0]))[0]


def jain_index(shares: Sequence[float]) -> float:
    """Fairness (sum x)^2 / (n sum x^2): 1 if all get the same, 1/n if one gets all (Jain et al. 1984)."""
    squares = math.fsum(share * share for share in shares)
    return math.fsum(shares) ** 2 / (len(shares) * squares) if squares else math.nan
