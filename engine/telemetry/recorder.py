"""The recorder: an observer that logs every step and every token of a run while it runs.

It sits in the inner loop of the simulator, where a step costs some tens of microseconds, so it appends to
flat arrays and leaves everything else to `engine.telemetry.frames`. Standard library only.
"""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Sequence

from engine.core.events import ENDINGS, Event, EventKind
from engine.core.plan import Batch, Finish, PreemptionKind, StepPlan, StepResult
from engine.core.spec import RequestSpec
from engine.core.work import Work
from engine.telemetry.record import RequestRecord
from engine.telemetry.schema import PLANNED, Phase

CLOSED = PLANNED.index("closed_ns") - len(PLANNED)
"""Where the end of the last step's period is, counted from the end of `Recorder.steps`."""
TokenOwner = str | tuple[str, int]
"""Who gains a token: a request, or (request, sequence) where it has several."""


class Recorder:
    """Implements `engine.core.serving.Observer`.

    Most steps decode one token for each of the same requests as the step before. The token log keeps such a
    run of steps once: its first step and the owners of its tokens, each of whom gains one token in every
    step up to the first step of the next run.
    """

    def __init__(self) -> None:
        self.records: dict[str, RequestRecord] = {}
        """In order of arrival."""
        self.refused_records: list[RequestRecord] = []
        """Of requests that never entered; their ids may be those of others."""
        self.num_steps = 0
        self.steps = array("q")
        """The columns PLANNED of each step, one step after the other."""
        self.moves = array("q")
        """Step number and the columns MOVED, for steps that preempt or reject, and some that move blocks."""
        self.tables = array("q")
        """Changes of device block tables: step, record, sequence, length of its table from then on."""
        self.parts_ns: defaultdict[tuple[str, ...], tuple[array[int], array[float]]] = defaultdict(
            lambda: (array("q"), array("d"))
        )
        """By the names of the parts: the steps that have them, and their values step after step."""
        self.token_runs = array("q")
        """The token log: first step of each run, and where its owners begin in `token_owners`."""
        self.token_owners: list[TokenOwner] = []
        self._owners: Sequence[TokenOwner] = ()
        """Of the run that goes on."""
        self._special: set[str] = set()
        """Requests that have not caught up since they were admitted, and all with several sequences.

        Every other request computes one sequence, and lacks the KV of its newest token only: its next chunk
        is the decode of that token, whether it is swapped before or not.
        """

    def arrived(self, spec: RequestSpec, now_ns: int) -> None:
        """A request entered. Its latencies count from its scheduled arrival, not from `now_ns`."""
        if spec.request_id in self.records:
            raise ValueError(f"request {spec.request_id!r} arrives twice: ids must be unique in a run log")
        self.records[spec.request_id] = RequestRecord(spec, len(self.records))

    def refused(self, spec: RequestSpec, reason: str, now_ns: int) -> None:
        """A request did not enter: to its sender it was rejected, as one that can never fit."""
        record = RequestRecord(spec, len(self.refused_records))
        record.end(EventKind.REJECTED, reason, now_ns, self.num_steps)
        self.refused_records.append(record)

    def stepped(
        self, plan: StepPlan, result: StepResult, start_ns: int, end_ns: int, events: Sequence[Event]
    ) -> None:
        """A step was planned at `start_ns` and committed at `end_ns`."""
        if plan.transfers or plan.preemptions or plan.rejections:
            self._move(plan, start_ns)
        if plan.admitted or plan.resumed:
            self._enter(plan, start_ns)
        for request_id, num_tokens in plan.recomputed:
            self._record(request_id).num_recomputed_tokens += num_tokens
        for request_id, seq, first, block_ids in plan.updates:
            self.tables.extend((self.num_steps, self._record(request_id).row, seq, first + len(block_ids)))
        owners: Sequence[TokenOwner] = plan.chunks.request_ids
        if self._special and not self._special.isdisjoint(owners):
            owners = self._owners_in(plan.chunks)
        if owners is not self._owners and owners != self._owners:
            self._owners = owners
            self.token_runs.extend((self.num_steps, len(self.token_owners)))
            self.token_owners += owners
        times_ns = start_ns, end_ns, end_ns, result.duration_ns, result.transfer_ns
        self.steps.extend((plan.step_id, *times_ns, *Work.of(plan), *plan.after))
        if result.parts_ns:
            steps, parts_ns = self.parts_ns[tuple(result.parts_ns)]
            steps.append(self.num_steps)
            parts_ns.extend(result.parts_ns.values())
        if events or result.finished:
            self._leave(events, result.finished, start_ns)
        self.num_steps += 1

    def closed(self, now_ns: int) -> None:
        """The period of the last step is over."""
        self.steps[CLOSED] = now_ns

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
            self._release(record, self.num_steps)
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

    def _leave(self, events: Sequence[Event], finished: Sequence[Finish], start_ns: int) -> None:
        """Log who ended: their blocks are free from the next step on, or were so when this was planned."""
        for finish in finished:
            self.tables.extend((self.num_steps + 1, self._record(finish.request_id).row, finish.seq, 0))
        for event in events:
            if event.kind not in ENDINGS:
                continue
            record = self._record(event.request_id)
            self._special.discard(event.request_id)
            if event.kind is not EventKind.FINISHED:
                self._release(record, self.num_steps + (event.time_ns > start_ns))
            record.end(event.kind, event.detail, event.time_ns, self.num_steps)

    def _release(self, record: RequestRecord, step: int) -> None:
        for seq in range(record.spec.n):
            self.tables.extend((step, record.row, seq, 0))

    def _record(self, request_id: str) -> RequestRecord:
        record = self.records.get(request_id)
        if record is None:
            raise ValueError(
                f"a step names request {request_id!r}, of which the recorder was not told: call arrived first"
            )
        return record
