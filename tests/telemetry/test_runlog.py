from __future__ import annotations

import json
import math
from pathlib import Path

import pandas as pd
import pytest

from engine.telemetry.metrics import summarize
from engine.telemetry.runlog import create_run_directory, read_run, read_summary, write_run
from engine.telemetry.schema import REQUEST_COLUMNS, STEP_COLUMNS, World
from tests.telemetry.scripted import CAPACITY, Script, two_requests


@pytest.mark.parametrize("script", [two_requests(), Script()], ids=["two requests", "empty"])
def test_what_is_read_back_is_what_was_written(script: Script, tmp_path: Path) -> None:
    log = script.log(World.MEASURED)
    write_run(log, tmp_path, summarize(log))
    back = read_run(tmp_path)
    assert (back.world, back.capacity) == (World.MEASURED, CAPACITY)
    pd.testing.assert_frame_equal(back.steps, log.steps, check_exact=True)
    pd.testing.assert_frame_equal(back.requests, log.requests, check_exact=True)


def test_times_beyond_the_precision_of_floats_survive(tmp_path: Path) -> None:
    log = two_requests().log()
    odd = 2**60 + 1
    log.requests.loc[0, "end_ns"] = odd
    log.requests.loc[1, "end_ns"] = pd.NA
    write_run(log, tmp_path, {})
    ends = read_run(tmp_path).requests["end_ns"]
    assert ends[0] == odd and ends[1] is pd.NA


def test_one_schema_for_both_worlds() -> None:
    simulated, measured = two_requests().log(), two_requests().log(World.MEASURED)
    assert (simulated.steps.dtypes == measured.steps.dtypes).all()
    assert simulated.requests.columns.tolist() == ["world", *REQUEST_COLUMNS]
    assert simulated.steps.columns.tolist()[: 1 + len(STEP_COLUMNS)] == ["world", *STEP_COLUMNS]
    assert simulated.steps["world"].unique().tolist() == ["simulated"]
    assert measured.requests["world"].unique().tolist() == ["measured"]


def test_equal_runs_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        log = two_requests().log()
        directory = create_run_directory(tmp_path, name)
        files = write_run(log, directory, summarize(log), config_text="seed: 0\n")
        assert [file.name for file in files] == [
            "steps.parquet",
            "requests.parquet",
            "summary.json",
            "config.yaml",
        ]
    for file in files:
        assert file.read_bytes() == (tmp_path / "one" / file.name).read_bytes()


def test_summary_keeps_undefined_values_as_null(tmp_path: Path) -> None:
    log = two_requests().log()
    write_run(log, tmp_path, {"completed": 2, "swap_tax": math.nan})
    raw = json.loads((tmp_path / "summary.json").read_text())
    assert raw["world"] == "simulated" and raw["capacity"]["block_size"] == 4
    assert raw["swap_tax"] is None
    summary = read_summary(tmp_path)
    assert summary["completed"] == 2 and math.isnan(summary["swap_tax"])
    assert summary.keys() == {"completed", "swap_tax"}


def test_a_directory_is_never_used_twice(tmp_path: Path) -> None:
    names = [create_run_directory(tmp_path / "runs", "fcfs").name for _ in range(3)]
    assert names == ["fcfs", "fcfs-2", "fcfs-3"]


def test_errors_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"steps.parquet does not exist"):
        read_run(tmp_path)
    with pytest.raises(ValueError, match=r"summary.json does not exist"):
        read_summary(tmp_path)
    for name in ("steps", "requests"):
        pd.DataFrame({"x": [1]}).to_parquet(tmp_path / f"{name}.parquet")
    with pytest.raises(ValueError, match="is not a run log"):
        read_run(tmp_path)
