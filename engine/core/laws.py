"""The laws that every run obeys, as functions; `LawfulScheduler` checks them while a run goes on.

Laws 1 and 3 to 7 are checked here, on the scheduler itself. Law 2 (no lost request) needs the whole run:
`Ledger`. Law 8 (preemption is invisible) and law 9 (determinism) compare runs: `check_same_tokens`,
`check_same_plans`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from engine.core.blocks import BlockPool
from engine.core.errors import UserError
from engine.core.events import ENDINGS, Event
from engine.core.plan import StepPlan, StepResult
from engine.core.policies.base import Policies
from engine.core.request import Request, Status
from engine.core.scheduler import Scheduler
from engine.core.spec import Capacity, Limits

MAX_STEPS_WITHOUT_TOKEN = 3
"""Law 6: a step may go to a preemption, the next to a rejection, but not more of them in a row. A step in
flight that brings tokens ends the row. The longest of a soak is 2, with several plans in flight 1.
"""


class LawBroken(AssertionError):
    """A law does not hold; the message says which, and for whom."""

    def __init__(self, number: int, text: str) -> None:
        super().__init__(f"law {number}: {text}")
        self.number = number


def check_conservation(scheduler: Scheduler) -> None:
    """Law 1: every block is free or referenced, never both; counts equal the number of tables that hold the
    block. Counters equal what they count.
    """
    requests = scheduler.state.requests.values()
    device = [request for request in requests if request.status is Status.RUNNING]
    host = [request for request in requests if request.status is Status.SWAPPED]
    _check_pool("device", scheduler.state.kv.device, device)
    _check_pool("host", scheduler.state.kv.host, host)
    for request in requests:
        if request.status is Status.WAITING and request.tables:
            raise LawBroken(1, f"{request} waits, and holds blocks")
    counted = {
        "slots hold KV": (sum(request.num_kv_slots for request in device), scheduler.state.num_kv_tokens),
        "sequences run": (sum(len(request.live) for request in device), scheduler.state.num_running_seqs),
    }
    for what, (number, counter) in counted.items():
        if number != counter:
            raise LawBroken(1, f"{number} {what}, the scheduler counts {counter}")


def _check_pool(name: str, pool: BlockPool, owners: Sequence[Request]) -> None:
    held = Counter(block_id for request in owners for table in request.tables.values() for block_id in table)
    for block_id, count in enumerate(pool.num_holders):
        if count != held[block_id]:
            raise LawBroken(
                1, f"{name} block {block_id} has count {count}, and {held[block_id]} tables hold it"
            )
    if sorted(pool.free) != [block_id for block_id, count in enumerate(pool.num_holders) if count == 0]:
        raise LawBroken(1, f"the free list of the {name} pool is not the list of blocks with count 0")


def check_nothing_left(scheduler: Scheduler) -> None:
    """Law 3: when all requests have ended, every block is free."""
    for name, pool in (("device", scheduler.state.kv.device), ("host", scheduler.state.kv.host)):
        if not scheduler.state.requests and pool.num_free != pool.num_blocks:
            raise LawBroken(3, f"{pool.num_blocks - pool.num_free} {name} blocks outlive their last owner")


def check_exclusive_writes(scheduler: Scheduler, plan: StepPlan) -> None:
    """Law 4: each position that a step writes lies in a block of the sequence's table that nobody else
    holds; a prompt is written by one of the sequences that share it.
    """
    block_size = scheduler.state.kv.block_size
    for chunk in plan.chunks:
        request = scheduler.state.requests[chunk.request_id]
        first, last = chunk.start // block_size, (chunk.start + chunk.num_tokens - 1) // block_size
        for seq in chunk.seqs:
            written = request.tables[seq][first : last + 1]
            if len(written) != last + 1 - first:
                raise LawBroken(4, f"{chunk} writes beyond the block table of sequence {seq}")
            # The sequences that share a prompt have tables of their own from the plan on that completes it.
            tables = [seq, *request.live] if chunk.start < request.num_prompt_tokens else [seq]
            own = Counter(block_id for one in {*tables} for block_id in request.tables.get(one, ()))
            for block_id in written:
                if scheduler.state.kv.device.num_holders[block_id] != own[block_id]:
                    raise LawBroken(4, f"{chunk} writes to block {block_id}, which has more than one owner")


def check_budget(plan: StepPlan, limits: Limits, num_blocks: int) -> None:
    """Law 5: a plan stays within the limits on tokens, sequences and blocks, and counts its tokens truly."""
    num_tokens = sum(chunk.num_tokens * len(chunk.seqs) for chunk in plan.chunks)
    num_seqs = sum(len(chunk.samples or chunk.seqs) for chunk in plan.chunks)
    if plan.num_tokens != num_tokens or num_tokens > limits.max_num_batched_tokens:
        raise LawBroken(
            5, f"step {plan.step_id}: {num_tokens} tokens, {plan.num_tokens} in the plan, {limits}"
        )
    if num_seqs > limits.max_num_seqs:
        raise LawBroken(5, f"step {plan.step_id}: {num_seqs} sequences, {limits}")
    if any(block_id >= num_blocks for update in plan.updates for block_id in update.block_ids):
        raise LawBroken(5, f"step {plan.step_id} names a block beyond the pool of {num_blocks}")
    if any(chunk.num_tokens < 1 for chunk in plan.chunks):
        raise LawBroken(5, f"step {plan.step_id} has a chunk without tokens")
    if len(set(plan.chunks.request_ids)) < len(plan.chunks.request_ids):
        raise LawBroken(5, f"step {plan.step_id} has two chunks of one request: {plan.chunks.request_ids}")


def check_lengths(scheduler: Scheduler, plan: StepPlan) -> None:
    """Law 5: nobody computes the last token that its limits allow, whatever steps in flight bring it."""
    for chunk in plan.chunks:
        request = scheduler.state.requests[chunk.request_id]
        limit = min(request.num_prompt_tokens + request.max_tokens, scheduler.limits.max_model_len)
        if chunk.start + chunk.num_tokens >= limit:
            raise LawBroken(5, f"step {plan.step_id}: {chunk} goes to the limit of {limit} tokens")


def check_ids_are_taken(scheduler: Scheduler, plans: Iterable[StepPlan]) -> None:
    """Law 2: an id that a plan in flight names belongs to who had it when it was planned, or to nobody."""
    for plan in plans:
        for request_id in plan.chunks.request_ids:
            try:
                scheduler.check_is_new(request_id)
            except UserError:
                continue
            raise LawBroken(2, f"{request_id} is free again, and step {plan.step_id} in flight names it")


def check_same_tokens(wanted: Mapping[str, Sequence[int]], got: Mapping[str, Sequence[int]]) -> None:
    """Law 8: two runs of the same requests yield the same tokens, whatever was preempted, swapped or
    chunked.
    """
    for request_id in sorted(wanted.keys() | got.keys()):
        if wanted.get(request_id) != got.get(request_id):
            raise LawBroken(8, f"{request_id}: tokens {wanted.get(request_id)} became {got.get(request_id)}")


def check_same_plans(wanted: Sequence[StepPlan | None], got: Sequence[StepPlan | None]) -> None:
    """Law 9: the same inputs give the same plans."""
    for index in range(max(len(wanted), len(got))):
        pair = [plans[index] if index < len(plans) else "no plan" for plans in (wanted, got)]
        if pair[0] != pair[1]:
            raise LawBroken(9, f"plan {index}: {pair[0]} became {pair[1]}")


class Ledger:
    """Law 2: each request that was added ends exactly once."""

    def __init__(self) -> None:
        self.open: dict[str, int] = {}
        """Outstanding requests and when they arrived."""
        self.num_ended = 0

    def opened(self, request_id: str, now_ns: int) -> None:
        """A request was added."""
        self.open[request_id] = now_ns

    def noted(self, events: Sequence[Event]) -> None:
        """Events of a commit, in order."""
        for event in events:
            if event.kind in ENDINGS:
                if event.request_id not in self.open:
                    raise LawBroken(2, f"{event.request_id} ends, but is not outstanding: {event}")
                del self.open[event.request_id]
                self.num_ended += 1

    def check_matches(self, scheduler: Scheduler) -> None:
        """Outstanding here and there are the same; asked between steps."""
        if self.open.keys() != scheduler.state.requests.keys():
            lost = sorted(self.open.keys() ^ scheduler.state.requests.keys())
            raise LawBroken(2, f"requests {lost} are lost, or ended without an event")


class LawfulScheduler(Scheduler):
    """A scheduler that checks every law after every verb. Costs time in proportion to the pool; decides the
    same.
    """

    def __init__(self, capacity: Capacity, limits: Limits, policies: Policies) -> None:
        super().__init__(capacity, limits, policies)
        self._ledger = Ledger()
        self._steps_without_token = 0

    def add(self, request: Request, now_ns: int) -> None:
        """Add a request."""
        super().add(request, now_ns)
        self._ledger.opened(request.id, now_ns)

    def abort(self, request_id: str, now_ns: int) -> bool:
        """Abort a request."""
        ended = super().abort(request_id, now_ns)
        check_conservation(self)
        return ended

    def schedule(self, now_ns: int) -> StepPlan | None:
        """Plan a step."""
        plan = super().schedule(now_ns)
        check_conservation(self)
        if plan is None:
            if self.state.requests and not self.num_in_flight:
                raise LawBroken(
                    6, f"nothing to do, with requests outstanding: {list(self.state.requests.values())}"
                )
            return None
        check_budget(plan, self.limits, self.state.kv.device.num_blocks)
        check_lengths(self, plan)
        check_exclusive_writes(self, plan)
        brings_tokens = any(flight.plan.num_tokens for flight in self._in_flight)
        stands_still = bool(self.state.requests) and not brings_tokens
        self._steps_without_token = self._steps_without_token + 1 if stands_still else 0
        if self._steps_without_token > MAX_STEPS_WITHOUT_TOKEN:
            raise LawBroken(
                6, f"no token in {self._steps_without_token} steps: {list(self.state.requests.values())}"
            )
        return plan

    def commit(self, plan: StepPlan, result: StepResult, now_ns: int) -> list[Event]:
        """Commit a step."""
        events = super().commit(plan, result, now_ns)
        self._ledger.noted(events)
        self._ledger.check_matches(self)
        check_ids_are_taken(self, (flight.plan for flight in self._in_flight))
        check_conservation(self)
        check_nothing_left(self)
        return events
