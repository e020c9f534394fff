"""Measured steps: what a cost model is fitted to."""

from __future__ import annotations

from collections.abc import Sequence

from engine.core.backend import RequestSpec
from engine.core.plan import Event, StepPlan, StepResult
from sim.cost.base import CostModel, StepFeatures, features


class StepSamples:
    """An observer that keeps the features and the period of each step (engine.core.serving.Observer).

    The period is that of the driver, from one step's beginning to the next one's: planning, execution and
    bookkeeping of this step together. That is what a simulated step must take, for the step after it to begin
    when it does on the engine; the simulated tokens come at the end of the period, so later than measured by
    the bookkeeping of their step.
    """

    def __init__(self) -> None:
        self.steps: list[StepFeatures] = []
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
            step = features(plan)
            for part in result.earlier:  # the executions of a leap follow one another without bookkeeping
                self.steps.append(step)
                self.periods_ns.append(part.duration_ns)
                start_ns += part.duration_ns
                step = step._replace(decode_context_tokens=step.decode_context_tokens + step.num_seqs)
            self.steps.append(step)
            self._start_ns = start_ns

    def closed(self, now_ns: int) -> None:
        """The period of the last step is over."""
        if self._start_ns is not None:
            self.periods_ns.append(now_ns - self._start_ns)
            self._start_ns = None

    def total_error(self, cost: CostModel) -> float:
        """(priced - measured) / measured of all periods together: what a cost model makes of these steps."""
        priced_ns = sum(sum(cost.parts_ns(step).values()) for step in self.steps)
        return priced_ns / sum(self.periods_ns) - 1
