"""What the run log says of the memory of the real engine."""

import random

import pytest

from engine.core.drive import drive
from engine.core.policies.restore import Recompute
from engine.core.scheduler import Scheduler
from engine.core.serving import Serving
from engine.core.sources import Listed
from engine.runtime.backend import TorchBackend
from engine.runtime.clock import VirtualClock
from engine.telemetry.memory import memory_states
from engine.telemetry.recorder import Recorder
from engine.telemetry.runlog import RunLog
from engine.telemetry.schema import World
from tests.runtime.support import LIMITS, load, policies, prompts, request


def test_tail_waste_is_half_a_block_a_sequence_on_the_engine_too():
    rng = random.Random("tail waste")
    lengths = [rng.randint(1, 60) for _ in range(60)]
    specs = [
        request(f"r{i:02}", prompt, rng.randint(1, 60)) for i, prompt in enumerate(prompts(tuple(lengths)))
    ]
    backend = TorchBackend(load("llama"), LIMITS, block_size=8, num_blocks=200)
    recorder = Recorder()
    scheduler = Scheduler(backend.capacity, LIMITS, policies(Recompute(), chunked=False))
    drive(Serving(scheduler, backend, [recorder]), Listed(specs), VirtualClock())
    states = memory_states(RunLog.of(recorder, World.MEASURED, backend.capacity))
    # By step, not by time: how long the steps took must not decide.
    waste_tokens = states["W"].sum() * 200 * 8 / states["num_running"].sum()
    assert waste_tokens == pytest.approx((8 - 1) / 2, rel=0.05)
