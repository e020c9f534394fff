"""CPU time of the core alone: schedule and commit, with nobody executing anything.

`python -m experiments.bench_core` prints the median over blocks of steps, in each of four regimes
(experiments.core_regimes). For comparison, vLLM V1's scheduler (schedule + update_from_output) took 143, 488
and 1,910 us a step with 16, 64 and 256 decoding requests, measured on another machine. Then what a long queue
costs: 16 decode and 20,000 wait, of whom none finds a seat, while another joins in each step.

With `--against DIR` this checkout and the one in DIR measure by turns, block by block, and their medians are
compared.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.table import Table

from engine.core.policies.order import Fcfs, Order, Priority
from experiments.by_turns import TAKE_TURNS, Figures, Measurement, collect, compare, take_turns
from experiments.core_regimes import REGIMES, RunStep, queueing
from experiments.errors import plain_errors
from experiments.output import stdout_console

NUM_RUNNING = (16, 64, 256)
NUM_WAITING = 20_000
ORDERS: dict[str, Order] = {
    "fcfs": Fcfs(),
    "priority": Priority(),
    "priority, ageing": Priority(ageing_per_s=0.1),
}


def measure(name: str, run_step: RunStep, num_steps: int, num_blocks: int) -> Iterator[Measurement]:
    """CPU microseconds a step, in one block of `num_steps` after the other."""
    for _ in range(num_blocks):
        begin_ns = time.process_time_ns()
        for _ in range(num_steps):
            run_step()
        yield name, (time.process_time_ns() - begin_ns) / 1e3 / num_steps


def measurements(num_steps: int, num_blocks: int) -> Iterator[Measurement]:
    """Every regime at every size, then the long queues."""
    num_steps_in_all = num_steps * num_blocks
    for name, regime in REGIMES.items():
        for num_running in NUM_RUNNING:
            run_step = regime(num_running, num_steps_in_all)
            yield from measure(f"{name}, {num_running} running", run_step, num_steps, num_blocks)
    for name, order in ORDERS.items():
        run_step = queueing(16, num_steps_in_all, num_waiting=NUM_WAITING, order=order)
        yield from measure(f"{NUM_WAITING:,} waiting, {name}", run_step, num_steps, num_blocks)


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
    parser.add_argument("--steps", type=int, default=200, help="steps in a block")
    parser.add_argument("--blocks", type=int, default=15, help="blocks, of which the median is shown")
    parser.add_argument("--json", action="store_true", help="print all figures in one line of JSON")
    parser.add_argument("--against", type=Path, metavar="DIR", help="compare with another checkout")
    parser.add_argument(TAKE_TURNS, action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    found = measurements(options.steps, options.blocks)
    if options.against is not None:
        size = [f"--steps={options.steps}", f"--blocks={options.blocks}"]
        stdout_console().print(compare(options.against, "experiments.bench_core", size))
    elif options.take_turns:
        take_turns(found)
    elif options.json:
        print(json.dumps(collect(found)))
    else:
        stdout_console().print(table(collect(found)))


if __name__ == "__main__":
    main()
