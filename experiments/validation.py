"""How a validation is measured and judged; experiments.validate is its command line, and prints."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from omegaconf import DictConfig

from engine.core.spec import Capacity
from experiments.calibrate import Calibration, provenance
from experiments.campaign import Campaign, Cell, CellRun
from experiments.compare import Summary, compare
from experiments.compose import build, contenders_from_config, with_first_costs
from experiments.loads import workloads_at_loads
from experiments.output import JOURNAL, Wanted
from experiments.probe import Probe
from experiments.twins import Twins, biases, repeats_of, residuals, simulated_stage
from experiments.verdict import Tolerance, Verdict, judge
from experiments.worlds import Run, Stage, replays_equal
from sim.cost.fitted import Fitted
from sim.workloads.base import Prepared

FIRST_FIT = "first_fit.json"
"""The cost model before any run: what policies weigh that weigh costs, in both worlds."""

Requests = Mapping[float | None, tuple[DictConfig, Prepared]]
"""For each load the configuration that serves it, and its requests."""

Announce = Callable[[float | None, Prepared], None]
"""Told a load and what is going to be served at it."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What was measured, and the cost models that were fitted to the calibration alone."""

    cell_runs: list[CellRun]
    calibration: Calibration
    probe: Probe
    cost: Fitted
    undrifted_cost: Fitted
    """At the average speed of the machine, the drift that the probe saw taken out of the calibration."""

    @property
    def paces(self) -> list[float]:
        """How slow the machine was during each cell_run."""
        return [self.probe.pace(cell_run.block) for cell_run in self.cell_runs]


def measure(
    config: DictConfig, engine: Stage, calibration: Calibration, directory: Path, announce: Announce
) -> tuple[DictConfig, Requests, Measured]:
    """Calibrate and run in turn; the configuration with the first fit for policies that weigh costs.

    `announce` is told each load and its requests when they are known.
    """
    limits = build(config.limits)
    calibration.warm_up()
    campaign = Campaign(engine, calibration, Probe(engine, calibration.probe_run))
    campaign.calibrate()
    first_fit = calibration.fit(provenance(config))
    first_fit.save(directory / FIRST_FIT)
    config = with_first_costs(config, directory / FIRST_FIT)
    contenders = contenders_from_config(config)
    in_flight = config.driver.in_flight
    twin = simulated_stage(engine.backend.capacity, first_fit, limits.max_model_len, in_flight)
    requests = workloads_at_loads(config, twin, limits, contenders.values())
    for load, (_, workload) in requests.items():
        announce(load, workload)
    runs = {
        Cell(load, name): Run(workload.specs, limits, make_policies)
        for load, (_, workload) in requests.items()
        for name, make_policies in contenders.items()
    }
    # After fitting and simulating, the engine's next run was 5.8 % slower than priced (mean of 17, standard
    # error 1.6), later ones 0.4 to 2.7 %: likely, not proven.
    campaign.probe.warm_up()
    cell_runs = campaign.execute(runs, config.num_repeats, directory)
    cost = calibration.fit(provenance(config))
    undrifted = calibration.fit(provenance(config), campaign.round_paces)
    return config, requests, Measured(cell_runs, calibration, campaign.probe, cost, undrifted)


def objections(cell_runs: Sequence[CellRun], differing: Sequence[str]) -> list[str]:
    """Reasons to fail that are no matter of time: other plans in a replay, requests that were not served."""
    texts = [f"{name}: a fresh core, told the same, planned otherwise" for name in differing]
    for cell_run in cell_runs:
        status = cell_run.outcome.log.requests["status"]
        num_unserved = int((status != "finished").sum())
        if num_unserved:
            kinds = ", ".join(sorted(set(status) - {"finished"}))
            texts.append(
                f"{cell_run.folder.name}: {num_unserved} of {len(status)} requests were not served ({kinds})"
            )
    return texts


@dataclass(frozen=True, slots=True)
class Findings:
    """What came of the comparison."""

    comparison: pd.DataFrame
    bias: Mapping[int, float]
    """The error common to all step times, by repeat."""
    residuals: pd.DataFrame
    replayed: Mapping[str, bool]
    """Whether the journal of each run gives the same plans again, by the name of its folder."""
    verdict: Verdict


def evaluate(
    config: DictConfig, capacity: Capacity, measured: Measured, summaries: Sequence[Summary]
) -> Findings:
    """Simulate what was measured, compare, and judge; `summaries` are those of the measured cell_runs."""
    cell_runs, cost, samples = measured.cell_runs, measured.cost, measured.calibration.samples
    tolerance: Tolerance = build(config.tolerance)
    runs = {cell_run.cell: cell_run.run for cell_run in cell_runs}
    twins = Twins(capacity, runs, Wanted.by(config), config.driver.in_flight)
    repeats = repeats_of(cell_runs, twins, summaries, cost, measured.undrifted_cost, measured.paces)
    ensembles = {cell: twins.ensemble(cell, cost, samples, config.num_ensemble, config.seed) for cell in runs}
    comparison = compare(repeats, ensembles, tolerance)
    bias = biases(cell_runs, cost)
    replayed = {t.folder.name: replays_equal(t.folder / JOURNAL, t.run.make_policies()) for t in cell_runs}
    verdict = judge(
        comparison,
        list(bias.values()),
        tolerance,
        objections=objections(cell_runs, [name for name, equal in replayed.items() if not equal]),
        doubts=[] if cost.caveat is None else [cost.caveat],
    )
    return Findings(comparison, bias, residuals(cell_runs, cost), replayed, verdict)
