"""Policies that keep state: told every event in order, and the same again in a replay."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from random import Random

import pytest

from engine.core.events import Event, EventKind
from engine.core.journal import JournaledScheduler, replay
from engine.core.laws import LawfulScheduler
from engine.core.policies.base import Policies
from engine.core.policies.victim import Need
from engine.core.request import Request
from engine.core.spec import Capacity, Limits
from engine.core.view import View
from experiments.soak import episode
from experiments.trial import Trial
from tests.core.build import kinds, on_trial, policies, spec, step


@dataclass(slots=True)
class SparesTheUnlucky:
    """The victim is who was preempted least often, as far as it has been told."""

    num_preempted: dict[str, int] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)

    def observe(self, event: Event) -> None:
        self.events.append(event)
        if event.kind is EventKind.PREEMPTED:
            self.num_preempted[event.request_id] = self.num_preempted.get(event.request_id, 0) + 1

    def choose(self, view: View, need: Need) -> Request:
        return min(view.running, key=lambda request: (self.num_preempted.get(request.id, 0), request.id))


@dataclass(slots=True)
class MissesOne(SparesTheUnlucky):
    """The first preemption goes unnoticed."""

    has_missed: bool = False

    def observe(self, event: Event) -> None:
        if event.kind is EventKind.PREEMPTED and not self.has_missed:
            self.has_missed = True
        else:
            SparesTheUnlucky.observe(self, event)


class Journaled(JournaledScheduler, LawfulScheduler):
    """Both."""


def test_a_policy_is_told_what_everybody_is_told_in_order() -> None:
    policy = SparesTheUnlucky()
    trial = on_trial(num_blocks=4, victim=policy)
    for name in ("a", "b"):
        trial.arrive(spec(name, 6, max_tokens=6))
    told: list[Event] = []
    while not trial.scheduler.is_idle:
        told += step(trial)[1]
    assert policy.events == told
    assert EventKind.PREEMPTED in kinds(told, "a") + kinds(told, "b")


@pytest.mark.parametrize("in_flight", [1, 2])
def test_a_replay_with_a_fresh_policy_decides_the_same_and_one_that_misses_an_event_does_not(
    in_flight: int,
) -> None:
    def composed(victim: SparesTheUnlucky) -> Policies:
        return policies(victim=victim)

    num_preempted = num_diverged = 0
    for seed in range(12):
        victim, sink = SparesTheUnlucky(), io.StringIO()
        capacity, limits = Capacity(7, 0, 2), Limits(4, 8, 14)
        trial = Trial(Journaled(capacity, limits, composed(victim), sink), in_flight)
        episode(trial, Random(seed), 120)
        lines = sink.getvalue().splitlines()
        assert replay(lines, composed(SparesTheUnlucky())) is None
        num_preempted += sum(victim.num_preempted.values())
        num_diverged += replay(lines, composed(MissesOne())) is not None
    assert num_preempted > 50 and num_diverged > 3
