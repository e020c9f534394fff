"""CPU time of the core alone: schedule and commit, with nobody executing anything.

`python -m experiments.bench_core` prints the median over blocks of steps, in each of four regimes
(experiments.core_regimes). For comparison, vLLM V1's scheduler (schedule + update_from_output) took 143, 488
and 1,910 us a step with 16, 64 and 256 decoding requests, measured on another machine. Then what a long queue
costs: 16 decode and 20,000 wait, of whom none finds a seat, while another joins in each step.

With `--against DIR` the benchmark of this checkout and that of the one in DIR run by turns, and their medians
are compared.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from rich.table import Table

from engine.core.policies.base import Order
from engine.core.policies.order import Fcfs, Priority
from experiments.by_turns import Figures, compare
from experiments.core_regimes import REGIMES, Regime, RunStep, queueing
from experiments.errors import plain_errors
from experiments.output import stdout_console

NUM_RUNNING = (16, 64, 256)
NUM_WAITING = 20_000
ORDERS: dict[str, Order] = {
    "fcfs": Fcfs(),
    "priority": Priority(),
    "priority, ageing": Priority(ageing_per_s=0.1),
}


def measure(run_step: RunStep, num_steps: int, num_blocks: int) -> list[float]:
    """CPU microseconds a step, one figure for each block of `num_steps`."""
    times_us = []
    for _ in range(num_blocks):
        begin_ns = time.process_time_ns()
        for _ in range(num_steps):
            run_step()
        times_us.append((time.process_time_ns() - begin_ns) / 1e3 / num_steps)
    return times_us


def everything(num_steps: int, num_blocks: int, regimes: Mapping[str, Regime] = REGIMES) -> Figures:
    """CPU microseconds a step of each block: every regime at every size, then the long queues."""
    figures = Figures()
    for name, regime in regimes.items():
        for num_running in NUM_RUNNING:
            run_step = regime(num_running, num_steps * num_blocks)
            figures[f"{name}, {num_running} running"] = measure(run_step, num_steps, num_blocks)
    for name, order in ORDERS.items():
        crowd = partial(queueing, num_waiting=NUM_WAITING, order=order)
        run_step = crowd(16, num_steps * num_blocks)
        figures[f"{NUM_WAITING:,} waiting, {name}"] = measure(run_step, num_steps, num_blocks)
    return figures


def table(figures: Figures) -> Table:
    """A row for each figure."""
    found = Table(title="schedule + commit, CPU us a step")
    for heading in ("regime", "median", "min", "max"):
        found.add_column(heading, justify="left" if heading == "regime" else "right")
    for name, times_us in figures.items():
        row = (statistics.median(times_us), min(times_us), max(times_us))
        found.add_row(name, *(f"{value:.1f}" for value in row))
    return found


@plain_errors
def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table, or JSON, or a comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--steps", type=int, default=400, help="steps in a block")
    parser.add_argument("--blocks", type=int, default=9, help="blocks, of which the median is shown")
    parser.add_argument("--json", action="store_true", help="print all figures in one line of JSON")
    parser.add_argument("--against", type=Path, metavar="DIR", help="compare with another checkout")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each checkout")
    options = parser.parse_args(arguments)
    if options.against is not None:
        size = [f"--steps={options.steps}", f"--blocks={options.blocks}", "--json"]
        stdout_console().print(compare(options.against, "experiments.bench_core", size, options.rounds))
        return
    figures = everything(options.steps, options.blocks)
    if options.json:
        print(json.dumps(figures))
    else:
        stdout_console().print(table(figures))


if __name__ == "__main__":
    main()
