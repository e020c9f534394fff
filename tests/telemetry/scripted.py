"""A run written by hand: steps as a scheduler and a backend would report them, told to a recorder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy

import numpy as np
import pandas as pd

from engine.core.events import Event, EventKind
from engine.core.plan import (
    Batch,
    Chunk,
    Finish,
    FinishReason,
    PoolState,
    Preemption,
    PreemptionKind,
    Recomputed,
    Rejection,
    StepPlan,
    StepResult,
    TableUpdate,
    Transfer,
    TransferKind,
)
from engine.core.spec import Capacity, RequestSpec
from engine.telemetry.recorder import Recorder
from engine.telemetry.runlog import RunLog
from engine.telemetry.schema import World
from engine.telemetry.series import lengths_ns

MS = 1_000_000
CAPACITY = Capacity(num_blocks=8, num_host_blocks=4, block_size=4)
TAKEN = PoolState(1, 0, 0, 0, 4, 0)
"""All blocks are allocated, whatever for."""


class Script:
    """Tells a recorder of steps, one after the other."""

    def __init__(self, recorder: Recorder | None = None) -> None:
        self.recorder = recorder or Recorder()
        self.num_steps = 0

    def arrive(self, request_id: str, arrival_ms: int, num_prompt_tokens: int, n: int = 1) -> None:
        spec = RequestSpec(request_id, arrival_ms * MS, num_prompt_tokens, max_tokens=16, n=n)
        self.recorder.arrived(spec, arrival_ms * MS)

    def step(
        self,
        start_ms: int,
        end_ms: int,
        chunks: Sequence[Chunk],
        *,
        updates: Sequence[TableUpdate] = (),
        transfers: Sequence[Transfer] = (),
        preempted: Sequence[Preemption] = (),
        admitted: Sequence[str] = (),
        resumed: Sequence[str] = (),
        rejected: Sequence[Rejection] = (),
        recomputed: Sequence[Recomputed] = (),
        finished: Sequence[tuple[str, int]] = (),
        events: Sequence[Event] = (),
        after: PoolState = TAKEN,
        parts_ns: Mapping[str, float] | None = None,
        transfer_ms: int = 0,
        closed_ms: int | None = None,
    ) -> None:
        plan = StepPlan(
            self.num_steps,
            Batch.of(chunks),
            tuple(updates),
            tuple(transfers),
            tuple(preempted),
            tuple(admitted),
            tuple(resumed),
            tuple(rejected),
            sum(chunk.num_tokens * len(chunk.seqs) for chunk in chunks),
            after,
            tuple(recomputed),
        )
        ends = tuple(Finish(request_id, seq, FinishReason.LENGTH) for request_id, seq in finished)
        result = StepResult(
            (end_ms - start_ms) * MS, ends, parts_ns=parts_ns or {}, transfer_ns=transfer_ms * MS
        )
        if finished and not events:
            events = [ended(finished[0][0], EventKind.SEQUENCE_FINISHED, end_ms)]
        # What happens before a step is planned shows in its plan, what happens while it runs in the next one.
        told = [event._replace(step_id=self.num_steps + (event.time_ns > start_ms * MS)) for event in events]
        self.num_steps += 1
        self.recorder.stepped(plan, result, start_ms * MS, end_ms * MS, told)
        self.recorder.closed((end_ms if closed_ms is None else closed_ms) * MS)

    def log(self, world: World = World.SIMULATED) -> RunLog:
        return RunLog.of(deepcopy(self.recorder), world, CAPACITY)


def prefill(request_id: str, start: int, num_tokens: int, samples: Sequence[int] = (0,)) -> Chunk:
    return Chunk(request_id, start, num_tokens, (0,), tuple(samples))


def decode(request_id: str, start: int, seqs: Sequence[int] = (0,)) -> Chunk:
    return Chunk(request_id, start, 1, tuple(seqs), tuple(seqs))


def ended(request_id: str, kind: EventKind, time_ms: int, detail: str = "length") -> Event:
    return Event(time_ms * MS, request_id, kind, detail)


def two_requests() -> Script:
    """Two requests over 100 ms, worked out by hand in the tests.

    a: prompt 5, arrives at 0, tokens at 10, 20, 50 and 60 ms; swapped out at 20, in at 40; ends
    b: prompt 6, arrives at 5, tokens at 20, 30, 100 ms; preempted at 50, recomputed in two pieces; ends
    """
    script = Script()
    script.arrive("a", 0, 5)
    script.step(
        0,
        10,
        [prefill("a", 0, 5)],
        admitted=["a"],
        updates=[TableUpdate("a", 0, 0, (0, 1))],
        after=PoolState(1, 0, 0, 6, 4, 0),
    )
    script.arrive("b", 5, 6)
    script.step(
        10,
        20,
        [decode("a", 5), prefill("b", 0, 6)],
        admitted=["b"],
        updates=[TableUpdate("b", 0, 0, (2, 3))],
        after=PoolState(2, 0, 0, 4, 4, 5),
        parts_ns={"linear": 7e6, "attention": 3e6},
    )
    script.step(
        20,
        30,
        [decode("b", 6)],
        preempted=[Preemption("a", PreemptionKind.SWAP, 6, False)],
        transfers=[Transfer(TransferKind.SWAP_OUT, "a", (0, 1), (0, 1))],
        after=PoolState(1, 0, 1, 6, 2, 6),
        parts_ns={"linear": 7e6, "transfers": 3e6},
        transfer_ms=3,
    )
    # The prompt and one output token of b are computed now, its newest token is not.
    script.step(
        40,
        50,
        [decode("a", 6)],
        resumed=["a"],
        updates=[TableUpdate("a", 0, 0, (0, 1))],
        transfers=[Transfer(TransferKind.SWAP_IN, "a", (0, 1), (0, 1))],
        after=PoolState(2, 0, 0, 4, 4, 13),
    )
    script.step(
        50,
        60,
        [decode("a", 7)],
        preempted=[Preemption("b", PreemptionKind.RECOMPUTE, 7, True)],
        finished=[("a", 0)],
        events=[ended("a", EventKind.FINISHED, 60)],
        after=PoolState(1, 1, 0, 6, 4, 7),
    )
    script.step(
        60,
        80,
        [prefill("b", 0, 4, samples=())],
        admitted=["b"],
        recomputed=[Recomputed("b", 4)],
        updates=[TableUpdate("b", 0, 0, (0,))],
        after=PoolState(1, 0, 0, 7, 4, 0),
    )
    script.step(
        80,
        100,
        [prefill("b", 4, 4)],
        recomputed=[Recomputed("b", 3)],
        updates=[TableUpdate("b", 0, 1, (1,))],
        finished=[("b", 0)],
        events=[ended("b", EventKind.FINISHED, 100)],
        after=PoolState(1, 0, 0, 6, 4, 4),
    )
    return script


def time_mean(series: pd.DataFrame, values: pd.Series) -> float:
    """The integral of some values of a time series over its span, divided by the span; NaN without one."""
    weights = lengths_ns(series)
    return float((values.to_numpy() * weights).sum() / weights.sum()) if weights.sum() else np.nan
