"""Traces of lengths only, such as ShareGPT conversations counted by a tokenizer: CSV without times."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sim.workloads.base import Rows, ordered_rows
from sim.workloads.table import csv_records, open_trace, parse_columns, token_count
from sim.workloads.timeless import Timeless

SOURCE = (
    "https://github.com/microsoft/sarathi-serve, "
    "data/processed_traces/sharegpt_8k_filtered_stats_llama2_tokenizer.csv"
)


@dataclass(frozen=True, slots=True)
class LengthsCsv(Timeless):
    """Lengths from two columns of a CSV file."""

    prompt_column: str = "num_prefill_tokens"
    output_column: str = "num_decode_tokens"

    def read(self) -> Rows:
        """All rows, at time 0 so far."""
        parsers = {self.prompt_column: token_count, self.output_column: token_count}
        with open_trace(self.path, "sharegpt", SOURCE) as file:
            columns = parse_columns(file, csv_records(file, parsers), parsers)
        prompts, outputs = columns.tokens(self.prompt_column), columns.tokens(self.output_column)
        return ordered_rows(np.zeros(len(prompts), np.int64), prompts, outputs)
