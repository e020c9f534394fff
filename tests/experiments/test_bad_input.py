"""Bad input ends a command with one clear message and a non-zero exit code, and without a traceback."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.core.errors import UserError
from engine.runtime import model
from engine.runtime.memory import DeviceMemory
from experiments import bench_engine, run, validate
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


TIGHT = ("workload.num_requests=60", "pool=blocks", "pool.num_blocks=300", "pool.num_host_blocks=300")
MINE = "tests.experiments.my_policies"


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("pool.utilization=90", "pool.utilization is 90: must be a number, above 0 and at most 1"),
        ("hardware.step_overhead_ns=-1", "hardware.step_overhead_ns is -1: must be a whole number"),
        ("workload.num_requests=2.5", "workload.num_requests is 2.5: must be a whole number, at least 1"),
        ("workload.num_requests=1e3", "workload.num_requests is 1000.0: must be a whole number, at least 1"),
        ("workload.rate_per_s=fast", "workload.rate_per_s is 'fast': must be a number, above 0, or null"),
        ("workload.shape.n=2.5", "workload.shape.n is 2.5: must be a whole number, at least 1"),
        ("workload.shape.max_tokens=1.5", "workload.shape.max_tokens is 1.5: must be a whole number"),
        ("workload.shape.stop_token_ids=2", "workload.shape.stop_token_ids is 2: must be a list"),
        ("admission.watermark=2", "admission.watermark is 2: must be a number, at least 0 and below 1"),
        ("order.sorts=[runing]", "order.sorts[0] is 'runing': must be one of waiting, running, swapped"),
        ("seed=-1", "seed is -1: must be a whole number, at least 0"),
        ("journal=all", "journal is 'all': must be one of off, inputs, plans"),
        ("laws=maybe", "laws is 'maybe': must be true or false"),
        ("slo_ms.ttft=-1", "slo_ms.ttft is -1: must be a number, at least 0, or null"),
        ("~slo_ms", "slo_ms is missing"),
        ("num_warm_up_requests=1.5", "num_warm_up_requests is 1.5: must be a whole number, at least 0"),
        ("+model.config.hiden_size=8", "model.config.hiden_size is not known: choose "),
        ("model.config.hidden_size=wide", "model.config.hidden_size is 'wide': must be a whole number"),
    ],
)  # fmt: skip
def test_a_bad_value_is_named_before_anything_runs(cli: Cli, override: str, text: str) -> None:
    beside = ("order=priority",) if override.startswith("order.") else ()
    finished = cli(run.main, *QUICK, *beside, override if not beside else f"+{override}")
    assert finished.code == 1
    assert finished.err.startswith(f"error: {text}"), finished.err
    assert finished.out == ""


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("backend.num_threads=0", "backend.num_threads is 0: must be a whole number, at least 1, or null"),
        (
            "model.dtype=float8_e4m3",
            "model.dtype is 'float8_e4m3': must be one of float32, ",
        ),
        ("+model.config.hiden_size=8", "model.config.hiden_size"),
        ("model.config.hidden_size=wide", "model.config: LlamaConfig"),
        ("model.device=cuda:97", "model.device=cuda:97: not usable here"),
    ],
)
def test_bad_values_for_the_engine(cli: Cli, override: str, text: str) -> None:
    assert text in refused(cli, "backend=torch", override)


def test_random_weights_that_do_not_fit_the_memory(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "device_memory", lambda device: DeviceMemory(20 << 30, 24 << 30))
    error = refused(cli, "backend=torch", "model=llama3_70b")
    assert "model: LlamaConfig in torch.bfloat16 has 131.4 GiB of weights, and 20.0 GiB of memory" in error


@pytest.mark.parametrize("override", ["attention=triton", "clock=wall"])
def test_a_group_of_the_engine_is_none_of_a_simulation(cli: Cli, override: str) -> None:
    assert f"Could not override '{override.partition('=')[0]}'" in refused(cli, override)
    assert "Could not override 'hardware'" in refused(cli, "backend=torch", "hardware=h100_sxm")


@pytest.mark.parametrize(
    ("overrides", "group"),
    [
        (("backend=torch", "+hardware=h100_sxm"), "hardware"),
        (("+clock=wall",), "clock"),
        (("+attention=triton",), "attention"),
    ],
)
def test_nor_is_one_that_is_added_by_hand(cli: Cli, overrides: tuple[str, ...], group: str) -> None:
    assert refused(cli, *overrides).startswith(f"error: {group} is of a ")


def test_policy_without_its_method(cli: Cli) -> None:
    error = refused(cli, "victim._target_=engine.core.policies.order.Fcfs")
    assert error.startswith("error: victim is Fcfs(")
    assert "it lacks choose, which a Victim has" in error


@pytest.mark.parametrize(
    ("target", "text"),
    [
        ("victim._target_={}.Forgetful", "the policy Forgetful answers None to choose: must be one"),
        ("victim._target_={}.Elsewhere", "to choose: must be one of the running requests"),
        ("restore._target_={}.Forgetful", "the policy Forgetful answers None to swaps: must be True"),
    ],
)  # fmt: skip
def test_policy_with_a_wrong_answer(cli: Cli, target: str, text: str) -> None:
    assert text in refused(cli, *TIGHT, target.format(MINE))


def test_a_bug_shows_where_it_is(cli: Cli) -> None:
    with pytest.raises(ValueError, match="could not be broadcast") as caught:
        cli(run.main, *QUICK, *TIGHT, f"victim._target_={MINE}.Buggy")
    assert not isinstance(caught.value, UserError)
    assert "my_policies.py" in str(caught.traceback[-1].path)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("text", [None, "{", "[]", '{"requests": 3}', '{"requests": [{"id": 1}]}'])
def test_benchmark_file_that_cannot_be_read(
    text: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "workload.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SystemExit):
        bench_engine.main(["--workload", str(path)])
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert str(path) in error


def test_a_choice_that_every_contender_overrides_is_refused(cli: Cli) -> None:
    finished = cli(validate.main, "restore=swap_if_several")
    assert finished.code == 1
    assert "restore=swap_if_several would have no effect: contenders swap, recompute" in finished.err
    assert "restore@contenders.swap.restore=swap_if_several" in finished.err
