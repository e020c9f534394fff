from __future__ import annotations

import json
from pathlib import Path

import pytest

from engine.core.errors import UserError
from experiments import run
from experiments.against_vllm import METRICS, error_table, measured_summary
from tests.experiments.cli import QUICK, Cli

ROWS = [  # queued, first token, last token, tokens: TTFT 0.1 and 0.3 s, TPOT 20 and (of one token) none
    {"queued_ts": 50.0, "first_token_ts": 50.1, "last_token_ts": 50.3, "output_toks": 11},
    {"queued_ts": 51.0, "first_token_ts": 51.3, "last_token_ts": 51.3, "output_toks": 1},
]


def write(path: Path, rows: list[dict[str, float]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_latencies_of_a_measured_run(tmp_path: Path) -> None:
    summary = measured_summary(write(tmp_path / "requests.jsonl", ROWS))
    assert summary.keys() == set(METRICS)
    assert summary["mean_ttft_ms"] == pytest.approx(200)
    assert summary["mean_tpot_ms"] == pytest.approx(20)
    assert summary["mean_e2el_ms"] == pytest.approx(300)


def test_bad_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no file .*nothing.jsonl"):
        measured_summary(tmp_path / "nothing.jsonl")
    damaged = write(tmp_path / "requests.jsonl", [ROWS[0], {"queued_ts": 1.0}])
    with pytest.raises(UserError, match=r"requests.jsonl, line 2: not a measured request"):
        measured_summary(damaged)


def test_a_simulated_run_against_itself_is_without_error(cli: Cli) -> None:
    assert cli(run.main, *QUICK, "workload.num_requests=5").code == 0
    summary = json.loads((cli.directory / "summary.json").read_text())
    doubled = {metric: 2 * summary[metric] for metric in METRICS}
    table = error_table(doubled, [cli.directory])
    assert [str(cell) for cell in table.columns[2].cells] == ["-50.0"] * len(METRICS)
