"""A run log that is written as the run goes is the one that is kept in memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest

from engine.core.events import EventKind
from engine.core.policies.restore import Recompute, Restore, Swap
from engine.telemetry.memory import binned_states
from engine.telemetry.metrics import summarize
from engine.telemetry.recorder import Recorder
from engine.telemetry.runlog import RunLog, StoredLog, read_run
from engine.telemetry.schema import World
from engine.telemetry.series import time_series
from engine.telemetry.timeline import write_timeline
from engine.telemetry.window import Measure
from engine.telemetry.writer import RunWriter
from tests.telemetry.scripted import CAPACITY, MS, Script, decode, ended, prefill
from tests.telemetry.test_with_core import CAPACITY as POOL
from tests.telemetry.test_with_core import run


def by_id(requests: pd.DataFrame) -> pd.DataFrame:
    return requests.sort_values("request_id", ignore_index=True)


def by_text(events: list[dict[str, Any]]) -> list[str]:
    return sorted(map(json.dumps, events))


def assert_equal(log: RunLog, kept: RunLog) -> None:
    pd.testing.assert_frame_equal(log.steps, kept.steps, check_exact=True)
    pd.testing.assert_frame_equal(by_id(log.requests), by_id(kept.requests), check_exact=True)


@pytest.mark.parametrize("max_n", [1, 3])
@pytest.mark.parametrize("restore", [Swap(), Recompute()], ids=["swap", "recompute"])
def test_what_is_written_in_pieces_is_what_is_kept_in_memory(
    restore: Restore, max_n: int, tmp_path: Path
) -> None:
    writer = RunWriter(tmp_path, World.SIMULATED, POOL)
    recorder = Recorder(writer.drain, drain_steps=20)
    log, _ = run(restore, max_n, 5, 0.3, [recorder])
    writer.close(recorder)
    assert pq.ParquetFile(tmp_path / "steps.parquet").num_row_groups >= 5
    assert pq.ParquetFile(tmp_path / "requests.parquet").num_row_groups >= 5
    assert not recorder.records and not recorder.steps and not recorder.moves
    assert_equal(read_run(tmp_path), log)

    stored = StoredLog(tmp_path)
    for measure in (None, Measure(warm_up=0.2, cool_down=0.1)):
        summary = summarize(log, {"ttft": 1.0}, measure)
        assert summarize(stored, {"ttft": 1.0}, measure) == pytest.approx(summary, rel=1e-12, nan_ok=True)
    pd.testing.assert_frame_equal(time_series(stored), time_series(log), check_exact=True)
    pd.testing.assert_frame_equal(binned_states(stored, 50), binned_states(log, 50), rtol=1e-12)
    write_timeline(log, tmp_path / "kept.json", max_steps=100)
    write_timeline(stored, tmp_path / "stored.json", max_steps=100)
    kept, read = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("kept", "stored"))
    assert by_text(read["traceEvents"]) == by_text(kept["traceEvents"])
    assert read["otherData"] == kept["otherData"]


def test_a_part_that_a_backend_names_late_is_zero_before(tmp_path: Path) -> None:
    """And the periods are whole, though a period ends after its step was told."""
    writer = RunWriter(tmp_path, World.MEASURED, CAPACITY)
    script = Script(Recorder(writer.drain, drain_steps=2))
    for index in range(30):
        name = f"r{index}"
        script.arrive(name, 30 * index, 3)
        parts_ns = {"linear": 1e6} if index < 29 else {"linear": 2e6, "swap": 1e6}
        script.step(30 * index, 30 * index + 10, [prefill(name, 0, 3)], admitted=[name], parts_ns=parts_ns)
        end = [ended(name, EventKind.FINISHED, 30 * index + 20)]
        script.step(
            30 * index + 10, 30 * index + 20, [decode(name, 3)], finished=[(name, 0)], events=end,
            closed_ms=30 * index + 25,
        )  # fmt: skip
    writer.close(script.recorder)
    log = read_run(tmp_path)
    assert log.steps["part_linear_ns"].tolist() == [1e6, 0] * 29 + [2e6, 0]
    assert log.steps["part_swap_ns"].tolist() == [0, 0] * 29 + [1e6, 0]
    assert log.steps["closed_ns"].tolist()[1::2] == [(30 * index + 25) * MS for index in range(30)]
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["requests.parquet", "steps.parquet"]


def test_a_run_without_a_step_has_its_files(tmp_path: Path) -> None:
    RunWriter(tmp_path, World.SIMULATED, CAPACITY).close(Recorder())
    assert_equal(read_run(tmp_path), Script().log())
