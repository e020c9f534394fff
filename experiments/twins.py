"""The simulator's side of a validation: the same cells with the calibrated cost model and its variations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from statistics import fmean

import pandas as pd

from engine.core.drive import drive
from engine.core.spec import Capacity
from engine.telemetry.metrics import summarize
from engine.telemetry.schema import World
from experiments.campaign import Cell, CellRun
from experiments.compare import Repeat, Summary
from experiments.output import Wanted
from experiments.samples import StepSamples, by_kind
from experiments.worlds import Run, Stage
from sim.backend import SimulatedBackend
from sim.clock import SimulatedClock
from sim.cost.base import CostModel
from sim.cost.kinds import KINDS
from sim.pace import Followed, Pace, Rerun, steady
from sim.streams import stream

STRETCH_NS = 1e9
"""Of work at one speed, for `Repeat.followed`. On a shared machine (2 cores, three validations) measured
/ priced of a step correlates with that of the step 20 later (0.26 to 0.33) and no longer with that 100 later,
2 s on (about 0); means over 2 s differ by 10 %."""


def simulated_stage(
    capacity: Capacity, cost: CostModel, max_model_len: int, in_flight: int, pace: Pace | None = None
) -> Stage:
    """The simulated twin of an engine with so many plans out at once; with a `pace`, one whose steps take as
    many times longer.
    """
    backend = SimulatedBackend(capacity, cost, max_model_len, pace)
    return Stage(
        World.SIMULATED, backend, lambda: partial(drive, clock=SimulatedClock(), in_flight=in_flight)
    )


class Twins:
    """Simulates cells again and again, for their summaries alone; with so many plans out at once."""

    def __init__(self, capacity: Capacity, runs: Mapping[Cell, Run], wanted: Wanted, in_flight: int) -> None:
        self._capacity = capacity
        self._runs = runs
        self._wanted = wanted
        self._in_flight = in_flight

    def summary(self, cell: Cell, cost: CostModel, pace: Pace | None = None) -> Summary:
        """What a simulation of a cell comes to."""
        run = self._runs[cell]
        stage = simulated_stage(self._capacity, cost, run.limits.max_model_len, self._in_flight, pace)
        return summarize(stage.play(run).log, self._wanted.slo_ms, self._wanted.measure)

    def ensemble(
        self, cell: Cell, cost: CostModel, samples: StepSamples, size: int, seed: int
    ) -> list[Summary]:
        """Simulations whose step times carry the residuals of the fit, each from another place on.

        What they differ by is what the noise of single steps does to a figure, in a perfect simulator too.
        """
        ratios = [ns / priced for ns, priced in zip(samples.periods_ns, samples.priced_ns(cost), strict=True)]
        kinds = by_kind(samples.steps, ratios)
        rngs = (stream(seed, f"validate/ensemble/{cell.name}/{i}") for i in range(size))
        return [self.summary(cell, cost, Rerun(kinds, rng)) for rng in rngs]


def biases(cell_runs: Sequence[CellRun], cost: CostModel) -> dict[int, float]:
    """The error that all step times of a repeat have in common, by repeat: (priced - measured) / measured."""
    repeats = sorted({cell_run.repeat for cell_run in cell_runs})
    return {r: StepSamples.joined(t.samples for t in cell_runs if t.repeat == r).bias(cost) for r in repeats}


def repeats_of(
    cell_runs: Sequence[CellRun],
    twins: Twins,
    measured: Sequence[Summary],
    cost: CostModel,
    undrifted_cost: CostModel,
    paces: Sequence[float],
) -> list[Repeat]:
    """Each measured run beside its twins.

    `paces` says for each cell_run how slow the machine was, and `undrifted_cost` is the fit at pace 1.
    """
    bias = biases(cell_runs, cost)
    cells = dict.fromkeys(cell_run.cell for cell_run in cell_runs)
    as_it_is = {cell: twins.summary(cell, cost) for cell in cells}
    return [
        Repeat(
            cell_run.cell,
            summary,
            as_it_is[cell_run.cell],
            twins.summary(cell_run.cell, cost, steady(1 / (1 + bias[cell_run.repeat]))),
            twins.summary(cell_run.cell, undrifted_cost, steady(pace)),
            twins.summary(cell_run.cell, cost, followed(cell_run, cost)),
        )
        for cell_run, summary, pace in zip(cell_runs, measured, paces, strict=True)
    ]


def followed(cell_run: CellRun, cost: CostModel) -> Followed:
    """The speed of the machine in a run, by its own steps."""
    return Followed(cell_run.samples.steps, cell_run.samples.periods_ns, cost, STRETCH_NS)


def residuals(cell_runs: Sequence[CellRun], cost: CostModel) -> pd.DataFrame:
    """What is left of the error of the step times when the bias is out, by kind of step.

    One row a kind and repeat: kind, repeat, num_steps, residual = (priced - measured) / measured.
    """
    bias = biases(cell_runs, cost)
    rows = []
    for repeat in bias:
        samples = StepSamples.joined(cell_run.samples for cell_run in cell_runs if cell_run.repeat == repeat)
        priced = by_kind(samples.steps, [ns / (1 + bias[repeat]) for ns in samples.priced_ns(cost)])
        periods = by_kind(samples.steps, [float(ns) for ns in samples.periods_ns])
        for name in (name for name in KINDS if name in priced):
            residual = fmean(priced[name]) / fmean(periods[name]) - 1
            rows.append(
                {"kind": name, "repeat": repeat, "num_steps": len(priced[name]), "residual": residual}
            )
    return pd.DataFrame(rows)
