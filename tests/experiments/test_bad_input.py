"""Bad input ends a command with one clear message and a non-zero exit code, and without a traceback."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.core.errors import UserError
from experiments import run, validate
from tests.experiments.cli import QUICK, Cli

HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
ROW = "2023-11-16 18:15:46.6805900,374,44\n"


def refused(cli: Cli, *arguments: str) -> str:
    """The message of a run that must not start."""
    finished = cli(run.main, *QUICK, *arguments)
    assert finished.code == 1, finished
    assert "Traceback" not in finished.err
    assert not (cli.directory / "summary.json").exists()
    return finished.err


def refused_trace(cli: Cli, tmp_path: Path, text: str) -> str:
    path = tmp_path / "trace.csv"
    path.write_text(text)
    return refused(cli, "workload=azure", f"workload.path={path}", "workload.num_requests=null")


def test_trace_missing(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "none.csv"
    error = refused(cli, "workload=azure", f"workload.path={path}")
    assert error.startswith(f"error: workload.path: there is no file {path}")
    assert "https://github.com/Azure/AzurePublicDataset" in error


def test_column_missing(cli: Cli, tmp_path: Path) -> None:
    error = refused_trace(cli, tmp_path, "TIMESTAMP,ContextTokens\n2023-11-16 18:15:46.68,374\n")
    assert "trace.csv: no column GeneratedTokens in its header" in error


@pytest.mark.parametrize(
    ("cell", "complaint"), [("many", "is not a whole number of tokens"), ("-5", "is negative")]
)
def test_bad_cell(cli: Cli, tmp_path: Path, cell: str, complaint: str) -> None:
    error = refused_trace(cli, tmp_path, HEADER + ROW + f"2023-11-16 18:15:47.0000000,{cell},44\n")
    assert f"trace.csv, line 3, column ContextTokens: '{cell}' {complaint}" in error


def test_empty_trace(cli: Cli, tmp_path: Path) -> None:
    assert "the trace is empty: it holds no request" in refused_trace(cli, tmp_path, HEADER)


def test_a_bad_trace_is_told_before_anything_is_calibrated(cli: Cli, tmp_path: Path) -> None:
    finished = cli(validate.main, "workload=azure", f"workload.path={tmp_path / 'none.csv'}")
    assert finished.code == 1
    assert finished.err.startswith("error: workload.path: there is no file")
    assert finished.out == ""


@pytest.mark.parametrize(
    ("pool", "reason"),
    [
        (("pool=blocks", "pool.num_blocks=30"), "and the pool allows 30 of its 30"),
        (("limits.max_model_len=512",), "model's window of 512"),
    ],
)
def test_a_request_that_never_fits_is_rejected_and_the_others_run_on(
    cli: Cli, tmp_path: Path, pool: tuple[str, ...], reason: str
) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(HEADER + ROW + ROW.replace("374", "700") + ROW)
    trace = ("workload=azure", f"workload.path={path}", "workload.num_requests=null")
    finished = cli(run.main, *QUICK, *trace, "workload.shape.fit_lengths=none", *pool)
    assert finished.code == 0, finished.err
    assert "1 of 3 requests rejected" in finished.out
    assert reason in finished.out


def test_unknown_policy(cli: Cli) -> None:
    error = refused(cli, "victim=tallest")
    assert "Could not find 'victim/tallest'" in error
    assert "last_admitted" in error  # the choices there are


def test_unknown_key(cli: Cli) -> None:
    known = "choose max_num_seqs, max_num_batched_tokens, max_model_len"
    for override in ("limits.max_tokens=4", "+limits.max_tokens=4"):
        error = refused(cli, override)
        assert "max_tokens" in error
        assert known in error
    assert "error: tensor_parallel is not known: choose order" in refused(cli, "+tensor_parallel=4")


def test_unknown_key_of_a_policy(cli: Cli) -> None:
    error = refused(cli, "+victim.strength=4")
    assert error.startswith("error: victim.strength is not known: LastAdmitted takes no keys")


def test_policy_of_no_module(cli: Cli) -> None:
    error = refused(cli, "victim._target_=no_such_module.Mine")
    assert error.startswith("error: victim._target_ is no_such_module.Mine: No module named 'no_such_module'")


def test_policy_value_out_of_range(cli: Cli) -> None:
    error = refused(cli, "admission=watermark", "admission.fraction=2")
    assert error.startswith("error: admission.fraction is 2: must be a number, at least 0 and below 1")


def test_pool_too_small_for_one_block(cli: Cli) -> None:
    assert "no room for a single block" in refused(cli, "pool=blocks", "pool.num_blocks=0")
    error = refused(cli, "hardware=l40s", "model=llama3_70b")
    assert "leaves no room for a KV block" in error


def test_memory_budget_too_small_for_one_block(cli: Cli) -> None:
    error = refused(cli, "backend=torch", "backend.num_blocks=null", "backend.memory_bytes=1000000")
    assert "no room for a single block" in error


def test_zero_rate(cli: Cli) -> None:
    error = refused(cli, "workload.rate_per_s=0")
    assert error.startswith("error: workload.rate_per_s is 0: must be a number, above 0, or null")


def test_load_of_zero(cli: Cli) -> None:
    finished = cli(validate.main, "load=0")
    assert finished.code == 1
    assert finished.err.startswith("error: load is 0")


def test_checkpoint_directory_without_weights(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    error = refused(cli, "backend=torch", "model=checkpoint", f"model.path={tmp_path}")
    assert f"{tmp_path}: a checkpoint directory without weights" in error


def test_checkpoint_missing(cli: Cli, tmp_path: Path) -> None:
    error = refused(cli, "backend=torch", "model=checkpoint", f"model.path={tmp_path / 'none'}")
    assert "no config.json here" in error


@pytest.mark.parametrize(
    ("architecture", "sizes"),
    [
        ("BloomConfig", "{vocab_size: 64, hidden_size: 32, n_layer: 2, n_head: 2}"),
        (
            "FalconConfig",
            "{vocab_size: 64, hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 2, alibi: true}",
        ),
    ],
)
def test_model_outside_the_attention_interface(cli: Cli, architecture: str, sizes: str) -> None:
    model = (f"model.architecture={architecture}", "~model.config", f"+model.config={sizes}")
    error = refused(cli, "backend=torch", *model)
    assert "cannot be served" in error


def test_fitted_cost_without_a_file(cli: Cli, tmp_path: Path) -> None:
    assert "error: cost.path must be given" in refused(cli, "cost=fitted")
    error = refused(cli, "cost=fitted", f"cost.path={tmp_path / 'none.json'}")
    assert "run `python -m experiments.calibrate` first" in error


def test_a_traceback_on_request(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAGETWIN_TRACEBACK", "1")
    with pytest.raises(UserError, match="rate_per_s is 0"):
        cli(run.main, *QUICK, "workload.rate_per_s=0")


STOPS = "workload.shape.stop_token_ids=[2,7]"


def test_a_comparison_refuses_stop_tokens_which_end_sequences_on_the_engine_only(cli: Cli) -> None:
    finished = cli(validate.main, STOPS)
    assert finished.code == 1
    assert finished.err.startswith(
        "error: workload.shape.stop_token_ids is [2, 7]: a stop token ends a sequence on"
    )
    assert finished.out == ""


def test_a_simulation_says_that_stop_tokens_have_no_effect(cli: Cli) -> None:
    finished = cli(run.main, *QUICK, STOPS, "workload.num_requests=5")
    assert finished.code == 0, finished.err
    assert (
        "workload.shape.stop_token_ids is [2, 7], without effect: a simulation draws no tokens"
        in finished.out
    )


def test_sampling_out_of_range_names_the_key(cli: Cli) -> None:
    error = refused(cli, "workload.shape.top_p=0")
    assert "workload.shape" in error and "top_p is 0" in error


def test_whole_prompts_do_not_fit_into_a_budget_below_the_window(cli: Cli) -> None:
    error = refused(cli, "batching=static", "limits=window_512_chunked")
    assert error.startswith("error: limits.max_num_batched_tokens is 128, and batching Static does not split")
