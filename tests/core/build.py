"""Short ways to say which scheduler a test is about."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from engine.core.events import Event, EventKind
from engine.core.laws import LawfulScheduler
from engine.core.plan import Finish, FinishReason, StepPlan, StepResult
from engine.core.policies.admission import FullPrompt
from engine.core.policies.base import Policies
from engine.core.policies.batching import DecodeFirst
from engine.core.policies.order import Fcfs
from engine.core.policies.reservation import OnDemand
from engine.core.policies.restore import Recompute
from engine.core.policies.victim import LastAdmitted
from engine.core.request import Request
from engine.core.scheduler import Scheduler
from engine.core.spec import Capacity, Limits, RequestSpec
from experiments.trial import Trial

DEFAULT = Policies(Fcfs(), FullPrompt(), DecodeFirst(), LastAdmitted(), Recompute(), OnDemand())
ROOMY = Limits(max_num_seqs=8, max_num_batched_tokens=64, max_model_len=64)
BLOCK_SIZE = 4


def policies(**choices: Any) -> Policies:
    """The default composition with some axes chosen otherwise."""
    return replace(DEFAULT, **choices)


def lawful(
    num_blocks: int = 16, num_host_blocks: int = 0, limits: Limits = ROOMY, **choices: Any
) -> LawfulScheduler:
    """A scheduler that checks the laws."""
    return LawfulScheduler(Capacity(num_blocks, num_host_blocks, BLOCK_SIZE), limits, policies(**choices))


def on_trial(*args: Any, **kwargs: Any) -> Trial:
    """The same, with a backend that checks the contents of memory."""
    return Trial(lawful(*args, **kwargs))


def spec(
    request_id: str,
    num_prompt_tokens: int,
    max_tokens: int = 4,
    *,
    n: int = 1,
    priority: int = 0,
    arrival_ns: int = 0,
) -> RequestSpec:
    """One request."""
    return RequestSpec(request_id, arrival_ns, num_prompt_tokens, max_tokens, n=n, priority=priority)


def request_of(*args: Any, **kwargs: Any) -> Request:
    """The same, as a scheduler has it."""
    return Request(spec(*args, **kwargs))


def step(trial: Trial) -> tuple[StepPlan, list[Event]]:
    """One whole step."""
    plan = trial.begin()
    assert plan is not None, "nothing to do"
    return plan, trial.end()


def drain(trial: Trial) -> tuple[list[StepPlan], list[Event]]:
    """All plans and events up to the end; then the end itself is checked."""
    plans: list[StepPlan] = []
    events: list[Event] = []
    while not trial.scheduler.is_idle:
        plan, new = step(trial)
        plans.append(plan)
        events += new
    trial.drain()
    return plans, events


def kinds(events: list[Event], request_id: str) -> list[EventKind]:
    """The life of a request."""
    return [event.kind for event in events if event.request_id == request_id]


def commit(scheduler: Scheduler, plan: StepPlan, *ends: tuple[str, int], now_ns: int = 0) -> list[Event]:
    """Commit by hand; `ends` are sequences that end."""
    finished = tuple(Finish(request_id, seq, FinishReason.STOP) for request_id, seq in ends)
    return scheduler.commit(plan, StepResult(1, finished), now_ns)
