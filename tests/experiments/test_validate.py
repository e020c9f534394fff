"""The main job, small: a model of two layers, a few requests, one round of calibration."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pandas as pd
import pytest

from engine.core.journal import replay
from engine.telemetry.runlog import read_run
from experiments import calibrate, run, validate
from experiments.compare import METRICS, compare
from experiments.compose import contenders_from_config
from sim.cost.fitted import Fitted
from tests.experiments.cli import QUICK, Cli
from tests.test_configs import composed

SMALL = (
    "model.config.hidden_size=64",
    "model.config.intermediate_size=128",
    "model.config.num_hidden_layers=2",
    "model.config.num_attention_heads=2",
    "pool.num_blocks=48",
    "calibration.num_rounds=1",
    "calibration.workloads.traffic.num_requests=12",
    "calibration.workloads.decodes.num_requests=2",
    "workload.num_requests=24",
)
HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens\n"


def summary(value: float) -> dict[str, float]:
    return dict.fromkeys(METRICS, value)


def test_compare_gives_error_spread_and_verdict() -> None:
    table = compare({"swap": summary(105.0)}, {"swap": [summary(99.0), summary(101.0)]})
    assert table["metric"].tolist() == list(METRICS)
    row = table.iloc[0]
    assert row["measured"] == 100.0
    assert row["error"] == pytest.approx(0.05)
    assert row["spread"] == pytest.approx(0.02)
    assert row["allowed"] == 0.10
    assert table["holds"].all()


def test_compare_allows_twice_the_spread_and_no_more() -> None:
    measured = {"swap": [summary(90.0), summary(110.0)]}
    assert compare({"swap": summary(139.0)}, measured)["holds"].all()
    assert not compare({"swap": summary(141.0)}, measured)["holds"].any()


def test_compare_of_what_never_happened() -> None:
    nothing = compare({"swap": summary(0.0)}, {"swap": [summary(0.0), summary(0.0)]})
    assert nothing["holds"].all()
    imagined = compare({"swap": summary(1.0)}, {"swap": [summary(0.0), summary(0.0)]})
    assert imagined["error"].eq(math.inf).all()
    assert not imagined["holds"].any()


def test_the_main_job(cli: Cli) -> None:
    finished = cli(validate.main, *SMALL, "timeline=false", "plots=false")
    assert finished.code == 0, finished.err
    folders = sorted(path.name for path in cli.directory.iterdir() if path.is_dir() and path.name != ".hydra")
    kinds = ("measured-1", "measured-2", "simulated")
    assert folders == [f"{name}-{kind}" for name in ("recompute", "swap") for kind in kinds]
    comparison = pd.read_csv(cli.directory / "comparison.csv")
    assert set(comparison["policy"]) == {"swap", "recompute"}
    assert (comparison.groupby("policy").size() == len(METRICS)).all()
    for name in ("comparison.png", "latency.png", "calibration.png", "cost_model.json"):
        assert name in finished.out
    assert finished.out.count("byte-equal") == 4
    assert "DIFFERENT[/red]" not in finished.out
    assert "errors within 10 % or twice the spread" in finished.out
    assert "peak RSS" in finished.out
    assert_same_requests_and_pressure(cli.directory)
    assert_journals_tell_policies_apart(cli.directory)


def assert_same_requests_and_pressure(directory: Path) -> None:
    """Both worlds serve the same requests to their ends, and each contender is preempted in its own way."""
    for contender, other in (("swap", "recompute"), ("recompute", "swap")):
        logs = [
            read_run(directory / f"{contender}-{kind}") for kind in ("simulated", "measured-1", "measured-2")
        ]
        for log in logs:
            assert (log.requests["status"] == "finished").all()
            assert log.requests[f"num_{contender}_preemptions"].sum() > 0
            assert log.requests[f"num_{other}_preemptions"].sum() == 0
            columns = ["request_id", "arrival_ns", "num_prompt_tokens", "num_output_tokens"]
            assert log.requests[columns].equals(logs[0].requests[columns])


def assert_journals_tell_policies_apart(directory: Path) -> None:
    contenders = contenders_from_config(composed("validate"))
    lines = (directory / "swap-measured-1" / "journal.jsonl").read_text().splitlines()
    assert replay(lines, contenders["swap"]) is None
    assert replay(lines, contenders["recompute"]) is not None


def test_a_recorded_trace(cli: Cli, tmp_path: Path) -> None:
    rows = [f"2023-11-16 18:15:{i:02d}.0000000,{400 + 40 * i},{100 + 10 * i}" for i in range(12)]
    path = tmp_path / "trace.csv"
    path.write_text(HEADER + "\n".join(rows) + "\n")
    trace = ("workload=azure", f"workload.path={path}", "workload.num_requests=12")
    contender = "~restore@contenders.swap.restore"
    finished = cli(validate.main, *SMALL, *trace, contender, "num_repeats=1", "plots=false", "timeline=false")
    assert finished.code == 0, finished.err
    requests = read_run(cli.directory / "recompute-measured-1").requests
    assert len(requests) == 12
    lengths = requests["num_prompt_tokens"] + requests["num_output_tokens"]
    assert lengths.max() == pytest.approx(512, abs=2)  # scaled to the window


def test_what_was_calibrated_can_be_simulated(cli: Cli) -> None:
    finished = cli(calibrate.main, *SMALL)
    assert finished.code == 0, finished.err
    path = cli.directory / "cost_model.json"
    model = Fitted.load(path)
    assert model.report.unmeasured == ()
    assert model.provenance["model"] == "LlamaConfig"
    steps = pd.read_csv(cli.directory / "calibration_steps.csv")
    assert len(steps) == model.report.num_steps
    assert steps[["num_blocks_swapped_out", "num_blocks_swapped_in", "num_blocks_copied"]].sum().min() > 0
    assert "cost=fitted" in finished.out

    twin = ("cost=fitted", f"cost.path={path}", "limits=window_512_chunked", "pool=tight")
    simulated = cli(run.main, *QUICK, *twin, "workload.num_requests=20")
    assert simulated.code == 0, simulated.err
    assert json.loads((cli.directory / "summary.json").read_text())["completed"] == 20
