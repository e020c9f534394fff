"""The recorder: an observer that logs every step and every token of a run while it runs.

It sits in the inner loop of the simulator, where a step costs some tens of microseconds, so it appends to
flat arrays and leaves everything else to `engine.telemetry.frames`. Standard library only.
"""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Callable, Sequence

from engine.core.events import ENDINGS, Event, EventKind
from engine.core.plan import Batch, Finish, PreemptionKind, StepPlan, StepResult
from engine.core.spec import RequestSpec
from engine.core.work import Work
from engine.telemetry.record import RequestRecord
from engine.telemetry.schema import PLANNED, Phase

CLOSED = PLANNED.index("closed_ns") - len(PLANNED)
"""Where the end of the last step's period is, counted from the end of `Recorder.steps`."""
DRAIN_STEPS = 16_384
"""Steps after which what is complete is handed over: row groups of about 2 MB."""
IN_FLIGHT_STEPS = 16
"""A request may still be named by so many steps after the one that told of its end."""
TokenOwner = str | tuple[str, int]
"""Who gains a token: a request, or (request, sequence) where it has several."""


class Recorder:
    """Implements `engine.core.serving.Observer`.

    Most steps decode one token for each of the same requests as the step before. So a request notes the steps
    from which and up to which it gains a token in each.

    With a `drain`, memory does not grow with the run: `drain` is called with the recorder every so many
    steps, takes the rows of requests that have ended and of steps of which no other request has to know any
    more (`engine.telemetry.frames`), and they are forgotten here.
    """

    def __init__(
        self, drain: Callable[[Recorder], None] | None = None, drain_steps: int = DRAIN_STEPS
    ) -> None:
        self._drain = drain
        self._drain_steps = drain_steps
        self._next_drain = drain_steps
        self.records: dict[str, RequestRecord] = {}
        """In order of arrival; those that have ended leave when their rows are taken."""
        self._refused: list[RequestRecord] = []
        """Requests that never entered; their ids may be those of others."""
        self._num_rows = 0
        self.num_steps = 0
        self.steps = array("q")
        """The columns PLANNED of each step, one step after the other, those that were taken left out."""
        self.moves = array("q")
        """Step number and the columns MOVED, for steps that preempt or reject, and some that move blocks."""
        self.parts_ns: defaultdict[tuple[str, ...], tuple[array[int], array[float]]] = defaultdict(
            lambda: (array("q"), array("d"))
        )
        """By the names of the parts: the steps that have them, and their values step after step."""
        self._since: dict[TokenOwner, int] = {}
        """From which step on somebody has gained a token in each."""
        self._owners: Sequence[TokenOwner] = ()
        """Who gained one in the last step."""
        self._special: set[str] = set()
        """Requests that have not caught up since they were admitted, and all with several sequences.

        Every other request computes one sequence, and lacks the KV of its newest token only: its next chunk
        is the decode of that token, whether it is swapped before or not.
        """

    def arrived(self, spec: RequestSpec, now_ns: int) -> None:
        """A request entered. Its latencies count from its scheduled arrival, not from `now_ns`."""
        if spec.request_id in self.records:
            raise ValueError(f"request {spec.request_id!r} arrives twice: ids must be unique in a run log")
        self.records[spec.request_id] = self._new_record(spec)

    def refused(self, spec: RequestSpec, reason: str, now_ns: int) -> None:
        """A request did not enter: to its sender it was rejected, as one that can never fit."""
        record = self._new_record(spec)
        record.end(EventKind.REJECTED, reason, now_ns, self.num_steps)
        self._refused.append(record)

    def stepped(
        self, plan: StepPlan, result: StepResult, start_ns: int, end_ns: int, events: Sequence[Event]
    ) -> None:
        """A step began at `start_ns` and was committed at `end_ns`."""
        if plan.transfers or plan.preemptions or plan.rejections:
            self._move(plan, start_ns)
        if plan.admitted or plan.resumed:
            self._enter(plan, start_ns)
        for request_id, num_tokens in plan.recomputed:
            self._record(request_id).num_recomputed_tokens += num_tokens
        for request_id, seq, first, block_ids in plan.updates:
            self._record(request_id).hold(self.num_steps, seq, first + len(block_ids))
        owners: Sequence[TokenOwner] = plan.chunks.request_ids
        if self._special and not self._special.isdisjoint(owners):
            owners = self._owners_in(plan.chunks)
        if owners is not self._owners and owners != self._owners:
            self._change_owners(owners)
        times_ns = start_ns, end_ns, end_ns, result.duration_ns, result.transfer_ns
        self.steps.extend((plan.step_id, *times_ns, *Work.of(plan), *plan.after))
        if result.parts_ns:
            steps, parts_ns = self.parts_ns[tuple(result.parts_ns)]
            steps.append(self.num_steps)
            parts_ns.extend(result.parts_ns.values())
        if events or result.finished:
            self._leave(events, result.finished)
        self.num_steps += 1
        if self._drain is not None and self.num_steps >= self._next_drain:
            self._drain(self)
            num_kept = len(self.steps) // len(PLANNED)
            self._next_drain = self.num_steps + max(self._drain_steps, num_kept)  # so that time stays linear

    def closed(self, now_ns: int) -> None:
        """The period of the last step is over."""
        self.steps[CLOSED] = now_ns

    # What is complete.

    def take_requests(self, *, is_over: bool) -> list[RequestRecord]:
        """Those that have ended, in order of arrival, and forget them; if the run is over, all."""
        if is_over:
            for owner in list(self._since):
                self._close(owner, self.num_steps)
            taken = list(self.records.values())
        else:
            last = self.num_steps - IN_FLIGHT_STEPS
            taken = [one for one in self.records.values() if one.end_step is not None and one.end_step < last]
        for record in taken:
            del self.records[record.spec.request_id]
        taken += self._refused
        self._refused = []
        return sorted(taken, key=lambda record: record.row)

    def num_complete_steps(self, *, is_over: bool) -> int:
        """Steps of which no request that was not taken knows; the last one's period is not over yet."""
        if is_over:
            return self.num_steps
        firsts = [record.first_step for record in self.records.values() if record.first_step is not None]
        return min([self.num_steps - 1, *firsts])

    # What happens in a step.

    def _change_owners(self, owners: Sequence[TokenOwner]) -> None:
        """Others gain a token in this step than in the one before."""
        step, since, members = self.num_steps, self._since, set(owners)
        for owner in [owner for owner in since if owner not in members]:
            self._close(owner, step)
        for owner in owners:
            if owner not in since:
                request_id, seq = (owner, 0) if isinstance(owner, str) else owner
                record = self._record(request_id)
                if record.ending is None and seq not in record.ended_seqs:
                    record.touch(step)
                    since[owner] = step
        self._owners = owners

    def _close(self, owner: TokenOwner, step: int, *, loses: bool = False) -> None:
        """Somebody gains no token from this step on, if it did before."""
        first = self._since.pop(owner, None)
        if first is not None:
            request_id, seq = (owner, 0) if isinstance(owner, str) else owner
            self._record(request_id).gain(seq, first, step, loses=loses)

    def _owners_in(self, batch: Batch) -> list[TokenOwner]:
        """Who gains a token in a step with special requests, each of which may gain none or several."""
        owners: list[TokenOwner] = list(batch.request_ids)
        special = self._special
        places = [place for place, request_id in enumerate(batch.request_ids) if request_id in special]
        for place in reversed(places):
            request_id, samples = batch.request_ids[place], batch.samples[place]
            record = self._record(request_id)
            num_computed = batch.starts[place] + batch.num_tokens[place]
            record.max_computed_tokens = max(record.max_computed_tokens, num_computed)
            if samples and record.spec.n == 1:
                special.remove(request_id)  # it has caught up
                continue
            del owners[place]
            owners += [(request_id, seq) for seq in samples]
        return owners

    def _move(self, plan: StepPlan, start_ns: int) -> None:
        """Log preemptions, transfers and rejections."""
        for transfer in plan.transfers:
            self._record(transfer.request_id).move(transfer)
        taken = dict.fromkeys(PreemptionKind, 0)
        num_fallbacks = num_lost_tokens = 0
        for preemption in plan.preemptions:
            record = self._record(preemption.request_id)
            record.preempt(preemption, start_ns)
            record.release(self.num_steps)
            taken[preemption.kind] += 1
            num_fallbacks += preemption.fell_back
            num_lost_tokens += preemption.num_tokens if preemption.kind is PreemptionKind.RECOMPUTE else 0
        moved = *taken.values(), num_fallbacks, num_lost_tokens, len(plan.rejections)
        self.moves.extend((self.num_steps, *moved))

    def _enter(self, plan: StepPlan, start_ns: int) -> None:
        """Log who runs from this step on; those admitted have catching up to do."""
        self._special.update(plan.admitted)
        for request_id in plan.admitted + plan.resumed:
            record = self._record(request_id)
            record.enter(Phase.RUNNING, start_ns)
            if record.first_scheduled_ns is None:
                record.first_scheduled_ns = start_ns

    def _leave(self, events: Sequence[Event], finished: Sequence[Finish]) -> None:
        """Log who ended: their blocks are free in the plan that is made next, or were so in this one."""
        step = self.num_steps
        self._owners = ()  # a step that was in flight may name who ended again: it is to be looked at
        for event in events:
            if event.kind not in ENDINGS:
                continue
            record = self._record(event.request_id)
            self._special.discard(event.request_id)
            is_finished = event.kind is EventKind.FINISHED
            if not is_finished:
                record.release(event.step_id)
            owners: list[TokenOwner] = [event.request_id]
            owners += [(event.request_id, seq) for seq in range(record.spec.n)]
            for owner in owners:
                self._close(owner, step + 1, loses=not is_finished)
            record.end(event.kind, event.detail, event.time_ns, step)
        next_plan = events[-1].step_id if events else step + 1
        for request_id, seq, _ in finished:
            record = self._record(request_id)
            if seq in record.ended_seqs:
                continue  # told again by a step that was in flight then
            record.hold(next_plan, seq, 0)
            record.ended_seqs += (seq,)
            self._close(request_id if record.spec.n == 1 else (request_id, seq), step + 1)

    def _new_record(self, spec: RequestSpec) -> RequestRecord:
        self._num_rows += 1
        return RequestRecord(spec, self._num_rows - 1)

    def _record(self, request_id: str) -> RequestRecord:
        record = self.records.get(request_id)
        if record is None:
            raise ValueError(
                f"a step names request {request_id!r}, of which the recorder was not told: call arrived first"
            )
        return record
