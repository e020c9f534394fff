"""The table of compiler reports in the README."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import triton

from pagedkv.aot import Report
from pagedkv.markdown import read_between, table, write_between

README = Path(__file__).parents[2] / "README.md"
MARKER = "compiler report"
COLUMNS = {
    "registers": "registers",
    "shared_bytes": "shared bytes",
    "instructions": "instructions",
    "async_copies_128": "128-bit async copies",
    "loads_128": "128-bit loads",
    "matrix_ops": "matrix instructions",
}
"""What of a report is shown, and under which name."""


def markdown(reports: Sequence[Report]) -> str:
    """The table of the README: of each figure that on sm_80, then that on sm_90."""
    grouped: dict[tuple[str, int, int], dict[int, Report]] = {}
    for report in reports:
        grouped.setdefault((report.name, report.num_warps, report.num_stages), {})[report.arch] = report
    rows = [[*key, *(_pair(found, name) for name in COLUMNS)] for key, found in grouped.items()]
    names = ["kernel, configuration", "warps", "stages", *COLUMNS.values()]
    return f"Compiled by Triton {triton.__version__}; sm_80 / sm_90.\n\n{table(names, rows)}"


def _pair(reports: Mapping[int, Report], name: str) -> str:
    values = [getattr(reports[arch], name) if arch in reports else None for arch in (80, 90)]
    return " / ".join("-" if value is None else f"{value:,}" for value in values)


def write(reports: Sequence[Report]) -> None:
    """Renew the table in the README."""
    write_between(README, MARKER, markdown(reports))


def in_readme() -> str:
    """The table that stands in the README."""
    return read_between(README, MARKER)
