"""What traces with arrival times have in common: a file, a slice of it, and the rate of its replay."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field

from engine.core.fields import Count, Natural, Positive, check_fields
from sim.workloads.base import Prepared, Rows, Workload, WorkloadError
from sim.workloads.shape import Shape
from sim.workloads.transform import at_rate, cut, stretch


@dataclass(frozen=True, slots=True)
class RecordedTrace(Workload):
    """Replays the requests of a file from row `start` on, counted in order of arrival.

    `num_requests` of them; None: all that there are, but not more than `max_requests` (None: no such limit).
    They arrive as recorded, or with all gaps multiplied by `time_factor`, or by whatever gives the mean rate
    `rate_per_s`.
    """

    path: str | None = None
    start: Natural = 0
    num_requests: Count | None = None
    max_requests: Count | None = None
    rate_per_s: Positive | None = None
    time_factor: Positive | None = None
    seed: Natural = 0
    shape: Shape = field(default_factory=Shape)

    def __post_init__(self) -> None:
        check_fields(self)
        if self.rate_per_s is not None and self.time_factor is not None:
            raise WorkloadError(
                f"rate_per_s is {self.rate_per_s} and time_factor is {self.time_factor}: "
                "set one of them to null, each determines the other"
            )

    @abstractmethod
    def read(self) -> Rows:
        """All rows of the file."""

    def prepare(self, max_model_len: int) -> Prepared:
        """The requests of this run; WorkloadError names the file, line and column of a bad cell."""
        everything = self.read()
        rows = cut(everything, self.start, self.num_requests, self.max_requests)
        if self.rate_per_s is not None:
            rows = at_rate(rows, self.rate_per_s)
        if self.time_factor is not None:
            rows = stretch(rows, self.time_factor)
        return self.shape.prepare(rows, max_model_len, self.seed, len(everything))
