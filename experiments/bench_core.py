"""CPU time of the core alone: schedule and commit, with nobody executing anything.

`python -m experiments.bench_core` prints the median over blocks of steps in which every running request
decodes. For comparison, vLLM V1's scheduler (schedule + update_from_output) took 25, 143, 488 and 1,910 us a
step with 1, 16, 64 and 256 running requests, measured on another machine.
"""

from __future__ import annotations

import argparse
import statistics
import time

from rich.console import Console
from rich.table import Table

from engine.core.backend import Capacity, RequestSpec
from engine.core.plan import StepResult
from engine.core.policies.admission import FullPrompt
from engine.core.policies.base import Limits, Policies
from engine.core.policies.batching import DecodeFirst
from engine.core.policies.order import Fcfs
from engine.core.policies.reservation import OnDemand
from engine.core.policies.restore import Recompute
from engine.core.policies.victim import LastAdmitted
from engine.core.request import Request
from engine.core.scheduler import Scheduler

BLOCK_SIZE = 16
VLLM_V1_US = {1: 25, 16: 143, 64: 488, 256: 1910}
RESULT = StepResult(duration_ns=0)


def decoding(num_requests: int, num_steps: int) -> Scheduler:
    """A scheduler whose requests have all had their prompts computed; lengths are spread over a block."""
    max_model_len = 128 + num_steps
    num_blocks = num_requests * (max_model_len // BLOCK_SIZE + 1)
    policies = Policies(Fcfs(), FullPrompt(), DecodeFirst(), LastAdmitted(), Recompute(), OnDemand())
    scheduler = Scheduler(
        Capacity(num_blocks, 0, BLOCK_SIZE), Limits(num_requests, 8192, max_model_len), policies
    )
    for index in range(num_requests):
        scheduler.add(Request(RequestSpec(f"r{index:04d}", 0, 64 + index % BLOCK_SIZE, max_model_len)), 0)
    while any(request.num_tokens <= request.num_prompt_tokens for request in scheduler.requests.values()):
        step(scheduler)
    return scheduler


def step(scheduler: Scheduler) -> None:
    """One step that takes no time."""
    plan = scheduler.schedule(0)
    if plan is None:
        raise RuntimeError("nothing to do: the benchmark's requests ended early")
    scheduler.commit(plan, RESULT, 0)


def measure(num_requests: int, num_steps: int, num_repeats: int) -> list[float]:
    """CPU microseconds a step, one figure for each block of `num_steps`."""
    scheduler = decoding(num_requests, num_steps * num_repeats)
    times_us = []
    for _ in range(num_repeats):
        begin_ns = time.process_time_ns()
        for _ in range(num_steps):
            step(scheduler)
        times_us.append((time.process_time_ns() - begin_ns) / 1e3 / num_steps)
    return times_us


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=400, help="steps in a block")
    parser.add_argument("--repeats", type=int, default=9, help="blocks")
    args = parser.parse_args()
    table = Table(title="schedule + commit, CPU us a step")
    for heading in ("running", "median", "min", "max", "vLLM V1 (elsewhere)", "ratio"):
        table.add_column(heading, justify="right")
    for num_requests, vllm_us in VLLM_V1_US.items():
        times_us = measure(num_requests, args.steps, args.repeats)
        median_us = statistics.median(times_us)
        row = (median_us, min(times_us), max(times_us))
        table.add_row(
            str(num_requests), *(f"{value:.1f}" for value in row), str(vllm_us), f"{vllm_us / median_us:.1f}x"
        )
    Console().print(table)


if __name__ == "__main__":
    main()
