"""The engine's side of a validation: every contender at every load, several times, and what came out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from experiments.calibrate import Calibration
from experiments.output import JOURNAL
from experiments.probe import Probe
from experiments.samples import StepSamples
from experiments.worlds import Outcome, Run, Stage


class Cell(NamedTuple):
    """One contender at one load; None: as the workload says."""

    load: float | None
    contender: str

    @property
    def name(self) -> str:
        """For folders and titles."""
        return self.contender if self.load is None else f"{self.contender}-load-{self.load:g}"


@dataclass(frozen=True, slots=True)
class CellRun:
    """One run, and what was seen of it."""

    cell: Cell
    folder: Path
    run: Run
    """What was asked for: without the folder's journal and the samples' observer."""
    outcome: Outcome
    samples: StepSamples
    repeat: int = 0
    """From 1 for a run of the engine; 0 for a simulated one."""
    block: int = 0
    """The block of the probe within which the engine ran."""


def play(stage: Stage, run: Run, cell: Cell, name: str, directory: Path) -> CellRun:
    """One cell in one world, with a folder of its own."""
    folder = directory / f"{cell.name}-{name}"
    folder.mkdir(parents=True)
    samples = StepSamples()
    watched = replace(run, title=folder.name, journal_path=folder / JOURNAL, observers=(samples,))
    return CellRun(cell, folder, run, stage.play(watched), samples)


class Campaign:
    """Runs and rounds of calibration in turn, a reading of the probe between any two of them.

    The speed of a shared machine drifts; what is compared should be measured at the same times.
    """

    def __init__(self, stage: Stage, calibration: Calibration, probe: Probe) -> None:
        self._stage = stage
        self._calibration = calibration
        self.probe = probe
        self._round_blocks: list[int] = []
        probe.measure()

    def calibrate(self) -> None:
        """A round of calibration."""
        self._round_blocks.append(self.probe.next_block)
        self._calibration.round()
        self.probe.measure()

    def execute(self, runs: dict[Cell, Run], num_repeats: int, directory: Path) -> list[CellRun]:
        """Every cell once a repeat, another one first each time, and calibration after each repeat."""
        cell_runs = []
        for repeat in range(1, num_repeats + 1):
            for cell in rotated(list(runs), repeat - 1):
                block = self.probe.next_block
                cell_run = play(self._stage, runs[cell], cell, f"measured-{repeat}", directory)
                self.probe.measure()
                cell_runs.append(replace(cell_run, repeat=repeat, block=block))
            self.calibrate()
        return cell_runs

    @property
    def round_paces(self) -> list[float]:
        """How much slower than on average the machine was during each round of calibration."""
        return [self.probe.pace(block) for block in self._round_blocks]


def rotated(cells: Sequence[Cell], by: int) -> list[Cell]:
    """The same cells, another one first: no cell is always measured at the beginning of a repeat."""
    by %= len(cells)
    return [*cells[by:], *cells[:by]]
