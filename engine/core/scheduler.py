"""The scheduler: requests wait, run, are preempted and come back, in steps that a backend executes.

A step is three verbs. `schedule` plans it: every running request is behind by some tokens, and the batching
policy hands out the token budget of the step by `continue_running`, `resume_swapped` and `admit_waiting`
(engine.core.step). A backend executes the plan. `commit` takes note of what became of it. Nothing here knows
what time it is, what a token means, or whether the backend is real.

    waiting --admit--> running --swap out--> swapped
       ^                 |  ^                   |
       +---recompute-----+  +-----resume--------+
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from engine.core import answers
from engine.core.errors import UserError
from engine.core.events import Event, EventKind
from engine.core.kv_cache import KVCache
from engine.core.plan import (
    Batch,
    Finish,
    FinishReason,
    PreemptionKind,
    Rejection,
    StepPlan,
    StepResult,
)
from engine.core.policies.base import AgeingOrder, Policies
from engine.core.queues import Queue, waiting_queue
from engine.core.request import Request, Status
from engine.core.spec import Capacity, Limits
from engine.core.step import Step

RUNNING = Status.RUNNING


class Scheduler:
    """Continuous batching over a paged KV cache, composed of one policy an axis.

    Times are integer nanoseconds of whatever clock the driver keeps; they may not go back.

    Raises:
        UserError: these policies cannot work under these limits (`Policies.check`).
    """

    def __init__(self, capacity: Capacity, limits: Limits, policies: Policies) -> None:
        policies.check(limits)
        self.kv = KVCache(capacity)
        self.limits = limits
        self.policies = policies
        self.requests: dict[str, Request] = {}
        """All that have not ended, by id."""
        self.waiting = waiting_queue(policies.order)
        self.running = Queue("running", policies.order)
        self.swapped = Queue("swapped", policies.order)
        self._ageing = policies.order if isinstance(policies.order, AgeingOrder) else None
        self.num_running_seqs = 0
        self.num_kv_tokens = 0
        """Device slots that hold KV."""
        self.last_decodes: tuple[list[Request], Batch] = ([], Batch.of(()))
        """The last batch of decodes and who was in it; most steps are like the one before."""
        self._num_steps = 0
        self._now_ns = 0
        self._in_flight: tuple[StepPlan, list[Request]] | None = None
        self._events: list[Event] = []
        """Since the last commit; the next one returns them."""
        self._ended: set[str] = set()
        """Requests whose end has not been told yet: their ids are still taken."""
        self._rejections: list[Rejection] = []

    @property
    def is_idle(self) -> bool:
        """No request is outstanding, and no event waits to be told."""
        return not (self.requests or self._events)

    @property
    def batch(self) -> Sequence[Request]:
        """All that run."""
        return self.running

    @property
    def is_busy(self) -> bool:
        """Some request runs."""
        return bool(self.running)

    def add(self, request: Request, now_ns: int) -> None:
        """A request arrives; one that could never run is rejected by the next plan, with the reason.

        Raises:
            ValueError: a request with this id is outstanding, or time goes back.
        """
        self._advance(now_ns)
        self.check_is_new(request.id)
        self.requests[request.id] = request
        self._age((request,), now_ns)
        self._tell(request, EventKind.ADDED, "", now_ns)
        reason = self._turn_away(request)
        if reason is None:
            self.waiting.join(request)
        else:
            self._rejections.append(Rejection(request.id, reason))
            self.end(request, EventKind.REJECTED, reason, now_ns)

    def check_is_new(self, request_id: str) -> None:
        """Refuse an id that is in use, or whose end has not been told yet.

        Raises:
            UserError: it is.
        """
        if request_id in self.requests or request_id in self._ended:
            raise UserError(
                f"request {request_id!r} is already here, or its end has not been told yet: "
                f"ids must be unique while a request lives"
            )

    def abort(self, request_id: str, now_ns: int) -> bool:
        """End a request wherever it is, even in flight; False if no such request is outstanding."""
        self._advance(now_ns)
        request = self.requests.get(request_id)
        if request is None:
            return False
        if request.status is Status.WAITING:
            self.waiting.remove(request)
        elif request.status is Status.SWAPPED:
            self.swapped.remove(request)
        else:
            self.leave_running(request)
        self.end(request, EventKind.ABORTED, "", now_ns)
        return True

    def schedule(self, now_ns: int) -> StepPlan | None:
        """Plan the next step; None if there is nothing to do.

        A plan without chunks only tells of others: transfers, preemptions, rejections or aborted requests.

        Raises:
            RuntimeError: the previous plan has not been committed.
        """
        self._advance(now_ns)
        if self._in_flight is not None:
            raise RuntimeError(
                f"step {self._in_flight[0].step_id} is in flight: commit it before the next one is planned"
            )
        if self.policies.order.ages:
            self._age(self.requests.values(), now_ns)
        step = Step(self, now_ns)
        step.rejections, self._rejections = self._rejections, []
        self.policies.batching.fill(step)
        plan = step.close(self._num_steps, has_endings=bool(self._ended))
        if plan is None:
            return None
        self._num_steps += 1
        self._in_flight = plan, step.requests
        if plan.admitted or plan.resumed or plan.preemptions:
            self._note_moves(step, now_ns)
        return plan

    def commit(self, plan: StepPlan, result: StepResult, now_ns: int) -> list[Event]:
        """Take note of an executed step: progress, ends of sequences; returns all events since the last
        commit.

        Raises:
            RuntimeError: this plan is not in flight.
        """
        self._advance(now_ns)
        if self._in_flight is None or self._in_flight[0] is not plan:
            raise RuntimeError(f"step {plan.step_id} is not in flight: commit each plan once, in order")
        requests, self._in_flight = self._in_flight[1], None
        batch = plan.chunks
        for finish in result.finished:
            if finish.reason is FinishReason.NOT_FINITE:  # before any progress: it made none in this step
                self._fail(finish, requests, now_ns)
        self.num_kv_tokens += plan.num_tokens
        for request, num_tokens, seqs, samples in zip(
            requests, batch.num_tokens, batch.seqs, batch.samples, strict=True
        ):
            if request.status is not RUNNING:  # failed, or aborted while the step ran
                self.num_kv_tokens -= num_tokens * len(seqs)
                continue
            request.num_computed_tokens += num_tokens
            if samples:
                request.num_tokens += 1
            if request.num_computed_tokens <= request.num_prefill_tokens:
                self._after_prefill(request, samples, now_ns)
        for finish in result.finished:
            self._finish(finish, requests, now_ns)
        events, self._events = self._events, []
        self._ended.clear()
        return events

    # What happens to a request.

    def leave_running(self, request: Request) -> None:
        """Take a request out of the running queue; its blocks are the caller's business."""
        self.running.remove(request)
        self.num_running_seqs -= len(request.live)
        self.num_kv_tokens -= request.num_kv_slots

    def end(self, request: Request, kind: EventKind, detail: str, now_ns: int) -> None:
        """A request that has left its queue gives its blocks back, and is no more."""
        self.kv.release(request, self.kv.host if request.status is Status.SWAPPED else self.kv.device)
        request.status = Status.ENDED
        del self.requests[request.id]
        self._ended.add(request.id)
        self._tell(request, kind, detail, now_ns)

    def _after_prefill(self, request: Request, samples: tuple[int, ...], now_ns: int) -> None:
        """The prompt may be complete now: its sequences part, and the first token is there."""
        if request.num_computed_tokens == request.num_prompt_tokens:
            if len(request.live) > 1:
                self.kv.fork(request)
            if samples:
                self._tell(request, EventKind.FIRST_TOKEN, "", now_ns)

    def _finish(self, finish: Finish, in_flight: list[Request], now_ns: int) -> None:
        """A sequence has ended; with its last sequence the request."""
        request = _who_ends(finish, in_flight)
        if request.status is not Status.RUNNING:
            return  # failed, or aborted while the step ran
        if len(request.live) == 1:
            self.leave_running(request)
            self.end(request, EventKind.FINISHED, finish.reason, now_ns)
            return
        num_kv_slots = request.num_kv_slots
        request.live = tuple(seq for seq in request.live if seq != finish.seq)
        self.last_decodes = ([], Batch.of(()))
        self.kv.release_sequence(request, finish.seq)
        self.num_running_seqs -= 1
        self.num_kv_tokens += request.num_kv_slots - num_kv_slots
        self._tell(request, EventKind.SEQUENCE_FINISHED, finish.reason, now_ns)

    def _fail(self, finish: Finish, in_flight: list[Request], now_ns: int) -> None:
        """The request ends with all its sequences: what one of them has computed is of no use."""
        request = _who_ends(finish, in_flight)
        if request.status is Status.RUNNING:
            self.leave_running(request)
            self.end(request, EventKind.FAILED, finish.reason, now_ns)

    def _turn_away(self, request: Request) -> str | None:
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
        if self.policies.admission.screens_arrivals:
            admission = self.policies.admission
            return answers.reason(admission, admission.never(request, self))
        return None

    def _note_moves(self, step: Step, now_ns: int) -> None:
        """Tell who entered, came back or was preempted."""
        for request in step.admitted:
            first = request.num_preemptions == 0
            kind = EventKind.SCHEDULED if first else EventKind.RESUMED
            self._tell(request, kind, "" if first else PreemptionKind.RECOMPUTE, now_ns)
        for request in step.resumed:
            self._tell(request, EventKind.RESUMED, PreemptionKind.SWAP, now_ns)
        for request, preemption in step.preempted:
            self._tell(request, EventKind.PREEMPTED, preemption.kind, now_ns)

    def _age(self, requests: Iterable[Request], now_ns: int) -> None:
        """Bring effective priorities up to date."""
        if self._ageing is not None:
            for request in requests:
                request.effective_priority = self._ageing.effective_priority(request, now_ns)

    def _tell(self, request: Request, kind: EventKind, detail: str, now_ns: int) -> None:
        self._events.append(Event(now_ns, request.id, kind, detail))

    def _advance(self, now_ns: int) -> None:
        """Law 7: time never goes back."""
        if now_ns < self._now_ns:
            raise ValueError(f"time goes back from {self._now_ns} to {now_ns} ns")
        self._now_ns = now_ns


def _who_ends(finish: Finish, in_flight: list[Request]) -> Request:
    """The request of a sequence that the backend ends."""
    for request in in_flight:
        if request.id == finish.request_id and finish.seq in request.live:
            return request
    raise ValueError(f"the backend ends sequence {finish.seq} of {finish.request_id!r}, which did not run")
