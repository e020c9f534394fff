"""Static batching: a batch is filled over as many steps as it takes, and runs until all of it has ended."""

from __future__ import annotations

import random
from typing import Any

import pytest

from engine.core.events import EventKind
from engine.core.plan import PreemptionKind, StepPlan
from engine.core.policies.admission import FirstChunk, FullPrompt, Padded, Watermark
from engine.core.policies.batching import Static
from engine.core.policies.restore import Recompute, Swap
from engine.core.spec import Limits
from experiments.trial import Trial
from tests.core.build import drain, kinds, on_trial, spec, step

LIMITS = Limits(max_num_seqs=8, max_num_batched_tokens=19, max_model_len=20)


def admissions(plans: list[StepPlan]) -> list[int]:
    return [len(plan.admitted) for plan in plans]


def test_a_batch_takes_as_many_prefill_steps_as_it_needs() -> None:
    """Three prompts of 6 tokens fit into a step of 19, eight sequences into the seats."""
    trial = on_trial(num_blocks=100, limits=LIMITS, batching=Static())
    for index in range(10):
        trial.arrive(spec(f"r{index}", 6, max_tokens=3 + index % 3))
    plans, _ = drain(trial)
    assert admissions(plans) == [3, 3, 2, 0, 0, 0, 0, 2, 0, 0, 0, 0]
    assert [len(plan.chunks) for plan in plans[:4]] == [3, 3, 2, 8], "nobody decodes while it is filled"


def test_memory_closes_a_batch_too() -> None:
    trial = on_trial(num_blocks=8, limits=LIMITS, batching=Static())
    for index in range(6):
        trial.arrive(spec(f"r{index}", 6, max_tokens=2))
    plans, _ = drain(trial)
    assert admissions(plans) == [3, 1, 0, 2, 0]


def test_who_comes_while_the_batch_runs_waits_for_its_end() -> None:
    trial = on_trial(limits=LIMITS, batching=Static())
    trial.arrive(spec("first", 6, max_tokens=4))
    step(trial)
    trial.arrive(spec("second", 6, max_tokens=2))
    plan, _ = step(trial)
    assert plan.admitted == ("second",), "nobody has decoded: the batch is open"
    step(trial)
    trial.arrive(spec("third", 6, max_tokens=2))
    plans, events = drain(trial)
    assert admissions(plans)[-2:] == [1, 0]
    ends = [event.request_id for event in events if event.kind is EventKind.FINISHED]
    assert ends == ["first", "third"]


class Batches:
    """Follows the plans: who is of the batch at hand, and whether it is closed."""

    def __init__(self) -> None:
        self.members: set[str] = set()
        self.closed = False
        self.num_batches = 0

    def follow(self, plan: StepPlan) -> None:
        """Raises AssertionError if somebody enters a closed batch."""
        if not self.members:
            self.closed = False
            self.num_batches += bool(plan.admitted)
        assert not (self.closed and plan.admitted), f"{plan.admitted} entered beside {self.members}"
        self.closed |= any(chunk.request_id not in plan.admitted for chunk in plan.chunks)
        self.members.update(plan.admitted)
        self.members -= {p.request_id for p in plan.preemptions if p.kind is PreemptionKind.RECOMPUTE}

    def step(self, trial: Trial) -> int:
        """One step, if there is anything to do; the number of its preemptions."""
        plan = trial.begin()
        if plan is None:
            return 0
        self.follow(plan)
        trial.end()
        self.members.intersection_update(trial.outstanding)
        return len(plan.preemptions)


@pytest.mark.parametrize("restore", [Swap(), Recompute()])
@pytest.mark.parametrize("admission", [FullPrompt(), FirstChunk(), Watermark(), Padded()])
def test_nobody_enters_a_batch_that_has_begun(admission: Any, restore: Any) -> None:
    rng, num_preemptions, num_batches = random.Random(3), 0, 0
    for _ in range(30):
        trial = on_trial(
            num_blocks=rng.randint(5, 20),
            num_host_blocks=rng.choice((0, 6, 20)),
            limits=LIMITS,
            batching=Static(),
            admission=admission,
            restore=restore,
        )
        batches = Batches()
        for index in range(20):
            trial.arrive(spec(f"r{index}", rng.randint(1, 12), max_tokens=rng.randint(1, 12)))
            for _ in range(rng.randint(0, 3)):
                num_preemptions += batches.step(trial)
        while not trial.scheduler.is_idle:
            num_preemptions += batches.step(trial)
        num_batches += batches.num_batches
    assert num_batches > 100
    assert (num_preemptions == 0) == isinstance(admission, Padded)


def test_padding_makes_a_batch_smaller() -> None:
    """One long prompt: 20 blocks are 4 padded sequences of 5, or all of the short ones beside it."""
    sizes = {}
    for admission in (FullPrompt(), Padded()):
        trial = on_trial(num_blocks=20, limits=LIMITS, batching=Static(), admission=admission)
        trial.arrive(spec("long", 16, max_tokens=3))
        for index in range(7):
            trial.arrive(spec(f"r{index}", 2, max_tokens=2))
        plans, events = drain(trial)
        assert kinds(events, "long")[-1] is EventKind.FINISHED
        sizes[type(admission)] = max(len(plan.chunks) for plan in plans if not plan.admitted)
    assert sizes == {FullPrompt: 8, Padded: 4}
