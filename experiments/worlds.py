"""A run in either world: a fresh scheduler, a backend, a driver, and the observers that watch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TextIO

from engine.core.backend import Backend
from engine.core.drive import Source
from engine.core.journal import JournaledScheduler, replay
from engine.core.laws import LawfulScheduler
from engine.core.policies.base import Policies
from engine.core.scheduler import Scheduler
from engine.core.serving import Observer, Serving
from engine.core.sources import Listed
from engine.core.spec import Capacity, Limits, RequestSpec
from engine.telemetry.recorder import Recorder
from engine.telemetry.runlog import Log, RunLog, StoredLog
from engine.telemetry.schema import World
from engine.telemetry.writer import RunWriter
from experiments.effort import Effort, measured
from experiments.progress import progress_bar
from sim.backend import SimulatedBackend

MakePolicies = Callable[[], Policies]
"""Builds the policies anew."""

Driver = Callable[[Serving, Source], int]
"""Serves what comes to its end; the time of that end in ns."""


class LawfulJournaledScheduler(JournaledScheduler, LawfulScheduler):
    """Writes its inputs down and checks every law."""


def scheduler(
    capacity: Capacity,
    limits: Limits,
    policies: Policies,
    sink: TextIO | None = None,
    *,
    with_plans: bool = False,
    laws: bool = False,
) -> Scheduler:
    """A fresh scheduler; it writes a journal if there is a `sink`, and checks the laws if `laws`."""
    if sink is None:
        return (LawfulScheduler if laws else Scheduler)(capacity, limits, policies)
    kind = LawfulJournaledScheduler if laws else JournaledScheduler
    return kind(capacity, limits, policies, sink, with_plans=with_plans)


@dataclass(frozen=True, slots=True)
class Run:
    """What is served, under which policies, and what is checked and written down meanwhile."""

    specs: Sequence[RequestSpec]
    limits: Limits
    make_policies: MakePolicies
    """Called for each time it is served, since a policy may keep state."""
    title: str = "serving"
    journal_path: Path | None = None
    with_plans: bool = True
    """The journal holds the plans too, so that a replay can be compared with them."""
    laws: bool = False
    log_directory: Path | None = None
    """Where the run log is written while the run goes on; None keeps it in memory."""
    observers: Sequence[Observer] = field(default=())


@dataclass(frozen=True, slots=True)
class Outcome:
    """A run that is over."""

    log: Log
    effort: Effort
    journal_path: Path | None
    """The journal that this run wrote."""
    remark: str | None = None
    """What whoever reads its figures must know: how many step times are guesses, say."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One of the two worlds, ready to serve. The same stage may serve many runs, one after the other."""

    world: World
    backend: Backend
    make_driver: Callable[[], Driver]
    """A driver with a clock that starts now."""

    def play(self, run: Run) -> Outcome:
        """Serve a workload to its end with a fresh scheduler."""
        capacity, directory = self.backend.capacity, run.log_directory
        writer = None if directory is None else RunWriter(directory, self.world, capacity)
        recorder = Recorder(None if writer is None else writer.drain)
        with ExitStack() as stack:
            path = run.journal_path
            sink = None if path is None else stack.enter_context(path.open("w", encoding="utf-8"))
            policies = run.make_policies()
            core = scheduler(capacity, run.limits, policies, sink, with_plans=run.with_plans, laws=run.laws)
            bar = stack.enter_context(progress_bar(run.title, len(run.specs)))
            serving = Serving(core, self.backend, (recorder, bar, *run.observers))
            effort = measured(lambda: self.make_driver()(serving, Listed(run.specs)))
        remark = self.backend.pop_remark() if isinstance(self.backend, SimulatedBackend) else None
        if writer is None or directory is None:
            return Outcome(RunLog.of(recorder, self.world, capacity), effort, path, remark)
        writer.close(recorder)
        return Outcome(StoredLog(directory), effort, path, remark)

    def warm_up(self, run: Run) -> None:
        """Serve a workload, all of it at once, and look away: the first steps of a process are slow."""
        core = scheduler(self.backend.capacity, run.limits, run.make_policies())
        specs = [replace(spec, arrival_ns=0) for spec in run.specs]
        self.make_driver()(Serving(core, self.backend), Listed(specs))
        if isinstance(self.backend, SimulatedBackend):
            self.backend.pop_remark()


def replays_equal(journal_path: Path, policies: Policies) -> bool:
    """Whether a fresh core, fed with the inputs of a journal with plans, plans the same, byte for byte."""
    with journal_path.open(encoding="utf-8") as lines:
        return replay(lines, policies) is None
