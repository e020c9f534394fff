"""One step under construction: verbs over single requests, from which batching programs are written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from engine.core import answers
from engine.core.draft import Draft
from engine.core.errors import UserError
from engine.core.plan import Preemption, PreemptionKind
from engine.core.policies.base import Policies
from engine.core.policies.victim import Need
from engine.core.queues import Queue
from engine.core.request import Request, Status
from engine.core.state import State
from engine.core.view import View

RUNNING = Status.RUNNING


class Step:
    """Puts the parts of a plan into a draft while a batching program runs.

    Blocks move at once; progress and queues do not: both follow when the plan is closed, so that the verbs
    may be called in any order.
    """

    __slots__ = ("_draft", "_policies", "_state", "budget", "view")

    def __init__(self, state: State, policies: Policies, view: View, draft: Draft) -> None:
        self._state = state
        self._policies = policies
        self._draft = draft
        self.view = view
        self.budget = state.limits.max_num_batched_tokens
        """Tokens that this step may still compute."""

    # What a program may ask.

    @property
    def batch(self) -> Sequence[Request]:
        """Those that compute something, in batch order."""
        return self._draft.batch

    @property
    def admitted(self) -> Sequence[Request]:
        """Those that have entered in this step."""
        return self._draft.admitted

    @property
    def resumed(self) -> Sequence[Request]:
        """Those that have come back from the host pool."""
        return self._draft.resumed

    @property
    def is_all_decode(self) -> bool:
        """Each of them computes its newest token and gets one more."""
        return not self._draft.chunks

    @property
    def num_preemptions(self) -> int:
        """Victims so far."""
        return len(self._draft.preempted)

    def clip(self, request: Request) -> int:
        """What the token budget allows of what a request is behind by."""
        return min(request.num_behind, self.budget // len(request.seqs))

    # Whom a program may go through.

    def running(self) -> Iterator[Request]:
        """The bulk verb: each running request that decodes and has its block gets its token; those that need
        a decision are yielded, in queue order, while the token budget lasts.

        It decides what `advance` would, for each in turn. A program that stops iterating leaves the others
        without tokens.
        """
        state, computing = self._state, self._draft.batch
        state.running.arrange()
        has_room, num_counted = self._has_room_for_decodes(), len(computing)
        for request in list(state.running):
            if request.num_tokens <= request.num_decode_slots and has_room:
                computing.append(request)
            elif request.status is RUNNING and request.num_tokens < request.max_num_tokens:
                if has_room and self._grow(request):
                    computing.append(request)
                    continue
                self._count(num_counted)
                if not self.clip(request):
                    return
                yield request
                has_room, num_counted = self._has_room_for_decodes(), len(computing)
        self._count(num_counted)

    def _has_room_for_decodes(self) -> bool:
        """The budget has a token for each running sequence, and the pool the blocks that it wants free."""
        num_seqs = self._state.num_running_seqs
        headroom = self._policies.admission.headroom_per_seq
        return num_seqs <= self.budget and headroom * num_seqs <= self.view.num_free_blocks

    def _grow(self, request: Request) -> bool:
        """A decode of a single sequence takes the blocks it is due; False if it is another, or they lack."""
        if request.n > 1 or not request.is_decoding:
            return False
        state = self._state
        num_tokens = self._reserved(request, 1)
        num_due = state.kv.blocks_due(request, num_tokens)
        headroom = self._policies.admission.headroom_per_seq
        if num_due + headroom * state.num_running_seqs > len(state.kv.device.free):
            return False
        self._draft.updates[request] = [state.kv.grow(request, num_tokens)]
        return True

    def _count(self, first: int) -> None:
        """Take the tokens of the decodes from this place in the batch on out of the budget."""
        decodes = self._draft.batch[first:]
        self.budget -= len(decodes)
        if self._state.has_parallel:
            self.budget -= sum(len(request.live) - 1 for request in decodes)

    def swapped(self) -> Iterator[Request]:
        """The swapped requests, in queue order; but for those whose last token is still being computed."""
        swapped = _from_head(self._state.swapped)
        return (request for request in swapped if request.num_tokens < request.max_num_tokens)

    def waiting(self) -> Iterator[Request]:
        """The waiting requests, in queue order; but for those whose last token is still being computed."""
        return (request for request in _from_head(self._state.waiting) if not request.num_awaited_tokens)

    # The verbs.

    def advance(self, request: Request, *, headroom_per_seq: int | None = None) -> bool:
        """A running request gets what it is behind by and the budget allows. Others are preempted for the
        blocks that are due, and until each of its sequences finds `headroom_per_seq` blocks free, due or not
        (None: as the admission policy says).

        False if the policy would preempt the request itself: it has got nothing.
        """
        if headroom_per_seq is None:
            headroom_per_seq = self._policies.admission.headroom_per_seq
        num_tokens = self.clip(request)
        is_writable = request.num_computed_tokens + num_tokens <= request.num_writable_slots
        num_slots = 0 if is_writable else self._reserved(request, num_tokens)
        num_due = 0 if is_writable else self._state.kv.blocks_due(request, num_slots)
        num_wanted = max(num_due, headroom_per_seq * len(request.seqs))
        while self.view.num_free_blocks < num_wanted:
            victim = self._victim(request, num_wanted)
            if victim is request:
                return False
            self.preempt(victim)
        if not is_writable:
            self._prepare(request, num_slots)
        self._compute(request, num_tokens)
        return True

    def resume(self, request: Request, num_tokens: int) -> bool:
        """A swapped request comes back and computes its next tokens; one that never can is rejected.

        False if it has to wait: for room, for a seat, or for tokens (`num_tokens` is 0).
        """
        state, admission = self._state, self._policies.admission
        num_due = self._blocks_due(request, max(1, num_tokens))
        num_blocks = self.view.blocks_held(request)
        num_blocks += max(num_due, admission.headroom_per_seq * len(request.seqs))
        if num_blocks > self.view.num_blocks:
            self._reject(
                request,
                f"it outgrew the pool: it needs {num_blocks} blocks, there are {self.view.num_blocks}",
            )
            return True
        if not answers.flag(admission, "resume", admission.resume(request, num_blocks, self.view)):
            return False
        if num_tokens == 0 or not self._has_seats(request):
            return False
        self._draft.transfers.append(state.swap_in(request))
        self._draft.resumed.append(request)
        self._enter(request, num_tokens)
        return True

    def admit(self, request: Request, num_tokens: int) -> bool:
        """A waiting request enters and computes its first tokens; one that never can is rejected.

        False if it has to wait: for room, for a seat, or for tokens (more than the budget has, or none).
        """
        state, admission = self._state, self._policies.admission
        reason = answers.reason(admission, admission.never(request, self.view))
        if reason is not None:
            self._reject(request, reason)
            return True
        if not answers.flag(admission, "enter", admission.enter(request, num_tokens, self.view)):
            return False
        if self._blocks_due(request, num_tokens) > self.view.num_free_blocks:
            return False
        if not 0 < num_tokens <= self.budget or not self._has_seats(request):
            return False
        state.admit(request)
        self._draft.admitted.append(request)
        self._enter(request, num_tokens)
        return True

    def preempt(self, victim: Request) -> None:
        """Take a running request out of the step and its blocks away, to the host pool or for good.

        Raises:
            UserError: it does not run, or entered in this very step.
        """
        state = self._state
        if victim.status is not RUNNING or victim in state.entrants:
            raise UserError(f"{victim} cannot be preempted: it does not run, or entered in this step")
        self.budget += self._draft.retract(victim)
        wanted = self._wants_swap(victim)
        swaps = wanted and self._has_host_room(victim)
        kind = PreemptionKind.SWAP if swaps else PreemptionKind.RECOMPUTE
        self._draft.preempted.append(
            (victim, Preemption(victim.id, kind, victim.num_kv_slots, wanted and not swaps))
        )
        if swaps:
            self._draft.transfers.append(state.swap_out(victim))
        else:
            state.recompute(victim)

    # How a request gets its tokens.

    def _has_seats(self, request: Request) -> bool:
        """Its sequences fit under max_num_seqs."""
        return self._state.num_running_seqs + len(request.live) <= self._state.limits.max_num_seqs

    def _enter(self, request: Request, num_tokens: int) -> None:
        """A request that came into the batch gets its blocks and its first chunk."""
        self._prepare(request, self._reserved(request, num_tokens))
        self._compute(request, num_tokens)

    def _compute(self, request: Request, num_tokens: int) -> None:
        """Put its next tokens into the plan."""
        self.budget -= num_tokens * len(request.seqs)
        self._draft.compute(request, num_tokens)

    # Memory.

    def _reserved(self, request: Request, num_tokens: int) -> int:
        """Length to have blocks for when its next `num_tokens` are computed, reservations included."""
        reservation, needed = self._policies.reservation, request.num_computed_tokens + num_tokens
        return answers.num_tokens(reservation, reservation.tokens(request, needed, self.view), needed)

    def _blocks_due(self, request: Request, num_tokens: int) -> int:
        """Blocks to take before its next `num_tokens` can be computed."""
        return self._state.kv.blocks_due(request, self._reserved(request, num_tokens))

    def _prepare(self, request: Request, num_slots: int) -> None:
        """Make the positions below `num_slots` writable."""
        updates, copies = self._state.kv.prepare(request, num_slots)
        self._draft.updates.setdefault(request, []).extend(updates)
        self._draft.transfers += copies

    def _victim(self, request: Request, num_blocks: int) -> Request:
        """Whom the policy wants to preempt so that a request finds its blocks."""
        policy = self._policies.victim
        return answers.victim(policy, policy.choose(self.view, Need(request, num_blocks)), self.view.running)

    def keeps(self, victim: Request) -> bool:
        """Its KV would be kept if it were preempted: the restore policy wants it, and the host pool has
        room.
        """
        return self._wants_swap(victim) and self._has_host_room(victim)

    def _wants_swap(self, victim: Request) -> bool:
        restore = self._policies.restore
        return answers.flag(restore, "swaps", restore.swaps(victim, self.view))

    def _has_host_room(self, victim: Request) -> bool:
        return self.view.blocks_held(victim) <= self.view.num_free_host_blocks

    def _reject(self, request: Request, reason: str) -> None:
        """It can never go on: it ends here."""
        self._draft.rejected.append((request, reason))
        self._state.end(request)

    # The end of the step.

    def lay_out(self, place: Callable[[Request], int], queue_place: Callable[[Request], int]) -> None:
        """Sort the batch by one key, and the running queue, entrants included, by another.

        Requests of equal place keep their order. The queue stays so until it is arranged; one that the order
        policy does not sort is left alone.
        """
        self._draft.sort(place)
        self._state.rearrange_running(queue_place)


def _from_head(queue: Queue) -> Iterator[Request]:
    """Each request of a queue in order, though those that were handed out may have left it."""
    queue.arrange()
    index = 0
    while index < len(queue):
        request = queue[index]
        yield request
        if index < len(queue) and queue[index] is request:
            index += 1
