from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest

from engine.core.errors import UserError
from engine.core.policies.victim import Need
from engine.core.request import Request
from engine.core.view import View
from experiments import run
from experiments.analysis import interval, over, paired, read_validation, relative, serve
from tests.experiments.cli import QUICK, Cli

TIGHT = ("pool=blocks", "pool.num_blocks=300", "workload.num_requests=12", "workload.rate_per_s=20")


@dataclass(frozen=True, slots=True)
class LeastComputed:
    """The victim is the request with the fewest computed tokens."""

    def choose(self, view: View, need: Need) -> Request:
        return min(view.running, key=lambda request: (request.num_computed_tokens, request.id))


def test_a_run_from_python_is_that_of_the_command_line(cli: Cli) -> None:
    assert cli(run.main, *TIGHT, *QUICK, "restore=swap").code == 0
    written = json.loads((cli.directory / "summary.json").read_text())
    served = serve(*TIGHT, "restore=swap")
    figures = {name: value for name, value in served.summary.items() if math.isfinite(value)}
    assert figures == {name: written[name] for name in figures} and figures["num_preemptions"] > 0
    assert served.header.policies["restore"] == "swap" and len(served.log.requests) == 12
    assert served.picture()._repr_png_().startswith(b"\x89PNG")


def test_a_policy_without_a_yaml_decides_and_is_named() -> None:
    crowded = (*TIGHT, "pool.num_blocks=280", "workload.num_requests=30")
    own = serve(*crowded, "laws=true", victim=LeastComputed)
    assert own.header.policies["victim"] == "LeastComputed"
    assert own.summary["num_lost_tokens"] < serve(*crowded).summary["num_lost_tokens"]
    with pytest.raises(UserError, match="victim"):
        serve(*TIGHT, victim=dict)


def test_two_steps_in_flight_are_chosen_in_the_configuration() -> None:
    """Who arrives during a step is in the next one; not if that has been planned already."""
    for in_flight in (1, 2):
        log = serve(*TIGHT, f"driver.in_flight={in_flight}", "laws=true").log
        arrivals = log.requests[["arrival_ns", "first_scheduled_ns"]].iloc[1:]
        num_missed = [
            log.steps["start_ns"].between(arrival_ns, first_ns, inclusive="neither").sum()
            for arrival_ns, first_ns in arrivals.itertuples(index=False)
        ]
        assert min(num_missed) == in_flight - 1
    with pytest.raises(UserError, match=r"driver\.in_flight is 0"):
        serve(*TIGHT, "driver.in_flight=0")


def test_what_the_command_line_refuses_is_refused() -> None:
    with pytest.raises(UserError, match="num_requests"):
        serve("workload.num_requests=-1")


def test_policies_side_by_side_meet_the_same_requests() -> None:
    policies = {"swap": ["restore=swap"], "recompute": ["restore=recompute"]}
    runs = over(policies, "pool.num_blocks", [280, 400], TIGHT, seeds=[0, 1])
    assert len(runs) == 8 and set(runs["policy"]) == set(policies)
    assert (runs.groupby(["seed", "pool.num_blocks"])["total_input_tokens"].nunique() == 1).all()
    assert runs.groupby("seed")["total_input_tokens"].first().nunique() == 2
    assert (runs[runs["policy"] == "swap"]["num_recompute_preemptions"] == 0).all()


def test_a_paired_difference_has_no_noise_of_the_seeds() -> None:
    seeds = [0, 1, 2]
    runs = pd.DataFrame(
        {"policy": ["a"] * 3 + ["b"] * 3, "seed": seeds * 2, "ttft": [10.0, 20.0, 40.0, 11.0, 22.0, 44.0]}
    )
    assert paired(runs, "ttft", "b", "a") == (pytest.approx(0.1), pytest.approx(0.0, abs=1e-9))
    runs = runs.assign(x=5)
    assert relative(runs, "ttft", "a", "x").tolist() == pytest.approx([0.0] * 3 + [0.1] * 3)
    mean, half = interval([1.0, 2.0, 3.0])
    assert (mean, half) == (2.0, pytest.approx(4.302653 / math.sqrt(3), rel=1e-6))
    assert math.isnan(interval([1.0])[1])


def test_a_validation_is_read_back(tmp_path: Path) -> None:
    (tmp_path / "comparison.csv").write_text("load,policy,metric,error,answer\n0.7,swap,tax,0.1,\n")
    (tmp_path / "residuals.csv").write_text("kind,repeat,num_steps,residual\ndecode,1,10,0.02\n")
    with pytest.raises(UserError, match=r"verdict\.json does not exist"):
        read_validation(tmp_path)
    verdict = {"answer": "PASS", "reasons": ["all hold"], "step_bias": [0.01, 0.02]}
    (tmp_path / "verdict.json").write_text(json.dumps(verdict))
    found = read_validation(tmp_path)
    assert (found.answer, found.reasons, found.step_bias) == ("PASS", ["all hold"], [0.01, 0.02])
    assert found.comparison["answer"].tolist() == [""] and found.residuals["residual"].tolist() == [0.02]
