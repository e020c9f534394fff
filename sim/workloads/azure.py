"""The Azure LLM inference traces: CSV with TIMESTAMP, ContextTokens and GeneratedTokens."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from sim.workloads.arrivals import NS_PER_S
from sim.workloads.base import Rows, ordered_rows
from sim.workloads.recorded import RecordedTrace
from sim.workloads.table import csv_records, open_trace, parse_columns, token_count
from sim.workloads.times import since_first_ns

SLICE = Path(__file__).parent / "data" / "AzureLLMInferenceTrace_conv_2000.csv"
"""The first 2,000 rows of the conversation trace; data/SOURCE.md."""
SOURCE = "https://github.com/Azure/AzurePublicDataset, data/AzureLLMInferenceTrace_conv.csv"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_TIMESTAMP = re.compile(
    r"\s*(\d{4}-\d\d-\d\d)[ T](\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)?\s*", re.ASCII
)


def timestamp_ns(cell: object) -> int:
    """Nanoseconds since 1970 of a UTC timestamp such as "2023-11-16 18:15:46.6805900", exactly.

    The fraction has 100 ns resolution, which neither a float of seconds nor `datetime` can hold.
    """
    match = _TIMESTAMP.fullmatch(str(cell))
    if match is None:
        raise ValueError("is not a timestamp such as 2023-11-16 18:15:46.6805900")
    date, clock, fraction, zone = match.groups()
    try:
        whole = datetime.fromisoformat(f"{date}T{clock}{(zone or 'Z').replace('Z', '+00:00')}")
    except ValueError as error:
        raise ValueError(f"is not a timestamp: {error}") from None
    return (whole - _EPOCH) // timedelta(seconds=1) * NS_PER_S + int((fraction or "0").ljust(9, "0"))


@dataclass(frozen=True, slots=True)
class AzureTrace(RecordedTrace):
    """Azure's 2023 traces (code, conversation) and, in the same format, those of 2024.

    Patel et al., "Splitwise: Efficient generative LLM inference using phase splitting", ISCA 2024. Without a
    path: the slice that comes with this package.
    """

    def read(self) -> Rows:
        """All rows; the first request of the file need not be the earliest."""
        parsers = {"TIMESTAMP": timestamp_ns, "ContextTokens": token_count, "GeneratedTokens": token_count}
        with open_trace(self.path or str(SLICE), "azure", SOURCE) as file:
            columns = parse_columns(file, csv_records(file, parsers), parsers)
        times_ns = since_first_ns(columns, "TIMESTAMP", "ns")
        return ordered_rows(times_ns, columns.tokens("ContextTokens"), columns.tokens("GeneratedTokens"))
