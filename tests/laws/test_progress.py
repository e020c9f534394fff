"""Compositions that once went in circles: each step computed tokens, and nobody ever came to the end (law 6).

All were found by the soak and cut down to a few requests.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from engine.core.events import EventKind
from engine.core.laws import LawfulScheduler
from engine.core.policies.admission import FirstChunk, Watermark
from engine.core.policies.base import Policies
from engine.core.policies.batching import ArrivalFirstChunked, Batching, PrefillFirst
from engine.core.policies.order import Fcfs, Priority
from engine.core.policies.reservation import OnDemand, WholePrompt
from engine.core.policies.restore import Recompute
from engine.core.policies.victim import LastAdmitted, LowestPriority
from engine.core.spec import Capacity, Limits, RequestSpec
from experiments.trial import Trial

OLDEST_IS_VICTIM = Policies(
    order=Fcfs(sorts=("running", "swapped")),
    admission=Watermark(fraction=0.0),
    batching=PrefillFirst(),
    victim=LowestPriority(),
    restore=Recompute(),
    reservation=WholePrompt(),
)
"""The head of the queue takes the budget, finds no block, is the victim itself, and is the first to enter."""

UNSORTED_QUEUE = Policies(
    order=Priority(),
    admission=FirstChunk(),
    batching=ArrivalFirstChunked(),
    victim=LastAdmitted(),
    restore=Recompute(),
    reservation=OnDemand(),
)
"""The layout of the batch must not make the oldest request the last of a queue that nobody sorts again."""


def served(capacity: Capacity, limits: Limits, policies: Policies, specs: list[RequestSpec]) -> int:
    """Serve all to their ends; returns how many finished."""
    trial = Trial(LawfulScheduler(capacity, limits, policies))
    for spec in specs:
        trial.arrive(spec)
    trial.drain()
    return trial.report()[EventKind.FINISHED]


@pytest.mark.parametrize("batching", [PrefillFirst(), ArrivalFirstChunked()])
def test_who_stands_behind_a_victim_of_itself_has_its_turn(batching: Batching) -> None:
    policies = replace(OLDEST_IS_VICTIM, batching=batching)
    specs = [RequestSpec("old", 0, 5, 2, n=2, priority=1), RequestSpec("dear", 1, 1, 2)]
    assert served(Capacity(5, 0, 2), Limits(6, 6, 7), policies, specs) == 2


def test_two_long_prompts_do_not_preempt_each_other_for_ever() -> None:
    specs = [
        RequestSpec("r0", 0, 6, 7, n=2),
        RequestSpec("r1", 0, 10, 6, n=2),
        RequestSpec("r2", 0, 5, 1, priority=1),
    ]
    assert served(Capacity(7, 0, 4), Limits(6, 9, 64), UNSORTED_QUEUE, specs) == 3
