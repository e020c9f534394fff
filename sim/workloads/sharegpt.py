"""Traces of lengths only, such as ShareGPT conversations counted by a tokenizer: CSV without times."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from engine.core.backend import RequestSpec
from sim.streams import stream
from sim.workloads.arrivals import Arrivals, GammaArrivals
from sim.workloads.base import Rows, ordered_rows
from sim.workloads.shape import Shape
from sim.workloads.table import at_least_one, csv_records, open_trace, parse_columns, token_count
from sim.workloads.transform import cut

SOURCE = (
    "https://github.com/microsoft/sarathi-serve, "
    "data/processed_traces/sharegpt_8k_filtered_stats_llama2_tokenizer.csv"
)


@dataclass(frozen=True, slots=True)
class LengthsCsv:
    """Requests in the order of the file from row `start` on, arriving by a generator at a mean rate."""

    path: str | None = None
    prompt_column: str = "num_prefill_tokens"
    output_column: str = "num_decode_tokens"
    start: int = 0
    num_requests: int | None = None
    rate_per_s: float | None = None
    arrivals: Arrivals = field(default_factory=GammaArrivals)
    seed: int = 0
    shape: Shape = field(default_factory=Shape)

    def read(self) -> Rows:
        """All rows, at time 0 so far."""
        parsers = {self.prompt_column: token_count, self.output_column: token_count}
        with open_trace(self.path, SOURCE) as file:
            prompts, outputs = parse_columns(file, csv_records(file, parsers), parsers)
            return ordered_rows(
                np.zeros(len(prompts), np.int64),
                at_least_one(file.name, self.prompt_column, prompts),
                at_least_one(file.name, self.output_column, outputs),
            )

    def requests(self, max_model_len: int) -> list[RequestSpec]:
        """The requests of this run; WorkloadError names the file, line and column of a bad cell."""
        rows = cut(self.read(), self.start, self.num_requests)
        rng = stream(self.seed, "workload/arrivals")
        times_ns = self.arrivals.times_ns(rng, len(rows), self.rate_per_s)
        return self.shape.specs(replace(rows, arrival_ns=times_ns), max_model_len, self.seed)
