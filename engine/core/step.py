"""One step under construction: the three verbs of a batching program, and preemption."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from engine.core import answers
from engine.core.events import EventKind
from engine.core.plan import (
    Batch,
    Chunk,
    PoolState,
    Preemption,
    PreemptionKind,
    Recomputed,
    Rejection,
    StepPlan,
    TableUpdate,
    Transfer,
)
from engine.core.request import Request, Status

if TYPE_CHECKING:
    from engine.core.kv_cache import KVCache
    from engine.core.scheduler import Scheduler
    from engine.core.spec import Limits


class Step:
    """Collects the parts of a StepPlan while a batching program runs.

    Blocks move at once; progress does not: `num_computed_tokens` changes when the step is committed. Who
    enters, and who is preempted, joins another queue only when the plan is closed, so the verbs may be called
    in any order and no verb sees the doings of another as its own input.
    """

    __slots__ = (
        "_entrants",
        "_now_ns",
        "_policies",
        "_scheduler",
        "admitted",
        "budget",
        "chunks",
        "decodes",
        "kv",
        "limits",
        "preempted",
        "rejections",
        "resumed",
        "transfers",
        "updates",
    )

    def __init__(self, scheduler: Scheduler, now_ns: int) -> None:
        self._scheduler = scheduler
        self._policies = scheduler.policies
        self._now_ns = now_ns
        self.kv: KVCache = scheduler.kv
        self.limits: Limits = scheduler.limits
        self.budget = scheduler.limits.max_num_batched_tokens
        """Tokens that this step may still compute."""
        self.decodes: list[Request] = []
        """Get one token for each live sequence; ahead of `chunks` in the batch."""
        self.chunks: dict[Request, Chunk] = {}
        self.updates: dict[Request, list[TableUpdate]] = {}
        self.transfers: list[Transfer] = []
        self.preempted: list[tuple[Request, Preemption]] = []
        self.admitted: list[Request] = []
        self.resumed: list[Request] = []
        self.rejections: list[Rejection] = []
        self._entrants: list[Request] = []
        """Admitted or resumed, not yet in the running queue."""

    # What batching programs and other policies may ask.

    @property
    def running(self) -> Sequence[Request]:
        """The running queue; who enters in this step joins it at the end."""
        return self._scheduler.running

    @property
    def batch(self) -> Sequence[Request]:
        """All that run, those that entered in this step included."""
        return [*self._scheduler.running, *self._entrants]

    @property
    def is_busy(self) -> bool:
        """Some request runs, those that entered in this step included."""
        return bool(self._scheduler.running or self._entrants)

    @property
    def num_swapped(self) -> int:
        """Requests still swapped out, the victims of this step not counted."""
        return len(self._scheduler.swapped)

    @property
    def num_chunks(self) -> int:
        """Requests that compute something, so far."""
        return len(self.decodes) + len(self.chunks)

    @property
    def num_preemptions(self) -> int:
        """Victims so far."""
        return len(self.preempted)

    # The three verbs.

    def continue_running(self, *, until_self_preempted: bool = False) -> None:
        """Each running request gets what it is behind by, in queue order, while the token budget lasts.

        A request in need may itself be the victim. Those behind it go on, unless `until_self_preempted`.
        """
        running = self._scheduler.running
        running.arrange(self._now_ns)
        if not self.num_chunks and self._all_decode():
            return
        for request in running.copy():  # victims leave the queue on the way
            if request.status is not Status.RUNNING:
                continue
            num_tokens = self._clip(request)
            if num_tokens == 0:
                break
            if self._make_room(request, num_tokens):
                self._schedule(request, num_tokens)
            elif until_self_preempted:
                break

    def _all_decode(self) -> bool:
        """The common step in one sweep: each running sequence gets one token. False if another step is due.

        Each of N sequences takes at most one block. With N max(1, headroom) blocks free, those behind any of
        them still find as much for each, so that nobody has to ask for room, and this decides what the loop
        above would.
        """
        running, num_seqs = self._scheduler.running, self._scheduler.num_running_seqs
        num_wanted = num_seqs * max(1, self._policies.admission.headroom_per_seq)
        if num_wanted > self.kv.num_free or num_seqs > self.budget:
            return False
        outgrown = []
        for request in running:
            num_tokens = request.num_tokens
            if not request.num_computed_tokens + 1 == num_tokens > request.num_prefill_tokens:
                return False
            if num_tokens > request.num_writable_slots:
                outgrown.append(request)
        for request in outgrown:
            if self._held(request, 1) > request.num_tokens:
                return False  # a reservation may take more than a block for each sequence
            self._prepare(request, 1)
        self.decodes = running.copy()
        self.budget -= num_seqs
        return True

    def resume_swapped(self, *, whole: bool = False) -> None:
        """Swapped requests come back in queue order, each computing in this step, until one does not fit.

        A request that lacks more than the token budget of an empty step is clipped even if `whole` is asked
        for: it could never come back otherwise, and would block those behind it (as it does in vLLM 0.4.2).
        """
        swapped = self._scheduler.swapped
        if not swapped:
            return
        swapped.arrange(self._now_ns)
        admission = self._policies.admission
        while swapped:
            request = swapped[0]
            num_tokens = self._clip(request)
            behind = self._behind(request)
            if whole and behind * len(request.seqs) <= self.limits.max_num_batched_tokens:
                num_tokens = behind if num_tokens == behind else 0
            needed = self.kv.num_blocks_held(request) + self._blocks_needed(request, max(1, num_tokens))
            if needed > self.kv.num_blocks:
                self._reject(
                    swapped, f"it outgrew the pool: it needs {needed} blocks, there are {self.kv.num_blocks}"
                )
                continue
            if not answers.flag(admission, "resume", admission.resume(needed, self)):
                break
            if num_tokens == 0 or not self._has_seats(request):
                break
            swapped.pop(0)
            self.transfers.append(self.kv.swap_in(request))
            self.resumed.append(request)
            self._scheduler.num_kv_tokens += request.num_kv_slots
            self._enter(request, num_tokens)

    def admit_waiting(self) -> None:
        """Waiting requests enter in queue order until one does not fit; one that never can is rejected."""
        waiting = self._scheduler.waiting
        if not waiting:
            return
        waiting.arrange(self._now_ns)
        admission = self._policies.admission
        while waiting:
            request = waiting[0]
            num_tokens = behind = self._behind(request)
            if self._policies.batching.splits_prompts:
                num_tokens = min(behind, self.budget)
            reason = answers.reason(admission, admission.never(request, self))
            if reason is not None:
                self._reject(waiting, reason)
                continue
            if not answers.flag(admission, "enter", admission.enter(request, num_tokens, self)):
                break
            if self.kv.blocks_due(request, self._held(request, num_tokens)) > self.kv.num_free:
                break
            if num_tokens == 0 or num_tokens > self.budget or not self._has_seats(request):
                break
            waiting.pop(0)
            self.admitted.append(request)
            request.num_prefill_tokens = request.num_tokens
            self._enter(request, num_tokens)

    # How a request gets its tokens.

    def _behind(self, request: Request) -> int:
        """Tokens that each of its sequences lacks; up to the end of the prompt while they share that."""
        if len(request.live) > 1 and request.num_computed_tokens < request.num_prompt_tokens:
            return request.num_prompt_tokens - request.num_computed_tokens
        return request.num_tokens - request.num_computed_tokens

    def _clip(self, request: Request) -> int:
        """What the token budget allows of it."""
        return min(self._behind(request), self.budget // len(request.seqs))

    def _has_seats(self, request: Request) -> bool:
        """Its sequences fit under max_num_seqs."""
        return self._scheduler.num_running_seqs + len(request.live) <= self.limits.max_num_seqs

    def _enter(self, request: Request, num_tokens: int) -> None:
        """A request comes into the batch with its first chunk."""
        request.status = Status.RUNNING
        self._entrants.append(request)
        self._scheduler.num_running_seqs += len(request.live)
        self._prepare(request, num_tokens)
        self._schedule(request, num_tokens)

    def _schedule(self, request: Request, num_tokens: int) -> None:
        """Put a chunk into the plan."""
        seqs = request.seqs
        start = request.num_computed_tokens
        samples = request.live if start + num_tokens == request.num_tokens else ()
        self.chunks[request] = Chunk(request.id, start, num_tokens, seqs, samples)
        self.budget -= num_tokens * len(seqs)

    # Memory.

    def _held(self, request: Request, num_tokens: int) -> int:
        """Length to have blocks for when its next `num_tokens` are computed, reservations included."""
        reservation, needed = self._policies.reservation, request.num_computed_tokens + num_tokens
        return answers.num_tokens(reservation, reservation.num_tokens(request, needed, self), needed)

    def _headroom(self, request: Request) -> int:
        """Free blocks it must find, even if it needs fewer."""
        return self._policies.admission.headroom_per_seq * len(request.seqs)

    def _blocks_needed(self, request: Request, num_tokens: int) -> int:
        """Free blocks it must find to compute its next `num_tokens`."""
        due = self.kv.blocks_due(request, self._held(request, num_tokens))
        return max(due, self._headroom(request))

    def _prepare(self, request: Request, num_tokens: int) -> None:
        """Make its next positions writable, with what the reservation policy sets aside beyond them."""
        updates, copies = self.kv.prepare(request, self._held(request, num_tokens))
        self.updates.setdefault(request, []).extend(updates)
        self.transfers += copies

    def _make_room(self, request: Request, num_tokens: int) -> bool:
        """Preempt until a running request can compute `num_tokens`; False if it had to go itself."""
        is_writable = request.num_computed_tokens + num_tokens <= request.num_writable_slots
        needed = self._headroom(request) if is_writable else self._blocks_needed(request, num_tokens)
        while self.kv.num_free < needed:
            victim = self._victim()
            if victim is request and self._would_run_in_circles(request, num_tokens):
                break
            self._preempt(victim)
            if victim is request:
                return False
        if not is_writable:
            self._prepare(request, num_tokens)
        return True

    def _victim(self) -> Request:
        """Whom the policy wants to preempt."""
        policy, running = self._policies.victim, self._scheduler.running
        return answers.victim(policy, policy.choose(running), running)

    def _would_run_in_circles(self, request: Request, num_tokens: int) -> bool:
        """It is alone, due no block, and wants headroom in the middle of its prefill.

        Computed again from the start, it would come to this very point again (as it does in vLLM 0.4.2).
        """
        is_alone = len(self._scheduler.running) == 1 and not self._entrants
        in_prefill = request.num_computed_tokens < request.num_prefill_tokens
        due = self.kv.blocks_due(request, self._held(request, num_tokens))
        if not (is_alone and in_prefill and due <= self.kv.num_free):
            return False
        return not (self._has_host_room(request) and self._wants_swap(request))

    def _wants_swap(self, victim: Request) -> bool:
        """The restore policy wants to keep its KV."""
        restore = self._policies.restore
        return answers.flag(restore, "swaps", restore.swaps(victim, self))

    def _has_host_room(self, victim: Request) -> bool:
        """The host pool has room for it."""
        return self.kv.num_blocks_held(victim) <= self.kv.host.num_free

    def _preempt(self, victim: Request) -> None:
        """Take a running request out of the step and its blocks away, to the host pool or for good."""
        chunk = self.chunks.pop(victim, None)
        if chunk is not None:
            self.budget += chunk.num_tokens * len(chunk.seqs)
        self.updates.pop(victim, None)
        wanted = self._wants_swap(victim)
        swaps = wanted and self._has_host_room(victim)
        kind = PreemptionKind.SWAP if swaps else PreemptionKind.RECOMPUTE
        fell_back = wanted and not swaps
        self.preempted.append((victim, Preemption(victim.id, kind, victim.num_kv_slots, fell_back)))
        victim.num_preemptions += 1
        self._scheduler.leave_running(victim)
        if swaps:
            victim.status = Status.SWAPPED
            self.transfers.append(self.kv.swap_out(victim))
        else:
            victim.status = Status.WAITING
            self.kv.release(victim, self.kv.device)
            victim.max_computed_tokens = max(victim.max_computed_tokens, victim.num_computed_tokens)
            victim.num_computed_tokens = 0

    def _reject(self, queue: list[Request], reason: str) -> None:
        """The head of a queue can never go on: it ends here."""
        request = queue.pop(0)
        self.rejections.append(Rejection(request.id, reason))
        self._scheduler.end(request, EventKind.REJECTED, reason, self._now_ns)

    # The end of the step.

    def put_prefills_first(self) -> None:
        """Lay the batch out as admitted, prefills, decodes, as vLLM 0.4.2 does with chunked prefill.

        Its running queue then has those without a chunk, admitted, decodes, prefills. That decides nothing
        where `running` is sorted before the next use, as there; elsewhere the queue stays as it is.
        """
        if not self.chunks:
            return  # decodes only, which are in place
        self.chunks |= {
            request: Chunk(request.id, request.num_computed_tokens, 1, request.live, request.live)
            for request in self.decodes
        }
        self.decodes = []
        running = self._scheduler.running
        idle = [request for request in running if request not in self.chunks]
        continued = [request for request in running if request in self.chunks]
        batch, queue = list(self.admitted), [*idle, *self.admitted]
        prefills, decodes = _split(continued)
        returned_prefills, returned_decodes = _split(self.resumed)
        batch += prefills + returned_prefills + decodes + returned_decodes
        queue += decodes + prefills + returned_decodes + returned_prefills
        self.chunks = {request: self.chunks[request] for request in batch}
        if "running" in self._policies.order.sorts:
            running.rearrange(queue)
            self._entrants.clear()

    @property
    def requests(self) -> list[Request]:
        """Those that compute something, in batch order."""
        return [*self.decodes, *self.chunks] if self.chunks else self.decodes

    def _batch(self) -> Batch:
        """The chunks of the plan, decodes first."""
        if not self.decodes:
            return Batch.of(self.chunks.values())
        decodes = self._decode_batch()
        return decodes + Batch.of(self.chunks.values()) if self.chunks else decodes

    def _decode_batch(self) -> Batch:
        """One token for each of `decodes`. If they are those of the last step, only the positions are new."""
        starts = [request.num_computed_tokens for request in self.decodes]
        last_decodes, last = self._scheduler.last_decodes
        if last_decodes == self.decodes:
            self.decodes = last_decodes
            return Batch(last.request_ids, starts, last.num_tokens, last.seqs, last.samples)
        live = [request.live for request in self.decodes]
        batch = Batch([request.id for request in self.decodes], starts, [1] * len(live), live, live)
        self._scheduler.last_decodes = self.decodes, batch
        return batch

    def close(self, step_id: int, *, has_endings: bool) -> StepPlan | None:
        """Seat the entrants, queue the victims, and freeze the plan; None if there is nothing to do or to
        tell.
        """
        scheduler = self._scheduler
        for request in self._entrants:
            scheduler.running.join(request)
        for request, preemption in self.preempted:
            if preemption.kind is PreemptionKind.SWAP:
                scheduler.swapped.join(request)
            else:
                scheduler.waiting.rejoin(request)
        scheduler.waiting.arrange(self._now_ns)
        if not (self.num_chunks or self.preempted or self.rejections or self.transfers or has_endings):
            return None
        return StepPlan(
            step_id,
            self._batch(),
            tuple([update for updates in self.updates.values() for update in updates]),
            tuple(self.transfers),
            tuple([preemption for _, preemption in self.preempted]) if self.preempted else (),
            tuple([request.id for request in self.admitted]) if self.admitted else (),
            tuple([request.id for request in self.resumed]) if self.resumed else (),
            tuple(self.rejections),
            self.limits.max_num_batched_tokens - self.budget,
            PoolState(
                len(scheduler.running),
                len(scheduler.waiting),
                len(scheduler.swapped),
                len(self.kv.device.free),
                len(self.kv.host.free),
                scheduler.num_kv_tokens,
            ),
            tuple(_recomputed(self.chunks)) if self.chunks else (),
        )


def _recomputed(chunks: Mapping[Request, Chunk]) -> Iterator[Recomputed]:
    """What of some chunks had been computed before; decodes of up-to-date requests never had."""
    for request, chunk in chunks.items():
        num_tokens = min(request.max_computed_tokens, chunk.start + chunk.num_tokens) - chunk.start
        if num_tokens > 0:
            yield Recomputed(request.id, num_tokens * len(chunk.seqs))


def _split(requests: list[Request]) -> tuple[list[Request], list[Request]]:
    """Requests whose prefill is not complete, and the others."""
    prefills = [request for request in requests if request.num_computed_tokens < request.num_prefill_tokens]
    decodes = [request for request in requests if request.num_computed_tokens >= request.num_prefill_tokens]
    return prefills, decodes
