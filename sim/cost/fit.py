"""Fit a cost model to measured steps: non-negative, relative, robust."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from engine.core.errors import UserError
from engine.core.work import Work
from sim.cost.fitted import Fitted
from sim.cost.ranges import Ranges
from sim.cost.setup import Setup
from sim.cost.terms import Coefficients, FitReport, terms

KNEES_TOKENS = (0, 4, 8, 16, 32, 64, 128, 256)
"""Where the slope of the tokens may change; 0 is one slope for all."""
MIN_STEPS_PER_TERM = 3
MAX_ROUNDS = 50
MAX_EXCESS = 2.0
"""In standard deviations: what a step may add to the total at most, when that is brought to scale."""
HUBER_THRESHOLD = 1.345
"""In standard deviations: 95 % efficient on normal errors (Huber and Ronchetti, Robust Statistics, 2009)."""

Floats = NDArray[np.float64]


class _Solution(NamedTuple):
    knee_tokens: int
    design: Floats
    """[steps, terms]."""
    ns_per_term: Floats
    errors: Floats
    """(fitted - measured) / measured of each step."""
    trust: Floats
    """Weight of each step for its residual: 1 for an ordinary one."""

    @property
    def loss(self) -> float:
        """Mean relative error, an outlier counting no more than 1."""
        return float(np.mean(np.minimum(np.abs(self.errors), 1.0)))


def fit(
    steps: Sequence[Work],
    durations_ns: Sequence[int],
    setup: Setup,
    pairs_per_token: float,
    provenance: Mapping[str, str] | None = None,
) -> Fitted:
    """The non-negative coefficients that describe the measured durations best, by relative error.

    `pairs_per_token` is the arithmetic of attention for one pair of a query and a KV position, as a share of
    that of the linear layers for one token. A few places of the knee are tried, and the one with the smallest
    error is kept. Raises UserError if there are too few steps for the terms that occur in them, ValueError if
    a duration is not positive.
    """
    measured_ns = np.asarray(durations_ns, dtype=np.float64)
    if len(steps) != len(measured_ns):
        raise ValueError(f"{len(steps)} steps, but {len(measured_ns)} durations")
    if not np.all(measured_ns > 0):
        raise ValueError("a duration is not positive: leave out steps that neither compute nor move anything")
    floors = _floors(pairs_per_token)
    solutions = [_solve(steps, measured_ns, knee, floors) for knee in _knees(steps)]
    best = min(solutions, key=lambda solution: (solution.loss, solution.knee_tokens))
    coefficients = Coefficients(*(float(value) for value in best.ns_per_term))
    report = _report(best, measured_ns)
    return Fitted(
        coefficients, best.knee_tokens, setup, Ranges.measured(steps), report, dict(provenance or {})
    )


def _knees(steps: Sequence[Work]) -> list[int]:
    """Candidates with at least a twentieth of the steps on either side, so that both slopes are measured."""
    if not steps:
        raise UserError("no steps to fit a cost model to: calibrate first")
    low, high = np.quantile([step.num_tokens for step in steps], (0.05, 0.95))
    return [knee for knee in KNEES_TOKENS if knee == 0 or low <= knee < high]


def _floors(pairs_per_token: float) -> Floats:
    """[terms, terms]: what each fitted unknown adds to each coefficient. Attention has a floor.

    In short steps attention is a small part, and goes nearly with the tokens; a fit may give it nothing and
    the tokens all, which is right in sum, and prices the attention of a long prompt at 0. But one pair of a
    query and a KV position is at least as much arithmetic as its share of a token in the linear layers, and
    no kernel does it faster: a coefficient of attention is that share, plus what the fit finds above it.
    """
    names = [field.name for field in fields(Coefficients)]
    floors = np.eye(len(names))
    for name in ("ns_per_decode_context_token", "ns_per_prefill_attention_pair"):
        floors[names.index(name), names.index("ns_per_token_above_knee")] = pairs_per_token
    return floors


def _solve(steps: Sequence[Work], measured_ns: Floats, knee_tokens: int, floors: Floats) -> _Solution:
    """Iteratively reweighted non-negative least squares on (fitted - measured) / fitted, Huber's weights.

    Dividing by what was fitted, not by what was measured, keeps the fit from leaning to the lucky fast steps.
    The divisor stays within a factor of ten of the measurement, so that no step is lost to a bad first round.
    """
    design = np.array([terms(step, knee_tokens) for step in steps], dtype=np.float64)
    seen = design.any(axis=0)
    if len(steps) < MIN_STEPS_PER_TERM * seen.sum():
        raise UserError(
            f"{len(steps)} measured steps are too few for the {seen.sum()} terms that occur in them: "
            f"measure at least {MIN_STEPS_PER_TERM * seen.sum()}"
        )
    unknowns = design @ floors
    found = np.zeros(design.shape[1])
    trust = np.ones(len(steps))
    divisor = measured_ns
    for _ in range(MAX_ROUNDS):
        before = found.copy()
        found[seen] = _weighted_nnls(unknowns[:, seen], measured_ns, np.sqrt(trust) / divisor)
        fitted_ns = unknowns @ found
        divisor = np.clip(fitted_ns, measured_ns / 10, measured_ns * 10)
        trust = _huber_weights((fitted_ns - measured_ns) / divisor)
        if np.allclose(found, before, rtol=1e-6):
            break
    scale = _scale(fitted_ns, measured_ns)
    ns_per_term = np.where(seen, floors @ found, 0.0)
    return _Solution(knee_tokens, design, ns_per_term * scale, fitted_ns * scale / measured_ns - 1, trust)


def _scale(fitted_ns: Floats, measured_ns: Floats) -> float:
    """What brings the sum of the fitted steps to that of the measured ones, winsorized.

    Slow steps outnumber fast ones, and the reweighting leaves most of their excess out: totals were 1 to 4 %
    low. A throughput pays for ordinary slowness, so it is spread over all steps; a hiccup is cut off.
    """
    residuals = measured_ns / fitted_ns - 1
    bound = MAX_EXCESS * _spread(residuals)
    return float(np.sum(fitted_ns * (1 + np.clip(residuals, -bound, bound))) / np.sum(fitted_ns))


def _weighted_nnls(design: Floats, measured_ns: Floats, weights: Floats) -> Floats:
    """Minimize |weights (design x - measured)| over x >= 0, the columns scaled to equal norms."""
    weighted = design * weights[:, None]
    norms = np.linalg.norm(weighted, axis=0)
    solution, _ = nnls(weighted / norms, measured_ns * weights)
    return np.asarray(solution / norms, dtype=np.float64)


def _huber_weights(residuals: Floats) -> Floats:
    """1 up to the threshold, then threshold / residual, in standard deviations."""
    spread = _spread(residuals)
    return np.asarray(np.minimum(1.0, HUBER_THRESHOLD * spread / np.maximum(np.abs(residuals), 1e-300)))


def _spread(residuals: Floats) -> float:
    """A standard deviation that outliers hardly move: 1.4826 x the median absolute residual."""
    return max(1.4826 * float(np.median(np.abs(residuals))), 1e-9)


def _report(solution: _Solution, measured_ns: Floats) -> FitReport:
    names = [field.name for field in fields(Coefficients)]
    counts = solution.design.sum(axis=0)
    term_totals_ns = counts * solution.ns_per_term
    trusted = solution.trust >= 0.5
    residuals_ns = (solution.errors * measured_ns)[trusted]
    variance = float(np.sum((measured_ns[trusted] - measured_ns[trusted].mean()) ** 2))
    abs_errors = np.abs(solution.errors)
    absent = {"ns_per_token_below_knee"} if solution.knee_tokens == 0 else set()
    return FitReport(
        num_steps=len(measured_ns),
        num_outliers=int(np.sum(~trusted)),
        median_abs_error=float(np.median(abs_errors)),
        p90_abs_error=float(np.quantile(abs_errors, 0.9)),
        total_error=float(term_totals_ns.sum() / measured_ns.sum() - 1),
        r2=1 - float(np.sum(residuals_ns**2)) / variance if variance else 1.0,
        share_of_term={
            name: float(total_ns / term_totals_ns.sum())
            for name, total_ns in zip(names, term_totals_ns, strict=True)
        },
        unmeasured=tuple(
            name for name, count in zip(names, counts, strict=True) if count == 0 and name not in absent
        ),
    )
