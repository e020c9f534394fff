from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from engine.core.journal import replay
from engine.core.policies.base import Policies
from engine.telemetry.runlog import read_run, read_summary
from experiments import run
from experiments.compose import build, contenders_from_config, policies_from_config, stage_from_config
from experiments.worlds import Run
from tests.experiments.cli import QUICK, Cli
from tests.test_configs import composed

ROOT = Path(__file__).parents[2]
TIGHT = ("workload.num_requests=60", "pool=blocks", "pool.num_blocks=300", "pool.num_host_blocks=300")


def test_a_simulated_run_writes_its_folder(cli: Cli) -> None:
    finished = cli(run.main, *TIGHT, "restore=swap", "journal=plans")
    assert finished.code == 0, finished.err
    names = {path.name for path in cli.directory.iterdir()}
    assert names >= {
        "steps.parquet", "requests.parquet", "summary.json", "config.yaml", "effort.json", "journal.jsonl",
        "timeline.json", "memory.png", "latency.png",
    }  # fmt: skip
    for name in names - {".hydra"}:
        assert name in finished.out
    assert "steps and 60 requests" in finished.out
    assert "peak RSS" in finished.out
    summary = read_summary(cli.directory)
    assert summary["completed"] == 60
    assert summary["num_swap_preemptions"] == len(
        [kind for kinds in read_run(cli.directory).requests["phases"] for kind in kinds if kind == "swapped"]
    )
    assert summary["num_swap_preemptions"] > 0
    assert json.loads((cli.directory / "effort.json").read_text())["cpu_s"] > 0


def test_the_journal_replays_under_its_own_policies_only(cli: Cli) -> None:
    assert cli(run.main, *TIGHT, "restore=swap", "journal=plans", "plots=false", "timeline=false").code == 0
    lines = (cli.directory / "journal.jsonl").read_text().splitlines()
    assert replay(lines, policies_from_config(composed("run", "restore=swap"))) is None
    assert replay(lines, policies_from_config(composed("run", "restore=recompute"))) is not None


def test_journal_and_laws_together_decide_the_same(cli: Cli) -> None:
    assert cli(run.main, *TIGHT, "plots=false", "timeline=false", "journal=plans").code == 0
    plain = (cli.directory / "journal.jsonl").read_text()
    assert cli(run.main, *TIGHT, "plots=false", "timeline=false", "journal=plans", "laws=true").code == 0
    assert (cli.directory / "journal.jsonl").read_text() == plain


@pytest.mark.parametrize("journal", ["off", "inputs"])
def test_a_journal_can_be_smaller_or_left_out(cli: Cli, journal: str) -> None:
    arguments = ("workload.num_requests=5", "plots=false", "timeline=false", f"journal={journal}")
    assert cli(run.main, *arguments).code == 0
    assert (cli.directory / "journal.jsonl").exists() == (journal == "inputs")
    assert not (cli.directory / "memory.png").exists()


def test_the_resolved_config_says_what_was_run(cli: Cli) -> None:
    assert cli(run.main, *QUICK, "workload.num_requests=5", "seed=7").code == 0
    text = (cli.directory / "config.yaml").read_text()
    assert "${" not in text
    assert "engine.core.policies.restore.Recompute" in text
    assert text.count("seed: 7") == 2


def test_slos(cli: Cli) -> None:
    assert cli(run.main, *QUICK, "workload.num_requests=20", "slo_ms.ttft=2000").code == 0
    assert 0 < read_summary(cli.directory)["slo_attainment"] <= 1


def test_a_policy_of_your_own_by_its_target(cli: Cli) -> None:
    target = "victim._target_=tests.experiments.my_policies.LeastComputed"
    finished = cli(run.main, *TIGHT, "plots=false", "timeline=false", "journal=plans", target)
    assert finished.code == 0, finished.err
    header = (cli.directory / "journal.jsonl").read_text().partition("\n")[0]
    assert "victim=LeastComputed()" in header


def test_a_policy_that_keeps_state_is_built_anew_for_each_run(cli: Cli) -> None:
    """The warm-up makes it choose, and the run must not notice."""
    turns = "victim._target_=tests.experiments.my_policies.TakesTurns"
    journals = []
    for num_warm_up_requests in (0, 60):
        warm_up = f"num_warm_up_requests={num_warm_up_requests}"
        options = ("plots=false", "timeline=false", "journal=plans", turns, warm_up)
        assert cli(run.main, *TIGHT, *options).code == 0
        journals.append((cli.directory / "journal.jsonl").read_text())
    assert "TakesTurns" in journals[0]
    assert journals[0] == journals[1]


