"""CPU time and memory of simulations: the default set-up at three loads, each run in a process of its own.

`python -m experiments.bench_sim` serves 5,000 requests at 1, 4.5 and 20 requests/s (nearly idle, the default
load, saturated) as `python -m experiments.run` does, and with its files, but for the figures. `--against DIR`
does the same in another checkout, by turns; that needs nothing but its `experiments.run`. Overrides may
follow: `python -m experiments.bench_sim --requests 1000000 timeline=false`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile

from rich import box
from rich.table import Table

from engine.core.errors import UserError
from experiments.by_turns import HERE, Figures, Measurement, check_has, comparison, environment
from experiments.errors import plain_errors
from experiments.output import stdout_console

RATES_PER_S = (1.0, 4.5, 20.0)
RUN = "experiments.run"
BYTES_PER_MAXRSS = 1 if sys.platform == "darwin" else 1024


def simulate(tree: Path, overrides: Sequence[str]) -> Iterator[Measurement]:
    """Run a simulation in a checkout, and say what it cost.

    Raises:
        UserError: the run fails; with what it wrote to stderr.
    """
    with TemporaryDirectory() as folder, TemporaryFile("w+") as errors:
        directory = Path(folder, "run")
        command = [sys.executable, "-m", RUN, "plots=false", *overrides, f"hydra.run.dir={directory}"]
        process = subprocess.Popen(
            command, cwd=tree, env=environment(tree), stdout=subprocess.DEVNULL, stderr=errors
        )
        _, status, usage = os.wait4(process.pid, 0)  # the only call that tells the memory of one child
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            errors.seek(0)
            raise UserError(f"the simulation in {tree} failed: {errors.read().strip()[-2000:]}")
        summary = json.loads((directory / "summary.json").read_text(encoding="utf-8"))
        loop_s = json.loads((directory / "effort.json").read_text(encoding="utf-8"))["cpu_s"]
    yield "CPU s of the process", usage.ru_utime + usage.ru_stime
    yield "CPU s of the loop", loop_s
    yield "steps a CPU s of the loop", summary["num_steps"] / loop_s
    yield "requests a CPU s of the loop", summary["num_requests"] / loop_s
    yield "peak RSS, MiB", usage.ru_maxrss * BYTES_PER_MAXRSS / 2**20


def by_turns(
    trees: Sequence[Path], rates_per_s: Sequence[float], num_repeats: int, overrides: Sequence[str]
) -> list[Figures]:
    """The figures of each checkout, which take turns."""
    found = [Figures() for _ in trees]
    for rate_per_s in rates_per_s:
        for _ in range(num_repeats):
            for tree, figures in zip(trees, found, strict=True):
                for name, value in simulate(tree, [f"workload.rate_per_s={rate_per_s}", *overrides]):
                    figures.setdefault(f"{rate_per_s:g} requests/s: {name}", []).append(value)
    return found


@plain_errors
def main(arguments: Sequence[str] | None = None) -> None:
    """Print medians, or JSON, or a comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--requests", type=int, default=5_000, help="of each run")
    parser.add_argument("--rates", type=float, nargs="+", default=RATES_PER_S, help="requests/s")
    parser.add_argument("--repeats", type=int, default=1, help="runs of each rate")
    parser.add_argument("--json", action="store_true", help="print all figures in one line of JSON")
    parser.add_argument("--against", type=Path, metavar="DIR", help="compare with another checkout")
    options, overrides = parser.parse_known_args(arguments)
    overrides = [f"workload.num_requests={options.requests}", *overrides]
    others = [] if options.against is None else [options.against.resolve()]
    for tree in others:
        check_has(tree, RUN)
    *before, here = by_turns([*others, HERE], options.rates, options.repeats, overrides)
    if before:
        stdout_console().print(comparison(options.against, before[0], here))
    elif options.json:
        print(json.dumps(here))
    else:
        stdout_console().print(_table(here))


def _table(figures: Figures) -> Table:
    """A row for each figure."""
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("")
    table.add_column("median", justify="right")
    for name, values in figures.items():
        table.add_row(name, f"{statistics.median(values):,.1f}")
    return table


if __name__ == "__main__":
    main()
