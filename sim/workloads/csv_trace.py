"""Any CSV file with a request a row: which column is what, and in which unit the times are."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Literal

from sim.workloads.azure import timestamp_ns
from sim.workloads.base import Labels, Rows, WorkloadError, ordered_rows
from sim.workloads.recorded import RecordedTrace
from sim.workloads.table import Columns, Parse, csv_records, open_trace, parse_columns, token_count
from sim.workloads.times import since_first_ns


def time(cell: object) -> Decimal:
    """A time as a number, exactly as it is written: a float of seconds since 1970 holds no nanoseconds."""
    try:
        number = Decimal(str(cell).strip())
    except InvalidOperation:
        number = Decimal("NaN")
    if not number.is_finite() or abs(number) >= 2**63:
        raise ValueError("is not a time: a number in workload.time_unit (timestamp: 2023-11-16 18:15:46.68)")
    return number


def whole(cell: object) -> int:
    """A whole number of either sign."""
    try:
        return int(str(cell))
    except ValueError:
        raise ValueError("is not a whole number") from None


def limit(cell: object) -> int:
    """A number of tokens, at least 1."""
    number = token_count(cell)
    if number < 1:
        raise ValueError("is no limit: must be at least 1")
    return number


@dataclass(frozen=True, slots=True)
class CsvTrace(RecordedTrace):
    """Requests from the columns that these names point at; the first request arrives at 0.

    The defaults are the columns of Sarathi-Serve and Vidur. `time_unit` is that of the arrivals; timestamp:
    date and time, UTC unless they name a zone. A column that is not named (None) is not read.
    """

    arrival_column: str = "arrived_at"
    prompt_column: str = "num_prefill_tokens"
    output_column: str = "num_decode_tokens"
    time_unit: Literal["s", "ms", "us", "ns", "timestamp"] = "s"
    client_column: str | None = None
    """An empty cell: no client."""
    priority_column: str | None = None
    """Whole numbers; lower goes first."""
    request_id_column: str | None = None
    """None: r00000 and so on, by position in the file."""
    max_tokens_column: str | None = None
    """The limit on output tokens that the client sent."""

    def read(self) -> Rows:
        """All rows; they need not be in order of time."""
        is_timestamp = self.time_unit == "timestamp"
        parsers: dict[str, Parse] = {
            self.arrival_column: timestamp_ns if is_timestamp else time,
            self.prompt_column: token_count,
            self.output_column: token_count,
        }
        for name, parse in ((self.priority_column, whole), (self.max_tokens_column, limit)):
            if name is not None:
                parsers[name] = parse
        texts = [name for name in (self.client_column, self.request_id_column) if name is not None]
        with open_trace(self.path, "csv") as file:
            columns = parse_columns(file, csv_records(file, [*parsers, *texts]), parsers, texts)
            times_ns = since_first_ns(columns, self.arrival_column, "ns" if is_timestamp else self.time_unit)
            labels = self._labels(columns)
        prompts, outputs = columns.tokens(self.prompt_column), columns.tokens(self.output_column)
        return ordered_rows(times_ns, prompts, outputs, labels)

    def _labels(self, columns: Columns) -> Labels:
        ids, clients = self.request_id_column, self.client_column
        return Labels(
            request_id=None if ids is None else unique(columns, ids),
            client=None if clients is None else [client or None for client in columns.texts[clients]],
            priority=_whole_numbers(columns, self.priority_column),
            max_tokens=_whole_numbers(columns, self.max_tokens_column),
        )


def unique(columns: Columns, name: str) -> list[str]:
    """A column of ids.

    Raises:
        WorkloadError: one is empty, or is used twice; names both places.
    """
    rows: dict[str, int] = {}
    for row, request_id in enumerate(columns.texts[name]):
        if not request_id:
            raise WorkloadError(f"{columns.place(row, name)}: is empty; every request needs an id")
        if request_id in rows:
            first = columns.lines[rows[request_id]]
            raise WorkloadError(
                f"{columns.place(row, name)}: {request_id!r} is the id of line {first} too; ids are unique"
            )
        rows[request_id] = row
    return list(rows)


def _whole_numbers(columns: Columns, name: str | None) -> list[int] | None:
    return None if name is None else [int(number) for number in columns.values[name]]
