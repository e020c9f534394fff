"""When the requests of a generated workload arrive."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Protocol

import numpy as np

from engine.core.fields import AtLeast, check_fields
from sim.workloads.base import IntArray, WorkloadError, check_span

NS_PER_S = 1_000_000_000


class Arrivals(Protocol):
    """Draws arrival times in integer nanoseconds, ascending, the first of them 0."""

    def times_ns(self, rng: np.random.Generator, num_requests: int, rate_per_s: float | None) -> IntArray:
        """Times of that many requests, at least one, at a mean rate if they have one."""
        ...


@dataclass(frozen=True, slots=True)
class GammaArrivals:
    """Independent gaps ~ Gamma(shape=burstiness, scale=1/(rate x burstiness)), as in `vllm bench serve`.

    Their mean is 1/rate and their coefficient of variation 1/sqrt(burstiness): 1 is a Poisson process, less
    is burstier, more is steadier.
    """

    burstiness: Annotated[float, AtLeast(1e-6)] = 1.0
    """1 is a Poisson process."""

    def __post_init__(self) -> None:
        check_fields(self)

    def times_ns(self, rng: np.random.Generator, num_requests: int, rate_per_s: float | None) -> IntArray:
        """The first n times are the same however many follow."""
        if rate_per_s is None:
            raise WorkloadError("workload.rate_per_s is not set: give the mean number of requests a second")
        check_rate(rate_per_s)
        scale_ns = NS_PER_S / rate_per_s / self.burstiness
        gaps_ns = np.rint(rng.gamma(self.burstiness, scale_ns, num_requests - 1))
        check_span(float(gaps_ns.sum()), f"workload.rate_per_s is {rate_per_s}")
        return np.concatenate([np.zeros(1, np.int64), np.cumsum(gaps_ns.astype(np.int64))])


@dataclass(frozen=True, slots=True)
class AllAtOnce:
    """Everybody is there at time 0: offline batch inference, and the hardest test of a queue."""

    def times_ns(self, rng: np.random.Generator, num_requests: int, rate_per_s: float | None) -> IntArray:
        """Refuses a rate, which would have no effect."""
        if rate_per_s is not None:
            raise WorkloadError(
                f"workload.rate_per_s is {rate_per_s}, but these requests arrive all at once: "
                "set it to null, or choose GammaArrivals as workload.arrivals"
            )
        return np.zeros(num_requests, np.int64)


def check_rate(rate_per_s: float) -> None:
    """Raise unless the rate is a positive, finite number of requests a second."""
    if not 0 < rate_per_s < np.inf:
        raise WorkloadError(f"workload.rate_per_s is {rate_per_s}, must be above 0 requests a second")


def mean_rate_per_s(times_ns: IntArray) -> float:
    """The reciprocal of the mean gap of ascending times; NaN where there is none."""
    span_ns = int(times_ns[-1] - times_ns[0])
    return (len(times_ns) - 1) * NS_PER_S / span_ns if span_ns else float("nan")
