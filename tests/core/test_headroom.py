"""Free blocks that each running sequence must find, and the shortcuts of a step that do not ask for them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from engine.core.events import EventKind
from engine.core.laws import LawfulScheduler, check_same_plans
from engine.core.plan import StepPlan
from engine.core.policies.admission import Watermark
from engine.core.policies.batching import DecodeFirst
from engine.core.policies.order import Fcfs
from engine.core.policies.reservation import OnDemand, WholePrompt
from engine.core.policies.restore import Recompute, Swap
from engine.core.request import Request, Status
from engine.core.step import Step
from experiments.soak import run_episode
from tests.core.build import drain, kinds, on_trial, policies, spec, step


@pytest.mark.parametrize(("headroom_per_seq", "num_victims"), [(1, 0), (2, 0), (3, 1)])
def test_a_decode_wants_its_headroom(headroom_per_seq: int, num_victims: int) -> None:
    """Two sequences hold two blocks each, two of six are free, and no block is due."""
    admission = Watermark(fraction=0.0, headroom_per_seq=headroom_per_seq)
    trial = on_trial(num_blocks=6, admission=admission)
    for name in ("first", "second"):
        trial.arrive(spec(name, 5))
    step(trial)
    plan, _ = step(trial)
    assert [preemption.request_id for preemption in plan.preemptions] == ["second"] * num_victims
    _, events = drain(trial)
    assert [kinds(events, name)[-1] for name in ("first", "second")] == [EventKind.FINISHED] * 2


def each_running(self: Step) -> Iterator[Request]:
    """Every running request is asked about, one by one."""
    running = self._state.running
    running.arrange()
    for request in list(running):
        if request.status is Status.RUNNING and request.num_tokens < request.max_num_tokens:
            if not self.clip(request):
                return
            yield request


class NotingScheduler(LawfulScheduler):
    """Keeps its plans."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.plans: list[StepPlan | None] = []

    def schedule(self, now_ns: int) -> StepPlan | None:
        plan = super().schedule(now_ns)
        self.plans.append(plan)
        return plan


def plans_of_episode(index: int, choices: dict[str, Any]) -> tuple[list[StepPlan | None], Counter[str]]:
    """An episode of the soak."""
    schedulers: list[NotingScheduler] = []

    def make(*args: Any) -> NotingScheduler:
        schedulers.append(NotingScheduler(*args))
        return schedulers[-1]

    tally = run_episode(11, index, policies(**choices), make)
    return schedulers[0].plans, tally


@pytest.mark.parametrize("headroom_per_seq", range(5))
def test_the_sweep_over_decodes_decides_what_the_loop_does(
    headroom_per_seq: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    admission = Watermark(fraction=0.0, headroom_per_seq=headroom_per_seq)
    total: Counter[str] = Counter()
    for index in range(12):
        choices = {
            "admission": admission,
            "order": Fcfs(sorts=("running", "swapped")) if index % 2 else Fcfs(),
            "batching": DecodeFirst(),
            "restore": Swap() if index % 3 else Recompute(),
            "reservation": WholePrompt() if index % 4 < 2 else OnDemand(),
        }
        swept, tally = plans_of_episode(index, choices)
        total += tally
        with monkeypatch.context() as patch:
            patch.setattr(Step, "running", each_running)
            looped, _ = plans_of_episode(index, choices)
        check_same_plans(looped, swept)
    assert total["recompute"] + total["swap"] > 100, total
