"""Requests made from distributions: nothing to download, and every statistic under control."""

from __future__ import annotations

from dataclasses import dataclass, field

from engine.core.fields import Count, Natural, Positive, check_fields
from sim.streams import stream
from sim.workloads.arrivals import Arrivals, GammaArrivals
from sim.workloads.base import Prepared, Rows, Workload, ordered_rows
from sim.workloads.lengths import Lengths, OutputLengths
from sim.workloads.shape import Shape


@dataclass(frozen=True, slots=True, kw_only=True)
class Synthetic(Workload):
    """Arrivals, prompt lengths and output lengths, each drawn from a stream of its own.

    So the first n requests are the same however many follow, and another rate or another distribution of
    outputs leaves the prompts as they were.
    """

    num_requests: Count
    prompt_lengths: Lengths
    output_lengths: OutputLengths
    rate_per_s: Positive | None = None
    arrivals: Arrivals = field(default_factory=GammaArrivals)
    seed: Natural = 0
    shape: Shape = field(default_factory=Shape)

    def __post_init__(self) -> None:
        check_fields(self)

    def draw(self) -> Rows:
        """Arrivals and lengths before they are fitted to a model."""
        prompts = self.prompt_lengths.sample(stream(self.seed, "workload/prompt lengths"), self.num_requests)
        outputs = self.output_lengths.given(stream(self.seed, "workload/output lengths"), prompts)
        rng = stream(self.seed, "workload/arrivals")
        return ordered_rows(self.arrivals.times_ns(rng, self.num_requests, self.rate_per_s), prompts, outputs)

    def prepare(self, max_model_len: int) -> Prepared:
        """The requests of this run."""
        return self.shape.prepare(self.draw(), max_model_len, self.seed, self.num_requests)
