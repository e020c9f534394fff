"""CPU time of the core alone: schedule and commit, with nobody executing anything.

`python -m experiments.bench_core` prints the median over blocks of steps in which every running request
decodes. For comparison, vLLM V1's scheduler (schedule + update_from_output) took 25, 143, 488 and 1,910 us a
step with 1, 16, 64 and 256 running requests, measured on another machine. Then what a long queue costs: the
same with 16 running and 20,000 waiting, of whom none finds a seat, while another joins in each step.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from itertools import count, cycle, islice

from rich.console import Console
from rich.table import Table

from engine.core.plan import StepResult
from engine.core.policies.admission import FullPrompt
from engine.core.policies.base import Order, Policies
from engine.core.policies.batching import DecodeFirst
from engine.core.policies.order import Fcfs, Priority
from engine.core.policies.reservation import OnDemand
from engine.core.policies.restore import Recompute
from engine.core.policies.victim import LastAdmitted
from engine.core.request import Request
from engine.core.scheduler import Scheduler
from engine.core.spec import Capacity, Limits, RequestSpec

BLOCK_SIZE = 16
NS_PER_MS = 1_000_000
VLLM_V1_US = {1: 25, 16: 143, 64: 488, 256: 1910}
NUM_WAITING = 20_000
ORDERS: dict[str, Order] = {
    "fcfs": Fcfs(),
    "priority": Priority(),
    "priority, ageing": Priority(ageing_per_s=0.1),
}
RESULT = StepResult(duration_ns=0)


def decoding(num_requests: int, num_steps: int, order: Order) -> Scheduler:
    """A scheduler whose requests have all had their prompts computed; lengths are spread over a block."""
    max_model_len = 128 + num_steps
    num_blocks = num_requests * (max_model_len // BLOCK_SIZE + 1)
    policies = Policies(order, FullPrompt(), DecodeFirst(), LastAdmitted(), Recompute(), OnDemand())
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


def measure(run_step: Callable[[], None], num_steps: int, num_repeats: int) -> list[float]:
    """CPU microseconds a step, one figure for each block of `num_steps`."""
    times_us = []
    for _ in range(num_repeats):
        begin_ns = time.process_time_ns()
        for _ in range(num_steps):
            run_step()
        times_us.append((time.process_time_ns() - begin_ns) / 1e3 / num_steps)
    return times_us


def crowded(order: Order, num_steps: int) -> Callable[[], None]:
    """A step of 16 decodes with a long queue behind them, before which one more request joins it."""
    scheduler = decoding(16, num_steps, order)
    priorities = cycle((2, 0, 1))
    specs = (
        RequestSpec(f"w{index:06d}", index * NS_PER_MS, 64, 64, priority=next(priorities))
        for index in count()
    )
    for spec in islice(specs, NUM_WAITING):
        scheduler.add(Request(spec), 0)

    def join_and_step() -> None:
        scheduler.add(Request(next(specs)), 0)
        step(scheduler)

    return join_and_step


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=400, help="steps in a block")
    parser.add_argument("--repeats", type=int, default=9, help="blocks")
    args = parser.parse_args()
    num_steps = args.steps * args.repeats
    table = _table("schedule + commit, CPU us a step", "running", "vLLM V1 (elsewhere)", "ratio")
    for num_requests, vllm_us in VLLM_V1_US.items():
        scheduler = decoding(num_requests, num_steps, Fcfs())
        times_us = measure(partial(step, scheduler), args.steps, args.repeats)
        ratio = vllm_us / statistics.median(times_us)
        table.add_row(str(num_requests), *_figures(times_us), str(vllm_us), f"{ratio:.1f}x")
    Console().print(table)
    table = _table(f"with {NUM_WAITING:,} waiting, one joins a step: CPU us a step", "order")
    for name, order in ORDERS.items():
        table.add_row(name, *_figures(measure(crowded(order, num_steps), args.steps, args.repeats)))
    Console().print(table)


def _table(title: str, what: str, *more: str) -> Table:
    table = Table(title=title)
    for heading in (what, "median", "min", "max", *more):
        table.add_column(heading, justify="right")
    return table


def _figures(times_us: list[float]) -> list[str]:
    return [f"{value:.1f}" for value in (statistics.median(times_us), min(times_us), max(times_us))]


if __name__ == "__main__":
    main()