def test_a_stage_serves_the_same_run_twice_alike() -> None:
    overrides = (*TIGHT, "victim._target_=tests.experiments.my_policies.TakesTurns", "restore=swap")
    config = composed("run", *overrides)
    made: list[Policies] = []

    def make() -> Policies:
        made.append(policies_from_config(config))
        return made[-1]

    limits = build(config.limits)
    one = Run(build(config.workload).requests(limits.max_model_len), limits, make)
    stage = stage_from_config(config)
    first, second = stage.play(one).log, stage.play(one).log
    assert [policies.victim.num_choices for policies in made] == [made[0].victim.num_choices] * 2  # type: ignore[attr-defined]
    assert made[0].victim.num_choices > 0  # type: ignore[attr-defined]
    pd.testing.assert_frame_equal(first.requests, second.requests)


def test_contenders_are_built_anew_too() -> None:
    config = composed("validate", "victim._target_=tests.experiments.my_policies.TakesTurns")
    make = contenders_from_config(config)["swap"]
    assert make().victim is not make().victim


def test_a_policy_of_your_own_by_a_yaml_on_the_search_path(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "mine" / "victim").mkdir(parents=True)
    yaml = "_target_: tests.experiments.my_policies.LeastComputed\n"
    (tmp_path / "mine" / "victim" / "least_computed.yaml").write_text(yaml)
    path = f"hydra.searchpath=[file://{tmp_path / 'mine'}]"
    finished = cli(run.main, *TIGHT, *QUICK, path, "victim=least_computed")
    assert finished.code == 0, finished.err
    assert "LeastComputed" in (cli.directory / "config.yaml").read_text()


def test_a_sweep_ends_with_a_table(cli: Cli) -> None:
    finished = cli(run.main, "-m", *TIGHT, *QUICK, "restore=swap,recompute")
    assert finished.code == 0, finished.err
    table = pd.read_csv(cli.directory / "sweep.csv", index_col="run")
    assert table["restore"].tolist() == ["swap", "recompute"]
    assert (table["completed"] == 60).all()
    assert table.loc[0, "recompute_tax"] < table.loc[1, "recompute_tax"]
    assert "the sweep" in finished.out


def test_the_engine_runs_the_same_command(cli: Cli) -> None:
    model = (
        "model.config.hidden_size=64",
        "model.config.intermediate_size=128",
        "model.config.num_hidden_layers=2",
        "model.config.num_attention_heads=2",
    )
    load = ("workload.num_requests=12", "workload.rate_per_s=200", "pool.num_blocks=64")
    finished = cli(run.main, "backend=torch", *model, *load, "plots=false", "restore=swap", "laws=true")
    assert finished.code == 0, finished.err
    log = read_run(cli.directory)
    assert log.world == "measured"
    assert (log.requests["status"] == "finished").all()
    lines = (cli.directory / "journal.jsonl").read_text().splitlines()
    assert replay(lines, policies_from_config(composed("run", "restore=swap"))) is None


def digests(directory: Path, hash_seed: str) -> dict[str, str]:
    """Digests of what a simulated run writes, in a process with another hash seed."""
    arguments = [*TIGHT, "plots=false", "restore=swap", f"hydra.run.dir={directory}", "journal=plans"]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")]),
        "PYTHONHASHSEED": hash_seed,
    }
    command = [sys.executable, "-m", "experiments.run", *arguments]
    subprocess.run(command, cwd=directory.parent, env=environment, check=True, stdout=subprocess.DEVNULL)
    names = ("requests.parquet", "steps.parquet", "journal.jsonl", "summary.json", "timeline.json")
    return {name: hashlib.sha256((directory / name).read_bytes()).hexdigest() for name in names}


def test_same_seed_same_bytes_in_another_process(tmp_path: Path) -> None:
    assert digests(tmp_path / "a", "1") == digests(tmp_path / "b", "2")


def test_clients_are_told_apart_and_without_any_nothing_is_said(cli: Cli) -> None:
    few = (*QUICK, "workload.num_requests=160")
    told = cli(run.main, *few, "workload.shape.clients={ann: 3, bob: 1}")
    assert told.code == 0, told.err
    assert "by client" in told.out and "jain index" in told.out
    table = pd.read_csv(cli.directory / "clients.csv", index_col="client")
    assert table.index.tolist() == ["ann", "bob"]
    assert table["completed"].sum() == 160 and table.loc["ann", "completed"] > 100
    assert 0.5 < read_summary(cli.directory)["jain_index"] <= 1
    silent = cli(run.main, *few)
    assert "by client" not in silent.out and "jain" not in silent.out
    assert not (cli.directory / "clients.csv").exists()
