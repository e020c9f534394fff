"""What traces with arrival times have in common: a file, a slice of it, and the rate of its replay."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

from engine.core.backend import RequestSpec
from sim.workloads.base import Rows, WorkloadError
from sim.workloads.shape import Shape
from sim.workloads.transform import at_rate, cut, stretch


@dataclass(frozen=True, slots=True)
class RecordedTrace(ABC):
    """Replays `num_requests` requests (None: all) from row `start` of a file, counted in order of arrival.

    They arrive as recorded, or with all gaps multiplied by `time_factor`, or by whatever gives the mean rate
    `rate_per_s`.
    """

    path: str | None = None
    start: int = 0
    num_requests: int | None = None
    rate_per_s: float | None = None
    time_factor: float | None = None
    seed: int = 0
    shape: Shape = field(default_factory=Shape)

    def __post_init__(self) -> None:
        if self.rate_per_s is not None and self.time_factor is not None:
            raise WorkloadError(
                f"rate_per_s is {self.rate_per_s} and time_factor is {self.time_factor}: "
                "set one of them to null, each determines the other"
            )

    @abstractmethod
    def read(self) -> Rows:
        """All rows of the file."""

    def requests(self, max_model_len: int) -> list[RequestSpec]:
        """The requests of this run; WorkloadError names the file, line and column of a bad cell."""
        rows = cut(self.read(), self.start, self.num_requests)
        if self.rate_per_s is not None:
            rows = at_rate(rows, self.rate_per_s)
        if self.time_factor is not None:
            rows = stretch(rows, self.time_factor)
        return self.shape.specs(rows, max_model_len, self.seed)
