"""The scheduler: requests wait, run, are preempted and come back, in steps that a backend executes.

A step is three verbs. `schedule` plans it: every request is behind by some tokens, and the batching policy
hands out the token budget of the step (engine.core.step). What is planned counts as done: the tokens of a
step in flight are known by number, not by value, so the next step can be planned while this one runs. A
backend executes the plans in order. `commit` reconciles: it takes note of what became of the oldest.

Nothing here knows what time it is, what a token means, or whether the backend is real.
"""

from __future__ import annotations

from collections import deque
from functools import partial
from typing import NamedTuple

from engine.core import answers
from engine.core.draft import Draft
from engine.core.errors import UserError
from engine.core.events import Event, EventKind
from engine.core.plan import Finish, FinishReason, PreemptionKind, Rejection, StepPlan, StepResult
from engine.core.policies.base import Policies
from engine.core.policies.order import AgeingOrder, ChangingOrder, Order
from engine.core.queues import Queue, SortedQueue, VisitedQueue
from engine.core.request import Request, Status
from engine.core.spec import Capacity, Limits
from engine.core.state import State
from engine.core.step import Step
from engine.core.view import View


class InFlight(NamedTuple):
    """A plan that has not been committed, and who waits for what becomes of it."""

    plan: StepPlan
    first_tokens: list[Request]
    """Those who get their first token by it."""
    awaited: list[Request]
    """Those who have been preempted since, and get a token by it before they can enter again."""


