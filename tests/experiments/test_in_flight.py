"""Two plans in flight, in both worlds: what is decided, what is logged, what is told."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pandas as pd
import pytest

from engine.core.policies.base import Policies
from engine.telemetry.memory import memory_states
from experiments.compose import build, policies_from_config, policies_maker, stage_from_config
from experiments.worlds import Outcome, Run, replays_equal
from sim.workloads.base import Prepared
from tests.test_configs import composed

SMALL = {
    "simulated": ("pool=blocks", "pool.num_blocks=300", "workload.rate_per_s=6", "workload.num_requests=60"),
    "torch": ("pool=tight", "workload.num_requests=12", "workload.rate_per_s=30"),
}


def served(world: str, in_flight: int, path: Path) -> tuple[Outcome, Policies]:
    """A run under every law, and its policies."""
    config = composed("run", f"backend={world}", f"driver.in_flight={in_flight}", *SMALL[world])
    workload: Prepared = build(config.workload).prepare(config.limits.max_model_len)
    run = Run(workload.specs, build(config.limits), policies_maker(config), journal_path=path, laws=True)
    return stage_from_config(config).play(run), policies_from_config(config)


@pytest.mark.parametrize("world", SMALL)
def test_a_fresh_core_decides_the_same_with_two_plans_in_flight(world: str, tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    outcome, policies = served(world, 2, path)
    assert replays_equal(path, policies)
    assert (outcome.log.requests["status"] == "finished").all()
    verbs = [line.split('"')[1] for line in path.read_text(encoding="utf-8").splitlines()[1:]]
    assert ("schedule", "schedule") in pairwise(verbs)


def test_steps_do_not_overlap_in_the_log_and_memory_adds_up(tmp_path: Path) -> None:
    outcome, _ = served("simulated", 2, tmp_path / "journal.jsonl")
    steps: pd.DataFrame = outcome.log.steps
    assert (steps["start_ns"].to_numpy()[1:] >= steps["end_ns"].to_numpy()[:-1]).all()
    assert steps["num_recompute_preemptions"].sum() > 0
    memory_states(outcome.log)  # refuses a log whose memory does not add up


def test_an_end_that_nobody_could_foresee_costs_a_token_that_is_not_delivered(tmp_path: Path) -> None:
    logs = [served("simulated", number, tmp_path / f"{number}.jsonl")[0].log for number in (1, 2)]
    delivered = [log.requests["num_output_tokens"].tolist() for log in logs]
    assert delivered[0] == delivered[1]
    computed = [int((log.steps["num_tokens"] - log.steps["num_recomputed_tokens"]).sum()) for log in logs]
    assert computed[1] > computed[0]
