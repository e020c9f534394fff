"""The clocks of the engine, and the driver on them."""

import io
import time
from dataclasses import replace

import pytest

from engine.core.drive import drive
from engine.core.events import EventKind
from engine.core.journal import JournaledScheduler, replay
from engine.core.laws import LawBroken
from engine.core.plan import Finish, FinishReason, StepResult
from engine.core.policies.restore import Recompute
from engine.core.scheduler import Scheduler
from engine.core.serving import Serving
from engine.core.sources import Listed
from engine.core.spec import Capacity, Sampling
from engine.runtime.backend import TorchBackend
from engine.runtime.clock import VirtualClock, WallClock
from engine.telemetry.metrics import summarize
from engine.telemetry.recorder import Recorder as RunRecorder
from engine.telemetry.runlog import RunLog
from engine.telemetry.schema import World
from tests.runtime.support import LIMITS, VOCAB_SIZE, Recorder, load, policies, prompts, request, run

HOUR_NS = 3_600_000_000_000


class Instant:
    """A backend that ends every sequence with its first token."""

    capacity = Capacity(num_blocks=50, num_host_blocks=0, block_size=4)

    def add(self, spec):
        pass

    def drop(self, request_id):
        pass

    def submit(self, plan):
        return plan

    def collect(self, ticket):
        keys = [(chunk.request_id, seq) for chunk in ticket.chunks for seq in chunk.samples]
        finished = tuple(Finish(*key, FinishReason.LENGTH) for key in keys)
        return StepResult(1, finished, dict.fromkeys(keys, 0))


def serving(recorder, **changes):
    limits = replace(LIMITS, **changes)
    scheduler = Scheduler(Instant.capacity, limits, policies(Recompute(), chunked=False))
    return Serving(scheduler, Instant(), [recorder])


def test_an_hour_of_idling_takes_no_time_on_the_virtual_clock():
    specs = [replace(request(f"r{i}", (1, 2), 1), arrival_ns=i * HOUR_NS) for i in range(3)]
    recorder, clock = Recorder(), VirtualClock()
    before = time.perf_counter()
    end_ns = drive(serving(recorder), Listed(specs), clock)
    assert time.perf_counter() - before < 5
    assert 2 * HOUR_NS <= end_ns <= recorder.closed_ns[-1] < 2 * HOUR_NS + 10**10
    assert clock.skipped_ns > 2 * HOUR_NS - 10**10
    assert [start // HOUR_NS for start in recorder.starts_ns] == [0, 1, 2]


def test_a_wait_takes_the_virtual_clock_to_its_end_and_no_further(monkeypatch):
    work_ns = [0]
    monkeypatch.setattr(time, "perf_counter_ns", lambda: work_ns[0])
    clock = VirtualClock(0)
    for wait in range(1, 6):
        work_ns[0] += 300
        clock.wait_until(1000 * wait)
        assert clock.now_ns() == 1000 * wait
    clock.wait_until(7)
    assert clock.now_ns() == 5000 and clock.skipped_ns == 5000 - 5 * 300


def test_the_wall_clock_waits():
    specs = [replace(request(f"r{i}", (1, 2), 1), arrival_ns=i * 30_000_000) for i in range(3)]
    recorder = Recorder()
    before = time.perf_counter_ns()
    drive(serving(recorder), Listed(specs), WallClock())
    assert time.perf_counter_ns() - before >= 60_000_000
    assert all(start >= i * 30_000_000 for i, start in enumerate(recorder.starts_ns))


def test_busy_steps_follow_one_another_without_a_gap():
    specs = [request(f"r{i}", prompt, 5) for i, prompt in enumerate(prompts((5, 17, 30)))]
    recorder = run(load("llama"), specs)
    assert len(recorder.starts_ns) >= 5
    assert recorder.starts_ns[1:] == recorder.closed_ns[:-1]


def test_a_request_that_can_never_fit_is_rejected_and_the_others_run_on():
    specs = [request("long", prompts((120,))[0], 20), *(request(f"r{i}", (1, 2, 3), 4) for i in range(2))]
    recorder = run(load("llama"), specs, num_blocks=10)
    assert recorder.endings["long"].kind is EventKind.REJECTED
    assert recorder.endings["long"].detail
    assert [len(recorder.tokens[f"r{i}", 0]) for i in range(2)] == [4, 4]


def test_requests_that_cannot_be_served_are_refused_and_the_others_run_on():
    good = [request(f"r{i}", prompt, 4) for i, prompt in enumerate(prompts((5, 17)))]
    bad = [
        request("beyond", (3, VOCAB_SIZE), 2),
        request("text", (3, "four"), 2),
        replace(request("r1", (1, 2), 2), arrival_ns=1),
        request("stop", (3, 4), 2, sampling=Sampling(stop_token_ids=(VOCAB_SIZE,))),
    ]
    recorder, log = Recorder(), RunRecorder()
    model = load("llama")
    alone = run(model, good)
    backend = TorchBackend(model, LIMITS, num_blocks=200, block_size=4)
    sink = io.StringIO()
    chosen = policies(Recompute(), chunked=False)
    core = JournaledScheduler(backend.capacity, LIMITS, chosen, sink)
    drive(Serving(core, backend, [recorder, log]), Listed([*good, *bad]), VirtualClock())
    assert recorder.tokens == alone.tokens
    assert recorder.refusals == {
        "beyond": "request beyond: prompt token ids must be whole numbers from 0 to 100",
        "text": "request text: prompt token ids must be whole numbers from 0 to 100",
        "r1": "request r1: a request with this id came before it",
        "stop": "request stop: stop token ids must be whole numbers from 0 to 100",
    }
    assert not backend.sequences.specs
    assert replay(sink.getvalue().splitlines(), chosen) is None

    run_log = RunLog.of(log, World.MEASURED, backend.capacity)
    rows = run_log.requests[["request_id", "status", "reason"]].values.tolist()
    finished = [[f"r{i}", "finished", "length"] for i in range(2)]
    rejected = [[name, "rejected", why] for name, why in recorder.refusals.items()]
    assert sorted(rows) == sorted(finished + rejected)
    assert [summarize(run_log)[name] for name in ("completed", "num_rejected")] == [2, 4]


def test_outstanding_requests_that_nothing_can_move_are_an_error():
    class Stuck(Scheduler):
        def schedule(self, now_ns):
            return None

    recorder = Recorder()
    stuck = Serving(
        Stuck(Instant.capacity, LIMITS, policies(Recompute(), chunked=False)), Instant(), [recorder]
    )
    with pytest.raises(
        LawBroken, match=r"law 6: requests are outstanding at .* and the scheduler plans nothing"
    ):
        drive(stuck, Listed([request("a", (1, 2), 1)]), VirtualClock())
