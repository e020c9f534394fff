"""What is compared is measured at the same times, and no run enters the fit that it is judged by."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest

from engine.core.drive import drive
from engine.core.spec import Capacity, Limits, RequestSpec
from engine.telemetry.schema import World
from experiments.calibrate import Calibration
from experiments.campaign import Campaign, Cell
from experiments.compose import contenders_from_config
from experiments.probe import Probe
from experiments.worlds import Outcome, Run, Stage
from sim.backend import SimulatedBackend
from sim.clock import SimulatedClock
from sim.pace import Pace, steady
from tests.experiments.costs import PerStep
from tests.test_configs import composed

LIMITS, CAPACITY = Limits(8, 64, 128), Capacity(64, 64, 16)
CELLS = [Cell(1.5, "swap"), Cell(1.5, "recompute"), Cell(0.7, "swap")]


@dataclass(frozen=True, slots=True)
class Watched(Stage):
    """Notes the titles of what it plays."""

    titles: list[str] = field(default_factory=list)

    def play(self, run: Run) -> Outcome:
        self.titles.append(run.title)
        return Stage.play(self, run)


def campaign(pace: Pace, titles: list[str] | None = None) -> tuple[Campaign, Calibration, dict[Cell, Run]]:
    backend = SimulatedBackend(CAPACITY, PerStep(), LIMITS.max_model_len, pace)
    stage = Watched(
        World.MEASURED,
        backend,
        lambda: partial(drive, clock=SimulatedClock()),
        [] if titles is None else titles,
    )
    contenders = contenders_from_config(composed("validate"))
    workloads = {"few": [RequestSpec(f"c{i}", 0, 20, 5, 5) for i in range(3)]}
    one = {"swap": contenders["swap"]}
    calibration = Calibration(stage, LIMITS, {}, 1e-4, one, workloads, ["few"], "few")
    runs = {
        cell: Run([RequestSpec(f"r{i}", 0, 20, 9, 9) for i in range(4)], LIMITS, contenders[cell.contender])
        for cell in CELLS
    }
    return Campaign(stage, calibration, Probe(stage, calibration.probe_run)), calibration, runs


def test_runs_calibration_and_probe_are_interleaved(tmp_path: Path) -> None:
    titles: list[str] = []
    played, _, runs = campaign(steady(1.0), titles)
    played.calibrate()
    played.execute(runs, 2, tmp_path)
    kinds = {"probing the speed of the machine": "P", "calibrating: few, swap": "C"}
    order = [kinds.get(title, title) for title in titles]
    first = [f"{cell.name}-measured-1" for cell in CELLS]
    second = [f"{cell.name}-measured-2" for cell in (*CELLS[1:], CELLS[0])]
    blocks = ["C", *first, "C", *second, "C"]
    assert order == ["P", *(word for block in blocks for word in (block, "P"))]


def test_a_workload_that_preempts_nobody_is_served_under_one_contender_a_round() -> None:
    """Under all of them it would be the same work again."""
    titles: list[str] = []
    backend = SimulatedBackend(CAPACITY, PerStep(), LIMITS.max_model_len)
    stage = Watched(World.MEASURED, backend, lambda: partial(drive, clock=SimulatedClock()), titles)
    contenders = contenders_from_config(composed("validate"))
    workloads = {name: [RequestSpec("c0", 0, 20, 5, 5)] for name in ("traffic", "decodes", "prompts")}
    calibration = Calibration(stage, LIMITS, {}, 1e-4, contenders, workloads, ["traffic"], "decodes")
    rounds = []
    for _ in range(2):
        titles.clear()
        calibration.round()
        rounds.append([title.removeprefix("calibrating: ") for title in titles])
    traffic = ["traffic, swap", "traffic, recompute"]
    assert rounds[0] == [*traffic, "decodes, recompute", "prompts, swap"]
    assert rounds[1] == [*traffic, "decodes, swap", "prompts, recompute"]


def test_the_fit_never_sees_the_runs_it_is_judged_on(tmp_path: Path) -> None:
    played, calibration, runs = campaign(steady(1.0))
    played.calibrate()
    per_round = len(calibration.samples.steps)
    measured = played.execute(runs, 2, tmp_path)
    assert [len(part.steps) for part in calibration.rounds] == [per_round] * 3
    assert all(len(cell_run.samples.steps) > per_round for cell_run in measured)
    assert [(cell_run.repeat, cell_run.cell) for cell_run in measured[:3]] == [(1, cell) for cell in CELLS]


def test_the_pace_of_a_block_is_that_of_the_readings_around_it(tmp_path: Path) -> None:
    """The machine takes twice as long from the second run on."""
    slow = [1.0]
    played, _, runs = campaign(lambda step: slow[0])
    played.calibrate()
    first = played.execute({CELLS[0]: runs[CELLS[0]]}, 1, tmp_path / "1")
    slow[0] = 2.0
    second = played.execute({CELLS[1]: runs[CELLS[1]]}, 1, tmp_path / "2")
    # Readings in ms: 1, 1 (calibrated), 1, 1 (calibrated), 2, 2 (calibrated): 4/3 on average.
    assert played.probe.readings_ns == [1e6, 1e6, 1e6, 1e6, 2e6, 2e6]
    assert played.probe.pace(first[0].block) == pytest.approx(0.75)
    assert played.probe.pace(second[0].block) == pytest.approx(1.5 / (4 / 3))
    assert played.round_paces == pytest.approx([0.75, 0.75, 1.5])
    assert "from -25.0% to +50.0%" in played.probe.describe()
