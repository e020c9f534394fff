"""What is served is what was asked for, or the run says what else, in its header and in its summary."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engine.telemetry.runlog import read_run, read_summary
from experiments import run
from tests.experiments.cli import QUICK, Cli
from tests.test_configs import composed

TINY = (
    "backend=torch",
    "num_warm_up_requests=0",
    "model.config.hidden_size=32",
    "model.config.intermediate_size=32",
    "model.config.num_hidden_layers=1",
    "model.config.num_attention_heads=2",
)


def mooncake(tmp_path: Path, num_requests: int, gap_ms: int = 250) -> tuple[str, str]:
    """Lengths like those of the conversation trace: most prompts are longer than a window of 4096."""
    prompts = (900, 7_000, 12_000, 3_000)
    rows = (
        {"timestamp": gap_ms * i + i % 3, "input_length": prompts[i % 4], "output_length": 30}
        for i in range(num_requests)
    )
    path = tmp_path / "trace.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return "workload=mooncake", f"workload.path={path}"


def test_a_simulation_keeps_lengths_and_rejects_what_does_not_fit(cli: Cli, tmp_path: Path) -> None:
    finished = cli(run.main, *QUICK, *mooncake(tmp_path, 200))
    assert finished.code == 0, finished.err
    assert "workload: 200 of 200 requests, 4 requests/s offered, 5,725 prompt and 30 output" in finished.out
    warning = (
        "warning: lengths: of 200 requests 100 with prompts that fill the window, to be rejected: 17.2% of"
    )
    assert warning in finished.out
    assert "limits.max_model_len" in finished.out
    summary = read_summary(cli.directory)
    assert (summary["completed"], summary["num_rejected"]) == (100, 100)
    assert summary["offered_rate_per_s"] == pytest.approx(4, rel=0.01)
    assert summary["workload_scale"] == 1
    assert summary["workload_too_long_share"] == 0.5
    requests = read_run(cli.directory).requests
    assert set(requests["num_prompt_tokens"]) == {900, 7_000, 12_000, 3_000}


def test_a_larger_window_serves_them_all(cli: Cli, tmp_path: Path) -> None:
    finished = cli(run.main, *QUICK, *mooncake(tmp_path, 200), "limits=window_131072")
    assert "warning" not in finished.out and "lengths:" not in finished.out
    summary = read_summary(cli.directory)
    assert (summary["completed"], summary["workload_token_share"]) == (200, 1)


def test_a_trace_is_taken_whole(cli: Cli, tmp_path: Path) -> None:
    assert cli(run.main, *QUICK, *mooncake(tmp_path, 1_000), "limits=window_131072").code == 0
    assert read_summary(cli.directory)["num_requests"] == 1_000


def test_the_engine_takes_a_part_and_scales_and_says_both(cli: Cli, tmp_path: Path) -> None:
    finished = cli(run.main, *QUICK, *TINY, *mooncake(tmp_path, 30), "max_requests=12", "pool.num_blocks=64")
    assert finished.code == 0, finished.err
    assert "workload: 12 of 30 requests" in finished.out
    assert "only the first 12 of 30 requests: workload.max_requests=null takes all" in finished.out
    assert "warning: lengths: of 12 requests all scaled by 0.0426: 4.2% of their tokens" in finished.out
    assert read_summary(cli.directory)["workload_scale"] == pytest.approx(512 / 12_030)


def test_the_default_run_keeps_its_lengths(cli: Cli) -> None:
    finished = cli(run.main, *QUICK)
    assert "workload: 2,000 of 2,000 requests" in finished.out
    assert "warning" not in finished.out
    summary = read_summary(cli.directory)
    assert summary["completed"] == 2_000
    assert summary["workload_scale"] == 1 and summary["workload_token_share"] > 0.95


@pytest.mark.parametrize("primary", ["run", "validate", "calibrate"])
@pytest.mark.parametrize("pool", ["blocks", "tight"])
def test_host_blocks_follow_device_blocks(primary: str, pool: str) -> None:
    config = composed(primary, f"pool={pool}", "pool.num_blocks=777")
    assert config.pool.num_host_blocks == 777


def test_swap_is_swap(cli: Cli) -> None:
    swap = (*QUICK, "restore=swap", "pool=blocks", "pool.num_blocks=1200")
    finished = cli(run.main, *swap)
    summary = read_summary(cli.directory)
    assert summary["num_swap_preemptions"] == summary["num_preemptions"] > 0
    assert "fell back" not in finished.out
    few = cli(run.main, *swap, "pool.num_host_blocks=128")
    summary = read_summary(cli.directory)
    num_fallbacks, num_preemptions = int(summary["num_fallbacks"]), int(summary["num_preemptions"])
    assert num_fallbacks > 0
    assert f"{num_fallbacks} of {num_preemptions} preemptions fell back from swap to" in few.out
    assert "pool.num_host_blocks" in few.out