class Scheduler:
    """Continuous batching over a paged KV cache, composed of one policy an axis.

    Times are integer nanoseconds of whatever clock the driver keeps; they may not go back.

    Raises:
        UserError: these policies cannot work under these limits (`Policies.check`).
    """

    def __init__(self, capacity: Capacity, limits: Limits, policies: Policies) -> None:
        policies.check(limits)
        self.limits = limits
        self.policies = policies
        self._ageing = policies.order if isinstance(policies.order, AgeingOrder) else None
        self.state = State(capacity, limits, partial(_queue, policies.order))
        self.view = View(self.state)
        self._learning = policies.learning
        self._num_plans = 0
        self._in_flight: deque[InFlight] = deque()
        self._events: list[Event] = []
        """Since the last commit; the next one returns them."""
        self._has_untold_end = False
        self._leaving: dict[str, int] = {}
        """Ids whose end is untold, or that a step in flight may name; and the first step that cannot."""
        self._rejections: list[Rejection] = []

    @property
    def is_idle(self) -> bool:
        """No request is outstanding, no plan is in flight, and no event waits to be told."""
        return not (self.state.requests or self._in_flight or self._events)

    @property
    def num_in_flight(self) -> int:
        """Plans that have not been committed."""
        return len(self._in_flight)

    def add(self, request: Request, now_ns: int) -> None:
        """A request arrives; one that could never run is rejected by the next plan, with the reason.

        Raises:
            UserError: a request with this id is outstanding.
            ValueError: time goes back.
        """
        self.state.tick(now_ns)
        self.check_is_new(request.id)
        if self._ageing is not None:
            request.effective_priority = self._ageing.effective_priority(request)
        self._tell(request, EventKind.ADDED, "")
        reason = self._why_never(request)
        if reason is None:
            self.state.arrive(request)
        else:
            request.status = Status.ENDED
            self._rejections.append(Rejection(request.id, reason))
            self._take_leave(request, EventKind.REJECTED, reason)

    def check_is_new(self, request_id: str) -> None:
        """Refuse an id that is in use, or whose end has not been told yet.

        Raises:
            UserError: it is.
        """
        if request_id in self.state.requests or request_id in self._leaving:
            raise UserError(
                f"request {request_id!r} is already here, or its end has not been told yet: "
                f"ids must be unique while a request lives"
            )

    def abort(self, request_id: str, now_ns: int) -> bool:
        """End a request wherever it is, even in flight; False if no such request is outstanding."""
        self.state.tick(now_ns)
        request = self.state.requests.get(request_id)
        if request is None:
            return False
        self._end(request, EventKind.ABORTED, "")
        return True

    def schedule(self, now_ns: int) -> StepPlan | None:
        """Plan the next step; None if there is nothing to do. Earlier plans may be in flight.

        A plan without chunks only tells of others: transfers, preemptions, rejections or aborted requests.
        """
        self.state.tick(now_ns)
        draft, self._rejections = Draft(self._rejections), []
        step = Step(self.state, self.policies, self.view, draft)
        self.policies.batching.fill(step)
        for request, reason in draft.rejected:
            self._take_leave(request, EventKind.REJECTED, reason)
        if draft.is_empty and (self._in_flight or not self._has_untold_end):
            return None
        first_tokens = draft.first_tokens()
        plan = draft.freeze(self.state, self._num_plans, self.limits.max_num_batched_tokens - step.budget)
        if draft.preempted and self._in_flight:
            self._await_tokens(draft)
        self._tell_moves(draft)
        self._in_flight.append(InFlight(plan, first_tokens, []))
        self._num_plans += 1
        return plan

    def commit(self, plan: StepPlan, result: StepResult, now_ns: int) -> list[Event]:
        """Take note of the oldest step in flight: ends of sequences; returns all events since the last
        commit.

        What it brings to a request that has ended meanwhile is dropped.

        Raises:
            RuntimeError: this plan is not the oldest in flight.
        """
        self.state.tick(now_ns)
        if not self._in_flight or self._in_flight[0].plan is not plan:
            raise RuntimeError(f"step {plan.step_id} is not in flight: commit each plan once, in order")
        _, first_tokens, awaited = self._in_flight.popleft()
        for finish in result.finished:
            if finish.reason is FinishReason.NOT_FINITE:  # its step brought nobody of the request a token
                self._fail(finish, plan)
        for request in first_tokens:
            if request.status is not Status.ENDED:
                self._tell(request, EventKind.FIRST_TOKEN, "")
        for request in awaited:
            request.num_awaited_tokens -= 1
        for finish in result.finished:
            self._finish(finish, plan)
        return self._told()

    # What happens to a request.

    def _why_never(self, request: Request) -> str | None:
        """Why an arriving request can never run. The limits are held against what it is, whoever schedules it
        and in whatever chunks.
        """
        window, num_seats = self.limits.max_model_len, self.limits.max_num_seqs
        if request.num_prompt_tokens >= window:
            return (
                f"the prompt has {request.num_prompt_tokens} tokens, which leaves no room for output in the "
                f"model's window of {window}: send a shorter prompt or scale the lengths of the workload"
            )
        if request.n > num_seats:
            return f"n = {request.n} sequences, and limits.max_num_seqs is {num_seats}: raise it or lower n"
        admission = self.policies.admission
        return answers.reason(admission, admission.screen(request, self.view))

    def _finish(self, finish: Finish, plan: StepPlan) -> None:
        """A sequence has ended; with its last sequence the request."""
        request = self._alive(finish, plan)
        if request is None or finish.seq not in request.live:
            return
        if len(request.live) == 1:
            self._end(request, EventKind.FINISHED, finish.reason)
        else:
            self.state.end_sequence(request, finish.seq)
            self._tell(request, EventKind.SEQUENCE_FINISHED, finish.reason)

    def _fail(self, finish: Finish, plan: StepPlan) -> None:
        """The request ends with all its sequences: what one of them has computed is of no use."""
        request = self._alive(finish, plan)
        if request is not None:
            self._end(request, EventKind.FAILED, finish.reason)

    def _alive(self, finish: Finish, plan: StepPlan) -> Request | None:
        """The request of a sequence that the backend ends; None if it ended while the step ran.

        Raises:
            ValueError: it was not in the step.
        """
        request_id, seq, _ = finish
        batch = plan.chunks
        if (
            request_id not in batch.request_ids
            or seq not in batch.samples[batch.request_ids.index(request_id)]
        ):
            raise ValueError(f"the backend ends sequence {seq} of {request_id!r}, which did not run")
        return self.state.requests.get(finish.request_id)

    def _await_tokens(self, draft: Draft) -> None:
        """Who is to be computed again while steps in flight bring it tokens cannot enter before these are
        there.
        """
        victims = {request.id: request for request, _ in draft.preempted if request.status is Status.WAITING}
        for flight in self._in_flight:
            batch = flight.plan.chunks
            for request_id, samples in zip(batch.request_ids, batch.samples, strict=True):
                if samples and request_id in victims:
                    victims[request_id].num_awaited_tokens += 1
                    flight.awaited.append(victims[request_id])

    def _end(self, request: Request, kind: EventKind, detail: str) -> None:
        """A request gives its seat and its blocks back, and is no more."""
        self.state.end(request)
        self._take_leave(request, kind, detail)

    # Events.

    def _take_leave(self, request: Request, kind: EventKind, detail: str) -> None:
        """Tell of an end; the id is taken until that is told, and while a step in flight may name it."""
        self._leaving[request.id] = self._num_plans
        self._has_untold_end = True
        self._tell(request, kind, detail)

    def _tell_moves(self, draft: Draft) -> None:
        """Tell who entered, came back or was preempted."""
        for request in draft.admitted:
            first = request.num_preemptions == 0
            kind = EventKind.SCHEDULED if first else EventKind.RESUMED
            self._tell(request, kind, "" if first else PreemptionKind.RECOMPUTE)
        for request in draft.resumed:
            self._tell(request, EventKind.RESUMED, PreemptionKind.SWAP)
        for request, preemption in draft.preempted:
            self._tell(request, EventKind.PREEMPTED, preemption.kind)

    def _tell(self, request: Request, kind: EventKind, detail: str) -> None:
        event = Event(self.state.now_ns, request.id, kind, detail, self._num_plans)
        self._events.append(event)
        for policy in self._learning:
            policy.observe(event)

    def _told(self) -> list[Event]:
        """All events since the last commit; ids that no step in flight can name are free again."""
        events, self._events = self._events, []
        self._has_untold_end = False
        oldest = self._in_flight[0].plan.step_id if self._in_flight else self._num_plans
        if self._leaving:
            self._leaving = {name: step for name, step in self._leaving.items() if step > oldest}
        return events


def _queue(order: Order, name: str, state: State) -> Queue:
    """A queue as the order policy wants it."""
    if name not in order.sorts:
        return Queue()
    view = View(state)

    def key(request: Request) -> tuple[float | str, ...]:
        return answers.key(order, request, view)

    if isinstance(order, ChangingOrder):
        return VisitedQueue(key, partial(order.has_changed, view))
    return SortedQueue(key) if name == "waiting" else VisitedQueue(key)
