"""Reading CSV and JSON lines into columns of numbers; errors name the file, the line and the column.

Line numbers are those that an editor shows. A bad cell stops the run before it starts: guessing a length
would change the experiment in silence.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple, TextIO

import numpy as np

from sim.workloads.base import MAX_TOKENS, IntArray, WorkloadError
from sim.workloads.sniff import hint

Number = int | float | Decimal
Parse = Callable[[object], Number]
"""Turns a cell into a number; its ValueError says what is wrong, as the end of a sentence."""


class Record(NamedTuple):
    """One request as the file has it."""

    line: int
    cells: Mapping[str, object]


def token_count(cell: object) -> int:
    """A length in tokens: 374, "374" or "374.0" (which pandas writes for a column with gaps)."""
    try:
        number = float(cell) if isinstance(cell, str | int | float) and not isinstance(cell, bool) else None
    except (ValueError, OverflowError):
        number = None
    if number is not None and number < 0:
        raise ValueError("is negative")
    if number is None or not number.is_integer():
        raise ValueError("is not a whole number of tokens")
    if number > MAX_TOKENS:
        raise ValueError("is too large for a number of tokens")
    return int(number)


@contextmanager
def open_trace(path: str | None, reader: str, source: str | None = None) -> Iterator[TextIO]:
    """Open a trace as text for a reader, a choice of conf/workload.

    Where there is none, say where to get one (`source`); where it is of another format, say which reader
    fits it.
    """
    where = "" if source is None else f" (where to get it: {source})"
    if path is None:
        raise WorkloadError(f"workload.path must name the trace{where}")
    if not Path(path).is_file():
        raise WorkloadError(f"workload.path: there is no file {path}{where}")
    try:
        with Path(path).open(encoding="utf-8-sig", newline="") as file:
            yield file
    except WorkloadError as error:
        raise WorkloadError(f"{error}{hint(Path(path), reader)}") from None
    except UnicodeDecodeError as error:
        raise WorkloadError(f"{path}: not UTF-8 text: {error}") from None
    except OSError as error:
        raise WorkloadError(f"{path}: cannot be read: {error.strerror}") from None


def csv_records(file: TextIO, columns: Iterable[str]) -> Iterator[Record]:
    """The rows of a CSV file whose header names these columns, among others; empty lines are skipped."""
    reader = csv.reader(file, strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        missing = [name for name in columns if name not in header]
        if missing:
            raise WorkloadError(
                f"{file.name}: no column {' or '.join(missing)} in its header; "
                f"columns found: {', '.join(header) or 'none'}"
            )
        for row in reader:
            if row and len(row) != len(header):
                raise WorkloadError(
                    f"{file.name}, line {reader.line_num}: {len(row)} cells instead of {len(header)}"
                )
            if row:
                yield Record(reader.line_num, dict(zip(header, row, strict=True)))
    except csv.Error as error:
        raise WorkloadError(f"{file.name}, line {reader.line_num}: not CSV: {error}") from None


def json_records(file: TextIO, fields: Iterable[str]) -> Iterator[Record]:
    """The objects of a file with one JSON object a line, each with these fields; empty lines are skipped."""
    names = list(fields)
    for line, text in enumerate(file, start=1):
        if not text.strip():
            continue
        try:
            cells = json.loads(text)
        except json.JSONDecodeError as error:
            raise not_json(file.name, line, error) from None
        if not isinstance(cells, dict):
            raise WorkloadError(f"{file.name}, line {line}: not a JSON object")
        missing = [name for name in names if name not in cells]
        if missing:
            raise WorkloadError(
                f"{file.name}, line {line}: no field {' or '.join(missing)}; "
                f"fields found: {', '.join(cells) or 'none'}"
            )
        yield Record(line, cells)


def not_json(path: str, line: int, error: json.JSONDecodeError) -> WorkloadError:
    """What to raise where a file holds something else than JSON."""
    return WorkloadError(f"{path}, line {line}: not JSON: {error.msg} at character {error.colno}")


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns of a trace, as its parsers gave them, and where each row stands."""

    path: str
    lines: Sequence[int]
    values: Mapping[str, Sequence[Number]]
    texts: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Columns that are no numbers, without the space around them."""

    def tokens(self, name: str) -> IntArray:
        """A column of lengths."""
        return np.array(self.values[name], np.int64)

    def place(self, row: int, name: str) -> str:
        """File, line and column of a cell, for messages."""
        return f"{self.path}, line {self.lines[row]}, column {name}"


def parse_columns(
    file: TextIO, records: Iterable[Record], parsers: Mapping[str, Parse], texts: Iterable[str] = ()
) -> Columns:
    """The parsed columns, by the names of `parsers`, and those that are texts."""
    lines: list[int] = []
    values: dict[str, list[Number]] = {name: [] for name in parsers}
    words: dict[str, list[str]] = {name: [] for name in texts}
    for record in records:
        lines.append(record.line)
        for name, parse in parsers.items():
            values[name].append(_parse(file.name, record, name, parse))
        for name, column in words.items():
            column.append(str(record.cells[name]).strip())
    if not lines:
        raise WorkloadError(f"{file.name}: the trace is empty: it holds no request")
    return Columns(file.name, lines, values, words)


def _parse(path: str, record: Record, name: str, parse: Parse) -> Number:
    cell = record.cells[name]
    try:
        return parse(cell)
    except ValueError as error:
        raise WorkloadError(f"{path}, line {record.line}, column {name}: {cell!r} {error}") from None
