"""A whole validation of an engine whose true costs are known, since it is a simulation itself.

So what the verdict says can be compared with what is true: of a right cost model, of wrong ones, of noise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from engine.core.drive import Clock, Source, drive
from engine.core.serving import Serving
from engine.core.work import Work
from engine.telemetry.metrics import summarize
from engine.telemetry.schema import World
from experiments import twins
from experiments.calibrate import Calibration
from experiments.compare import MEANS
from experiments.compose import build, contenders_from_config, served_model
from experiments.validation import Findings, evaluate, measure
from experiments.verdict import Answer
from experiments.worlds import Stage
from sim.backend import SimulatedBackend
from sim.clock import SimulatedClock
from sim.cost.fitted import Fitted
from sim.cost.setup import described
from sim.pace import Pace
from tests.test_configs import composed

SMALL = (
    "pool.num_blocks=48",
    "max_requests=40",
    "num_ensemble=2",
    "calibration.workloads.traffic.num_requests=12",
)
ONE_LOAD = "loads=[1.5]"


class Truth:
    """What the steps of the engine take, before noise; about as on a CPU."""

    def parts_ns(self, step: Work) -> dict[str, float]:
        moved = step.num_blocks_swapped_out + step.num_blocks_swapped_in
        return {
            "overhead": 4e6,
            "linear": 2.5e5 * step.num_tokens,
            "attention": 3e3 * step.decode_context_tokens + 200 * step.prefill_attention_pairs,
            "transfers": 4e5 * moved + 1e5 * step.num_transfers,
        }

    def recompute_ns(self, num_tokens: int) -> int:
        return round(2.5e5 * num_tokens)

    def transfer_ns(self, num_blocks: int) -> int:
        return round(4e5 * num_blocks)


def noisy(sigma: float, seed: int = 0) -> Pace:
    """Each step longer or shorter by a factor of its own."""
    rng = np.random.default_rng(seed)
    return lambda step: float(np.exp(rng.normal(0, sigma)))


def validated(directory: Path, pace: Pace, *overrides: str) -> Findings:
    """What a validation finds of an engine with true costs and this pace."""
    config = composed("validate", *SMALL, *overrides)
    limits, capacity = build(config.limits), build(config.pool)
    engine = Stage(
        World.MEASURED,
        SimulatedBackend(capacity, Truth(), limits.max_model_len, pace),
        lambda: partial(drive, clock=SimulatedClock(), in_flight=config.driver.in_flight),
    )
    workloads = {
        str(name): build(node).requests(limits.max_model_len)
        for name, node in config.calibration.workloads.items()
    }
    contenders = contenders_from_config(config, config.calibration.contenders)
    model = described(**served_model(config))
    chosen = config.calibration
    calibration = Calibration(
        engine, limits, model, 1e-4, contenders, workloads, chosen.under_each, chosen.probe
    )
    config, _, measured = measure(config, engine, calibration, directory, lambda load, workload: None)
    summaries = [summarize(cell_run.outcome.log, {}) for cell_run in measured.cell_runs]
    return evaluate(config, capacity, measured, summaries)


def spoil(monkeypatch: pytest.MonkeyPatch, change: Callable[[dict[str, float]], dict[str, float]]) -> None:
    """Change the coefficients of every fit but the first, from which loads and policies are made."""
    right, calls = Calibration.fit, []

    def wrong(self: Calibration, *arguments: object) -> Fitted:
        calls.append(right(self, *arguments))  # type: ignore[arg-type]
        cost = calls[-1]
        if len(calls) == 1:
            return cost
        return replace(cost, coefficients=type(cost.coefficients)(**change(asdict(cost.coefficients))))

    monkeypatch.setattr(Calibration, "fit", wrong)


def test_a_right_cost_model_passes(tmp_path: Path) -> None:
    found = validated(tmp_path, noisy(0.005))
    assert found.verdict.answer is Answer.PASS, str(found.verdict)
    assert set(found.comparison["load"]) == {0.7, 1.5}
    assert found.comparison["unbiased"].abs().max() < 0.05
    assert all(found.replayed.values()) and len(found.replayed) == 12
    assert set(found.residuals["kind"]) == {"decode", "mixed", "prefill", "transfer"}
    assert found.residuals["residual"].abs().max() < 0.05


def test_step_times_three_times_too_long_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, lambda ns: {name: 3 * value for name, value in ns.items()})
    found = validated(tmp_path, noisy(0.02), ONE_LOAD)
    assert found.verdict.answer is Answer.FAIL
    assert "the step bias is +2" in str(found.verdict) or "the step bias is +1" in str(found.verdict)


def test_one_wrong_term_fails_though_the_bias_is_taken_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(ns: dict[str, float]) -> dict[str, float]:
        return ns | {"ns_per_decode_context_token": 0.0, "ns_per_step": 0.7 * ns["ns_per_step"]}

    spoil(monkeypatch, change)
    found = validated(tmp_path, noisy(0.02), ONE_LOAD)
    assert found.verdict.answer is Answer.FAIL
    decodes = found.residuals[found.residuals["kind"] == "decode"]["residual"]
    prefills = found.residuals[found.residuals["kind"] == "prefill"]["residual"]
    assert decodes.max() < 0 < prefills.min(), "the table of residuals shows which kind of step is wrong"


def test_a_noisy_machine_is_told_from_a_wrong_simulator(tmp_path: Path) -> None:
    found = validated(tmp_path, noisy(0.5), ONE_LOAD)
    assert found.verdict.answer is Answer.TOO_NOISY, str(found.verdict)


def test_a_machine_that_drifts_is_followed(tmp_path: Path) -> None:
    """The machine becomes slower by half in the course of the measurement."""
    steps, noise = [0], noisy(0.01)

    def pace(step: Work) -> float:
        steps[0] += 1
        return (1 + steps[0] / 8_000) * noise(step)

    found = validated(tmp_path, pace, ONE_LOAD)
    bias = list(found.bias.values())
    assert bias[0] > bias[1] > bias[2] and bias[0] - bias[2] > 0.1, "each repeat has its own"
    latencies = found.comparison[found.comparison["metric"] == "mean_e2el_ms"]
    assert (latencies["undrifted"].abs() < latencies["error"].abs() + 0.02).all()
    assert latencies["unbiased"].abs().max() < 0.05


def test_a_machine_whose_speed_changes_within_a_run_is_followed_second_by_second(tmp_path: Path) -> None:
    """Steps take half as long again in two seconds of six: no bias that all steps have in common."""
    work_ns, truth = [0.0], Truth()

    def pace(step: Work) -> float:
        work_ns[0] += sum(truth.parts_ns(step).values())
        return 1.5 if work_ns[0] % 6e9 < 2e9 else 1.0

    found = validated(tmp_path, pace, ONE_LOAD)
    means = found.comparison[found.comparison["metric"].isin(MEANS)]
    assert means["followed"].abs().mean() < 0.7 * means["unbiased"].abs().mean()
    assert means["followed_half"].mean() < 0.5 * means["half"].mean()
    assert found.verdict.answer is Answer.TOO_NOISY, "it is reported, not judged"


def test_rejected_requests_are_told_and_do_not_pass(tmp_path: Path) -> None:
    """Both worlds reject the same ones, so no figure would show it."""
    long = ("workload.shape.fit_lengths=none", "max_requests=24", "num_repeats=2")
    found = validated(tmp_path, noisy(0.005), ONE_LOAD, *long)
    assert found.verdict.answer is Answer.FAIL
    assert "swap-load-1.5-measured-1: " in str(found.verdict)
    assert "requests were not served (rejected)" in str(found.verdict)


def test_the_twins_have_as_many_plans_in_flight_as_the_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run that sets the loads, those beside the measured ones, and the ensembles."""
    simulated: list[int] = []

    def watched(serving: Serving, source: Source, clock: Clock, in_flight: int = 1) -> int:
        simulated.append(in_flight)
        return drive(serving, source, clock, in_flight)

    monkeypatch.setattr(twins, "drive", watched)
    found = validated(tmp_path, noisy(0), ONE_LOAD, "driver.in_flight=2", "num_repeats=1")
    # Each sets the load, is run as fitted, unbiased, undrifted and followed, and in an ensemble of two.
    assert simulated == [2] * 7 * len(found.replayed)
    assert found.comparison["error"].abs().max() < 1e-3, "the same steps at the same times"
    assert all(found.replayed.values())
