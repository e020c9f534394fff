"""Queues, requests, counters, and the only moves between them.

    waiting --admit--> running --swap out--> swapped
       ^                 |  ^                   |
       +----recompute----+  +------swap in------+

Who enters the batch, or is taken out of it, joins its queue only when the step is closed (`seat`): no verb of
a step sees the doings of another as its own input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from engine.core.blocks import BlockPool
from engine.core.kv_cache import KVCache
from engine.core.plan import Batch, Transfer
from engine.core.queues import Queue
from engine.core.request import Request, Status
from engine.core.spec import Capacity, Limits


class State:
    """What a scheduler has to remember of requests and blocks; the only writer of every counter in it."""

    def __init__(self, capacity: Capacity, limits: Limits, make_queue: Callable[[str, State], Queue]) -> None:
        self.kv = KVCache(capacity)
        self.limits = limits
        self.now_ns = 0
        self.requests: dict[str, Request] = {}
        """All that have not ended, by id, in order of arrival."""
        self.waiting = make_queue("waiting", self)
        self.running = make_queue("running", self)
        self.swapped = make_queue("swapped", self)
        self.entrants: list[Request] = []
        """Admitted or swapped in by the step that is being planned."""
        self.victims: list[Request] = []
        """Preempted by it, in the order in which they were taken."""
        self.num_running_seqs = 0
        """Sequences of all that run, entrants included."""
        self.num_kv_tokens = 0
        """Device slots that hold KV once the steps in flight are done; shared ones count once."""
        self.last_batch: tuple[list[Request], Batch] = ([], Batch.of(()))
        """The last batch of decodes and who was in it: most steps are like the one before."""

    @property
    def has_parallel(self) -> bool:
        """Some running request has several sequences."""
        return self.num_running_seqs > len(self.running) + len(self.entrants)

    def tick(self, now_ns: int) -> None:
        """Time goes on. ValueError if it goes back (law 7)."""
        if now_ns < self.now_ns:
            raise ValueError(f"time goes back from {self.now_ns} to {now_ns} ns")
        self.now_ns = now_ns

    def arrive(self, request: Request) -> None:
        """A request enters the waiting queue."""
        request.max_num_tokens = min(request.max_num_tokens, self.limits.max_model_len)
        self.requests[request.id] = request
        self.waiting.join(request)

    def admit(self, request: Request) -> None:
        """From the waiting queue into the batch, without blocks as yet."""
        self.waiting.remove(request)
        request.num_prefill_tokens = request.num_tokens
        self._enter(request)

    def swap_in(self, request: Request) -> Transfer:
        """From the swapped queue into the batch, with all its blocks."""
        self.swapped.remove(request)
        self._enter(request)
        self.num_kv_tokens += request.num_kv_slots
        return self.kv.swap_in(request)

    def swap_out(self, victim: Request) -> Transfer:
        """Out of the batch, its KV to the host pool."""
        self._leave(victim)
        victim.status = Status.SWAPPED
        return self.kv.swap_out(victim)

    def recompute(self, victim: Request) -> None:
        """Out of the batch; its KV is lost, and its tokens are to be computed again."""
        self._leave(victim)
        victim.status = Status.WAITING
        self.kv.release(victim, self.kv.device)
        victim.max_computed_tokens = max(victim.max_computed_tokens, victim.num_computed_tokens)
        victim.num_computed_tokens = 0

    def seat(self) -> None:
        """The step is closed: entrants join the running queue, victims the queue of their status."""
        for request in self.entrants:
            self.running.join(request)
        for request in self.victims:
            if request.status is Status.SWAPPED:
                self.swapped.join(request)
            else:
                self.waiting.rejoin(request)
        self.entrants.clear()
        self.victims.clear()

    def rearrange_running(self, place: Callable[[Request], int]) -> None:
        """The running queue and the entrants in the order of a key, until the queue is arranged."""
        if self.running.rearrange(sorted([*self.running, *self.entrants], key=place)):
            self.entrants.clear()

    def advance(self, request: Request, num_tokens: int, *, samples: bool) -> None:
        """A planned step computes the request's next tokens, and may bring its sequences one more each."""
        self.num_kv_tokens += num_tokens * len(request.seqs)
        request.num_computed_tokens += num_tokens
        request.num_tokens += samples
        if request.num_computed_tokens == request.num_prompt_tokens and len(request.live) > 1:
            self.kv.fork(request)
        if request.is_decoding:
            request.num_decode_slots = request.num_writable_slots

    def advance_decodes(self, decodes: Iterable[Request], num_tokens: int) -> None:
        """The same for all that compute their newest token and get one more, `num_tokens` in all."""
        for request in decodes:
            request.num_computed_tokens += 1
            request.num_tokens += 1
        self.num_kv_tokens += num_tokens

    def end(self, request: Request) -> None:
        """The request is no more, wherever it is, and gives its blocks back."""
        status = request.status
        if status is Status.RUNNING:
            self.running.remove(request)
            self._uncount(request)
        elif status is Status.WAITING:
            self.waiting.remove(request)
        else:
            self.swapped.remove(request)
        self.kv.release(request, self._pool(request))
        request.status = Status.ENDED
        del self.requests[request.id]

    def end_sequence(self, request: Request, seq: int) -> None:
        """One sequence of several is no more."""
        is_running = request.status is Status.RUNNING
        num_kv_slots = request.num_kv_slots
        request.live = tuple(one for one in request.live if one != seq)
        self.kv.release_sequence(request, seq, self._pool(request))
        self.last_batch = ([], Batch.of(()))  # it names the sequence
        if is_running:
            self.num_running_seqs -= 1
            self.num_kv_tokens += request.num_kv_slots - num_kv_slots

    def _enter(self, request: Request) -> None:
        request.status = Status.RUNNING
        self.entrants.append(request)
        self.num_running_seqs += len(request.live)

    def _leave(self, victim: Request) -> None:
        self.running.remove(victim)
        self.victims.append(victim)
        victim.num_preemptions += 1
        self._uncount(victim)

    def _uncount(self, request: Request) -> None:
        self.num_running_seqs -= len(request.live)
        self.num_kv_tokens -= request.num_kv_slots

    def _pool(self, request: Request) -> BlockPool:
        return self.kv.host if request.status is Status.SWAPPED else self.kv.device
