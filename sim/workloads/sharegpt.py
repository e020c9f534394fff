"""Traces of lengths only, such as ShareGPT conversations counted by a tokenizer: CSV without times."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from engine.core.fields import Count, Natural, Positive, check_fields
from sim.streams import stream
from sim.workloads.arrivals import Arrivals, GammaArrivals
from sim.workloads.base import Prepared, Rows, Workload, ordered_rows
from sim.workloads.shape import Shape
from sim.workloads.table import csv_records, open_trace, parse_columns, token_count
from sim.workloads.transform import cut

SOURCE = (
    "https://github.com/microsoft/sarathi-serve, "
    "data/processed_traces/sharegpt_8k_filtered_stats_llama2_tokenizer.csv"
)


@dataclass(frozen=True, slots=True)
class LengthsCsv(Workload):
    """Requests in the order of the file from row `start` on, arriving by a generator at a mean rate.

    `num_requests` and `max_requests` as in RecordedTrace.
    """

    path: str | None = None
    prompt_column: str = "num_prefill_tokens"
    output_column: str = "num_decode_tokens"
    start: Natural = 0
    num_requests: Count | None = None
    max_requests: Count | None = None
    rate_per_s: Positive | None = None
    arrivals: Arrivals = field(default_factory=GammaArrivals)
    seed: Natural = 0
    shape: Shape = field(default_factory=Shape)

    def __post_init__(self) -> None:
        check_fields(self)

    def read(self) -> Rows:
        """All rows, at time 0 so far."""
        parsers = {self.prompt_column: token_count, self.output_column: token_count}
        with open_trace(self.path, SOURCE) as file:
            columns = parse_columns(file, csv_records(file, parsers), parsers)
        prompts, outputs = columns.tokens(self.prompt_column), columns.tokens(self.output_column)
        return ordered_rows(np.zeros(len(prompts), np.int64), prompts, outputs)

    def prepare(self, max_model_len: int) -> Prepared:
        """The requests of this run; WorkloadError names the file, line and column of a bad cell."""
        everything = self.read()
        rows = cut(everything, self.start, self.num_requests, self.max_requests)
        rng = stream(self.seed, "workload/arrivals")
        times_ns = self.arrivals.times_ns(rng, len(rows), self.rate_per_s)
        rows = replace(rows, arrival_ns=times_ns)
        return self.shape.prepare(rows, max_model_len, self.seed, len(everything))
