"""The main job, small: a model of two layers, a few requests, one round of calibration."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pandas as pd
import pytest
from omegaconf import OmegaConf

from engine.core.journal import replay
from engine.core.spec import Capacity, Limits
from engine.core.work import Work
from engine.telemetry.runlog import read_run
from experiments import calibrate, run, validate
from experiments.compare import METRICS
from experiments.compose import CONF, contenders_from_config
from experiments.validation import FIRST_FIT
from experiments.verdict import Answer
from sim.cost.fit import fit
from sim.cost.fitted import Fitted
from sim.cost.setup import Setup, described
from tests.experiments.cli import QUICK, Cli
from tests.test_configs import composed

SMALL = (
    "model.config.hidden_size=64",
    "model.config.intermediate_size=128",
    "model.config.num_hidden_layers=2",
    "model.config.num_attention_heads=2",
    "pool.num_blocks=48",
    "calibration.num_rounds=1",
    "calibration.workloads.traffic.num_requests=10",
    "calibration.workloads.decodes.num_requests=2",
    "calibration.workloads.full_batch.num_requests=8",
    "calibration.workloads.prompts.num_requests=6",
    "calibration.workloads.samples.num_requests=2",
    "workload.num_requests=24",
)
HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens\n"


def test_the_main_job(cli: Cli) -> None:
    finished = cli(validate.main, *SMALL, "num_repeats=2", "num_ensemble=2")
    verdict = json.loads((cli.directory / "verdict.json").read_text())
    assert verdict["answer"] in list(Answer)
    assert finished.code == (verdict["answer"] == Answer.FAIL), finished.err
    assert finished.out.splitlines()[-1].startswith(f"{verdict['answer']}: ")
    cells = [f"{name}-load-{load:g}" for load in (0.7, 1.5) for name in ("swap", "recompute")]
    kinds = ("simulated", "measured-1", "measured-2")
    folders = {path.name for path in cli.directory.iterdir() if path.is_dir() and path.name != ".hydra"}
    assert folders == {f"{cell}-{kind}" for cell in cells for kind in kinds}
    comparison = pd.read_csv(cli.directory / "comparison.csv")
    assert comparison["metric"].tolist() == list(METRICS) * len(cells)
    rates = [
        json.loads((cli.directory / f"swap-load-{load:g}-measured-1" / "summary.json").read_text())
        for load in (0.7, 1.5)
    ]
    assert rates[1]["offered_rate_per_s"] / rates[0]["offered_rate_per_s"] == pytest.approx(15 / 7, rel=1e-3)
    for name in ("comparison.png", "latency-load-0.7.png", "calibration.png", "cost_model.json"):
        assert name in finished.out
        assert (cli.directory / name).stat().st_size > 0
    assert finished.out.count("byte-equal") == 8
    assert "DIFFERENT[/red]" not in finished.out
    assert "speed of the machine: 12 readings of a fixed workload" in finished.out
    assert "peak RSS" in finished.out
    assert_same_requests_and_pressure(cli.directory)
    assert_journals_tell_policies_apart(cli.directory)


def assert_same_requests_and_pressure(directory: Path) -> None:
    """Both worlds serve the same requests to their ends, and each contender is preempted in its own way."""
    for contender, other in (("swap", "recompute"), ("recompute", "swap")):
        logs = [
            read_run(directory / f"{contender}-load-1.5-{kind}")
            for kind in ("simulated", "measured-1", "measured-2")
        ]
        for log in logs:
            assert (log.requests["status"] == "finished").all()
            assert log.requests[f"num_{contender}_preemptions"].sum() > 0
            assert log.requests[f"num_{other}_preemptions"].sum() == 0
            columns = ["request_id", "arrival_ns", "num_prompt_tokens", "num_output_tokens"]
            assert log.requests[columns].equals(logs[0].requests[columns])


def assert_journals_tell_policies_apart(directory: Path) -> None:
    contenders = contenders_from_config(composed("validate"))
    lines = (directory / "swap-load-1.5-measured-1" / "journal.jsonl").read_text().splitlines()
    assert replay(lines, contenders["swap"]()) is None
    assert replay(lines, contenders["recompute"]()) is not None


def test_a_recorded_trace(cli: Cli, tmp_path: Path) -> None:
    rows = [f"2023-11-16 18:15:{i:02d}.0000000,{400 + 40 * i},{100 + 10 * i}" for i in range(12)]
    path = tmp_path / "trace.csv"
    path.write_text(HEADER + "\n".join(rows) + "\n")
    trace = ("workload=azure", f"workload.path={path}", "workload.num_requests=12")
    contender = "~restore@contenders.swap.restore"
    finished = cli(validate.main, *SMALL, *trace, contender, "num_repeats=1", "loads=null", "num_ensemble=2")
    assert finished.code == 0, finished.err
    assert "MACHINE TOO NOISY TO TELL" in finished.out, "one repeat shows no spread"
    assert "load: as the workload says" in finished.out
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
    assert_its_twin_is_what_was_measured(cli, finished.out)


def printed_command(out: str) -> list[str]:
    """The arguments of the next command that a calibration prints."""
    (line,) = [line for line in out.splitlines() if line.startswith("simulate this engine: ")]
    command, *arguments = shlex.split(line.removeprefix("simulate this engine: "))
    assert [command, *arguments[:2]] == ["python", "-m", "experiments.run"]
    return arguments[2:]


def assert_its_twin_is_what_was_measured(cli: Cli, out: str) -> None:
    """The command as printed, but for the figures, simulates the pool, limits, model and requests."""
    measured = OmegaConf.load(cli.directory / ".hydra" / "config.yaml")
    simulated = cli(run.main, *printed_command(out), *QUICK)
    assert simulated.code == 0, simulated.err
    twin = OmegaConf.load(cli.directory / "config.yaml")
    assert twin.world == "simulated"
    assert twin.cost._target_ == "sim.cost.fitted.Fitted.load_for"
    for group in ("limits", "order", "admission", "batching", "victim", "restore", "reservation", "workload"):
        assert resolved(twin, group) == resolved(measured, group), group
    for name in ("num_blocks", "num_host_blocks", "block_size"):
        assert resolved(twin, "pool")[name] == resolved(measured, "pool")[name], name
    for name in ("architecture", "config", "dtype"):
        assert resolved(twin, "model")[name] == resolved(measured, "model")[name], name
    summary = json.loads((cli.directory / "summary.json").read_text())
    assert summary["completed"] == measured.workload.num_requests
    assert "beyond twice the calibrated range" not in simulated.out


def resolved(config: object, group: str) -> dict[str, object]:
    """A group of a configuration, its interpolations replaced."""
    values = OmegaConf.to_container(config, resolve=True)[group]
    assert isinstance(values, dict)
    return values


MODEL = {
    "architecture": "LlamaConfig",
    "config": OmegaConf.to_container(OmegaConf.load(Path(CONF) / "model" / "tiny_llama.yaml").config),
    "path": None,
    "dtype": "float32",
}


@pytest.fixture
def cost_path(tmp_path: Path) -> Path:
    """A cost model of the default small model with blocks of 16, measured on prompts of up to 64 tokens."""
    shapes = [
        Work(n + 8, 9, 1, 9, 400, n, n * (n + 1) // 2, moved, moved, 0, 2 * bool(moved))
        for n in range(2, 65)
        for moved in (0, 0, 5)
    ]
    model = {**described(**MODEL)}
    setup = Setup(model, Capacity(96, 96, 16), Limits(32, 128, 512), {})
    durations_ns = [10**6 * (3 + step.num_tokens + step.num_blocks_swapped_in) for step in shapes]
    fit(shapes, durations_ns, setup, 5e-4).save(tmp_path / "cost_model.json")
    return tmp_path / "cost_model.json"


def twin(path: Path, *arguments: str) -> tuple[str, ...]:
    """A simulation with a cost model and a set-up like its own, each of which an argument may change."""
    return (
        "model=tiny_llama", "limits=window_512_chunked", "pool=tight", "workload=azure_like",
        "workload.num_requests=8", "cost=fitted", f"cost.path={path}", *QUICK, *arguments,
    )  # fmt: skip


def test_a_cost_model_of_another_set_up_is_refused(cli: Cli, cost_path: Path) -> None:
    other_blocks = cli(run.main, *twin(cost_path, "pool.block_size=64"))
    assert other_blocks.code == 1
    assert "cost_model.json was measured with blocks of 16 tokens, and this run has" in other_blocks.err
    other_model = cli(run.main, *twin(cost_path, "model.config.hidden_size=768"))
    assert other_model.code == 1
    assert "model.config.hidden_size 768 (measured: 384)" in other_model.err


def test_steps_beyond_the_range_are_told_in_one_line(cli: Cli, cost_path: Path) -> None:
    far = cli(run.main, *twin(cost_path, "limits.max_num_batched_tokens=512"))
    assert far.code == 0, far.err
    (line,) = [line for line in far.out.splitlines() if "beyond twice the calibrated range" in line]
    assert "num_tokens up to" in line
    assert "prefill_attention_pairs up to" in line


def test_a_policy_that_weighs_costs_gets_those_of_its_world(cli: Cli, cost_path: Path) -> None:
    without = cli(run.main, "backend=torch", "restore=cheapest", *QUICK)
    assert without.code == 1
    assert "no costs are known here. Measure this engine" in without.err
    assert "cost=fitted cost.path=" in without.err

    # So little room that several are preempted, whatever the pace of the machine.
    pool = ("pool=tight", "pool.num_blocks=64")
    pressed = (*pool, "workload.num_requests=24", "workload.rate_per_s=1000", "journal=inputs")
    engine = ("backend=torch", "restore=cheapest", "cost=fitted", f"cost.path={cost_path}", *pressed)
    finished = cli(run.main, *engine, "plots=false", "timeline=false")
    assert finished.code == 0, finished.err
    header = (cli.directory / "journal.jsonl").read_text().partition("\n")[0]
    assert "Cheapest(cost=Fitted(LlamaConfig, 189 steps, no date))" in header
    requests = read_run(cli.directory).requests
    assert requests["num_swap_preemptions"].sum() > 0, "5 us a block is cheaper than 1 ms a token"


def test_contenders_that_weigh_costs_weigh_the_first_fit(cli: Cli) -> None:
    contenders = (
        "+restore@contenders.cheapest.restore=cheapest",
        "~restore@contenders.swap.restore",
        "~restore@contenders.recompute.restore",
    )
    finished = cli(validate.main, *SMALL, *contenders, "num_repeats=1", "loads=[1.5]", "num_ensemble=2")
    assert finished.code == 0, finished.err
    first = Fitted.load(cli.directory / FIRST_FIT)
    for kind in ("measured-1", "simulated"):
        header = (
            (cli.directory / f"cheapest-load-1.5-{kind}" / "journal.jsonl").read_text().partition("\n")[0]
        )
        assert repr(first) in header, kind
        config = OmegaConf.load(cli.directory / f"cheapest-load-1.5-{kind}" / "config.yaml")
        assert config.contenders.cheapest.restore.cost.path == str(cli.directory / FIRST_FIT)
    assert finished.out.count("byte-equal") == 1


BEFORE_ANYTHING = {
    "num_repeats=0": "num_repeats is 0",
    "num_ensemble=1": "num_ensemble is 1",
    "loads=[]": "loads is empty",
    "loads=[0]": "loads[0] is 0",
    "workload=burst": "give loads=null to serve the workload as it is",
    "workload.rate_per_s=3": "workload.rate_per_s would have no effect, since loads=[0.7, 1.5] sets it",
    "tolerance.mean=0": "tolerance.mean is 0",
    "calibration.under_each=[none]": "calibration.under_each is 'none': choose one of",
    "calibration.probe=none": "calibration.probe is 'none': choose one of calibration.workloads, traffic",
}


@pytest.mark.parametrize("override", BEFORE_ANYTHING)
def test_what_cannot_be_validated_is_refused_before_the_calibration(
    override: str, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibrate.Calibration, "warm_up", lambda self: pytest.fail("it was calibrated"))
    finished = cli(validate.main, *SMALL[:5], override)
    assert finished.code == 1
    assert BEFORE_ANYTHING[override] in finished.err


def test_a_time_factor_is_refused_beside_loads(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(HEADER + "2023-11-16 18:15:00.0000000,40,10\n2023-11-16 18:15:09.0000000,40,10\n")
    factor = ("workload=azure", f"workload.path={path}", "workload.time_factor=2")
    refused = cli(validate.main, *SMALL[:5], *factor)
    assert refused.code == 1
    assert "time_factor is 2" in refused.err and "give loads=null" in refused.err
