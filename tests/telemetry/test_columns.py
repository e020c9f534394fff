"""Every column of the run log has a meaning, in the files and on the page."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq

import engine.telemetry.columns
from engine.telemetry.columns import REQUESTS, STEPS, markdown
from engine.telemetry.runlog import write_run
from engine.telemetry.schema import REQUEST_COLUMNS, STEP_COLUMNS
from tests.telemetry.scripted import two_requests


def test_every_column_is_described_and_no_other() -> None:
    assert set(STEPS) == set(STEP_COLUMNS)
    assert set(REQUESTS) == set(REQUEST_COLUMNS)
    assert all(column.description for column in (*STEPS.values(), *REQUESTS.values()))
    for name, column in (*STEPS.items(), *REQUESTS.items()):
        assert (column.unit == "ns") == name.endswith("_ns"), name


def test_the_page_is_that_of_the_code() -> None:
    page = Path(engine.telemetry.columns.__file__).with_name("COLUMNS.md")
    assert page.read_text() == markdown(), "python -m engine.telemetry.columns > engine/telemetry/COLUMNS.md"


def test_the_files_carry_the_descriptions(tmp_path: Path) -> None:
    write_run(two_requests().log(), tmp_path, {}, "")
    for name in ("steps", "requests"):
        schema = pq.read_schema(tmp_path / f"{name}.parquet")
        assert all(field.metadata[b"description"] for field in schema)
    duration = pq.read_schema(tmp_path / "steps.parquet").field("duration_ns")
    assert duration.metadata == {b"unit": b"ns", b"description": STEPS["duration_ns"].description.encode()}
