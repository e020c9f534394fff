"""A cost model comes back from the folders of runs that it priced."""

from __future__ import annotations

import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from engine.core.spec import Capacity, Limits
from experiments import refit, run
from sim.cost.fitted import Fitted
from sim.cost.ranges import Range, Ranges
from sim.cost.setup import Setup, described
from sim.cost.terms import FEATURES, FitReport
from tests.experiments.cli import QUICK, Cli
from tests.sim.test_cost_fitted import TRUE as COEFFICIENTS

TRUE = replace(COEFFICIENTS, ns_per_prefill_context_token=20.0)  # so that no term is without effect
TINY = {
    "architecture": "LlamaConfig",
    "config": {
        "vocab_size": 2048,
        "hidden_size": 384,
        "intermediate_size": 1024,
        "num_hidden_layers": 4,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
    },
    "path": None,
    "dtype": "float32",
}
RUN = (
    *QUICK, "model=tiny_llama", "limits=window_512_chunked", "pool=blocks", "pool.num_blocks=40",
    "pool.num_host_blocks=64", "workload=azure_like", "workload.num_requests=40", "workload.rate_per_s=500",
    "workload.shape.fit_lengths=scale",
)  # fmt: skip


@pytest.fixture
def true_costs(tmp_path: Path) -> Path:
    path = tmp_path / "true.json"
    setup = Setup(described(**TINY), Capacity(96, 96, 16), Limits(32, 128, 512), {})
    ranges = Ranges(dict.fromkeys(FEATURES, Range(0, 10**9)))
    report = FitReport(1, 0, 0.0, 0.0, 0.0, 1.0, {}, ())
    Fitted(TRUE, 32, setup, ranges, report, {"date": "today"}).save(path)
    return path


def fitted(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["refit", *map(str, arguments)])
    refit.main()


def test_the_costs_of_simulated_runs_come_back_from_their_folders(
    cli: Cli,
    true_costs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folders = []
    for change in (("restore=swap",), ("restore=swap", "workload.shape.n=3")):
        finished = cli(run.main, *RUN, "cost=fitted", f"cost.path='{true_costs}'", *change)
        assert finished.code == 0, finished.err
        folders.append(cli.directory)
    fitted(monkeypatch, *folders, "--out", tmp_path / "refit")
    found = Fitted.load(tmp_path / "refit" / "cost_model.json")
    assert found.knee_tokens == 32
    assert asdict(found.coefficients) == pytest.approx(asdict(TRUE), rel=1e-3)
    assert found.setup.model == Fitted.load(true_costs).setup.model

    config = folders[1] / "config.yaml"
    config.write_text(config.read_text().replace("dtype: float32", "dtype: float16"))
    with pytest.raises(SystemExit):
        fitted(monkeypatch, *folders)
    error = capsys.readouterr().err
    assert f"{folders[1]}: {folders[0]} was measured with another model" in error and "model.dtype" in error


def test_a_folder_without_a_run_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        fitted(monkeypatch, tmp_path)
    assert f"{tmp_path / 'steps.parquet'} does not exist" in capsys.readouterr().err
