"""Runs stages in processes of their own, within the time there is.

A kernel that reads where it must not leaves a CUDA context of no use, and one that hangs can only be killed;
neither may cost the measurements after it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from pagedkv.bench.rows import RowFile
from pagedkv.bench.stages import Stage

MAX_DEATHS = 20
"""A stage that dies is continued so often."""


class Outcome(NamedTuple):
    """How a stage ended."""

    stage: str
    status: str
    """done, stopped (out of time), failed, or skipped."""
    seconds: float = 0.0
    note: str = ""


class Budget:
    """Time that is left, by a clock."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._start, self._seconds = clock(), seconds

    @property
    def spent_s(self) -> float:
        """Seconds since the start."""
        return self._clock() - self._start

    @property
    def left_s(self) -> float:
        """Seconds until the end, negative after it."""
        return self._seconds - self.spent_s


Launch = Callable[[Stage, float], Outcome]


def run(
    stages: Iterable[Stage], budget: Budget, launch: Launch, report: Callable[[Outcome], None]
) -> list[Outcome]:
    """Run stages in order, each within its limit and the budget; `report` is called after each."""
    outcomes = []
    for stage in stages:
        left_s = budget.left_s
        if left_s < stage.needs_s:
            outcome = Outcome(stage.name, "skipped", note=f"{left_s:.0f} s left, needs {stage.needs_s:.0f}")
        else:
            outcome = launch(stage, min(left_s, stage.limit_s))
        report(outcome)
        outcomes.append(outcome)
    return outcomes


def launcher(out: Path) -> Launch:
    """Runs `python -m pagedkv.bench --here` for a stage."""

    def launch(stage: Stage, limit_s: float) -> Outcome:
        command = [sys.executable, "-m", "pagedkv.bench", "--stage", stage.name, "--out", str(out), "--here"]
        return supervise(stage.name, command, out, limit_s)

    return launch


def supervise(stage: str, command: Sequence[str], out: Path, limit_s: float) -> Outcome:
    """Run the command, which appends rows of the stage; where it dies, again, as long as that adds rows."""
    file, log = RowFile(out, stage), out / f"{stage}.log"
    for path in (file.path, log):
        path.unlink(missing_ok=True)
    budget, num_rows = Budget(limit_s), 0
    for deaths in range(MAX_DEATHS):
        try:
            code = _call(command, log, budget.left_s)
        except subprocess.TimeoutExpired:
            _end_started(file, "stopped", "out of time")
            return Outcome(stage, "stopped", budget.spent_s, "out of time")
        if code == 0:
            return Outcome(stage, "done", budget.spent_s, f"died {deaths} times" if deaths else "")
        _end_started(file, "failed", f"the process died with status {code}")
        if len(file.read()) == num_rows:
            break
        num_rows = len(file.read())
    return Outcome(stage, "failed", budget.spent_s, _last_line(log))


def _call(command: Sequence[str], log: Path, limit_s: float) -> int:
    """Exit status; what is still running when this ends is killed, with all that it has started."""
    with (
        log.open("a") as stream,
        subprocess.Popen(command, stdout=stream, stderr=stream, start_new_session=True) as process,
    ):
        try:
            return process.wait(limit_s)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def _end_started(file: RowFile, status: str, note: str) -> None:
    """What had begun when its process ended will not end by itself."""
    for row in file.read():
        if row.status == "started":
            file.append(replace(row, status=status, note=note))


def _last_line(log: Path) -> str:
    lines = log.read_text().strip().splitlines()
    return lines[-1][:300] if lines else "no output"
