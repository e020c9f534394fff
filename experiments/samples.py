"""Measured steps: what a cost model is fitted to."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from engine.core.events import Event
from engine.core.plan import StepPlan, StepResult
from engine.core.spec import RequestSpec
from engine.core.work import Work
from sim.cost.base import CostModel
from sim.cost.kinds import kind


class StepSamples:
    """An observer that keeps the work and the period of each step (engine.core.serving.Observer).

    The period is that of the driver, from one step's beginning to the next one's: planning, execution and
    bookkeeping of this step together. That is what a simulated step must take, for the step after it to begin
    when it does on the engine; the simulated tokens come at the end of the period, so later than measured by
    the bookkeeping of their step.
    """

    def __init__(self) -> None:
        self.steps: list[Work] = []
        self.periods_ns: list[int] = []
        self._start_ns: int | None = None
        """Of the step whose period goes on, if it is to be kept."""

    def arrived(self, spec: RequestSpec, now_ns: int) -> None:
        """Nothing to note."""

    def refused(self, spec: RequestSpec, reason: str, now_ns: int) -> None:
        """Nothing to note."""

    def stepped(
        self, plan: StepPlan, result: StepResult, start_ns: int, end_ns: int, events: Sequence[Event]
    ) -> None:
        """Keep a step that computed or moved something."""
        if plan.num_tokens or plan.transfers:
            self.steps.append(Work.of(plan))
            self._start_ns = start_ns

    def closed(self, now_ns: int) -> None:
        """The period of the last step is over."""
        if self._start_ns is not None:
            self.periods_ns.append(now_ns - self._start_ns)
            self._start_ns = None

    def bias(self, cost: CostModel) -> float:
        """(priced - measured) / measured of all periods together."""
        return sum(self.priced_ns(cost)) / sum(self.periods_ns) - 1

    def priced_ns(self, cost: CostModel) -> list[float]:
        """What a cost model says of each step."""
        return [sum(cost.parts_ns(step).values()) for step in self.steps]

    @classmethod
    def joined(cls, parts: Iterable[StepSamples]) -> StepSamples:
        """The steps of all parts, in their order."""
        whole = cls()
        for part in parts:
            whole.steps += part.steps
            whole.periods_ns += part.periods_ns
        return whole


def by_kind(steps: Sequence[Work], values: Sequence[float]) -> dict[str, list[float]]:
    """One value a step, in order, for each kind of step that occurs (sim.cost.kinds)."""
    groups: dict[str, list[float]] = {}
    for step, value in zip(steps, values, strict=True):
        groups.setdefault(kind(step), []).append(value)
    return groups
