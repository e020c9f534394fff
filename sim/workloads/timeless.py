"""What files without arrival times have in common: a file, a slice of it, and a generator of arrivals."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field, replace

from engine.core.fields import Count, Natural, Positive, check_fields
from sim.streams import stream
from sim.workloads.arrivals import Arrivals, GammaArrivals
from sim.workloads.base import Prepared, Rows, Workload
from sim.workloads.shape import Shape
from sim.workloads.transform import cut


@dataclass(frozen=True, slots=True)
class Timeless(Workload):
    """Requests in the order of a file from row `start` on, arriving by a generator at a mean rate.

    `num_requests` and `max_requests` as in RecordedTrace.
    """

    path: str | None = None
    start: Natural = 0
    num_requests: Count | None = None
    max_requests: Count | None = None
    rate_per_s: Positive | None = None
    arrivals: Arrivals = field(default_factory=GammaArrivals)
    seed: Natural = 0
    shape: Shape = field(default_factory=Shape)

    def __post_init__(self) -> None:
        check_fields(self)

    @abstractmethod
    def read(self) -> Rows:
        """All rows of the file, at time 0 so far."""

    def prepare(self, max_model_len: int) -> Prepared:
        """The requests of this run; WorkloadError names the file and the place of what is wrong in it."""
        return self.arriving(self.read(), self.shape, max_model_len)

    def arriving(self, everything: Rows, shape: Shape, max_model_len: int) -> Prepared:
        """The requests of this run, from all rows of the file."""
        rows = cut(everything, self.start, self.num_requests, self.max_requests)
        rng = stream(self.seed, "workload/arrivals")
        rows = replace(rows, arrival_ns=self.arrivals.times_ns(rng, len(rows), self.rate_per_s))
        return shape.prepare(rows, max_model_len, self.seed, len(everything))
