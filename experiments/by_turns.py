"""Two checkouts measured in one run: the benchmark of this one and that of the other, by turns.

A machine drifts, and so figures of two runs with an hour between them say little of each other. Each turn is
a process of its own, in which nothing is warm from the one before.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from rich import box
from rich.table import Table

from engine.core.errors import UserError

HERE = Path(__file__).resolve().parent.parent
Figures = dict[str, list[float]]
"""What was measured, by name, once or several times."""


def run_in(tree: Path, module: str, arguments: Sequence[str]) -> Figures:
    """The figures that a benchmark of a checkout prints, as JSON in the last line of its output.

    Raises:
        UserError: the checkout has no such benchmark, or it fails; with what it wrote to stderr.
    """
    if not (tree / f"{module.replace('.', '/')}.py").is_file():
        raise UserError(f"{tree} has no {module}: name a checkout of this repository that has it")
    command = [sys.executable, "-m", module, *arguments]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(tree), str(tree / "kernels")))}
    ran = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)
    if ran.returncode != 0:
        raise UserError(f"in {tree}, {' '.join(command[1:])} failed: {ran.stderr.strip()[-2000:]}")
    figures: Figures = json.loads(ran.stdout.splitlines()[-1])
    return figures


def compare(other: Path, module: str, arguments: Sequence[str], num_rounds: int) -> Table:
    """What the benchmark gives there and here: medians, least values, and their ratios.

    The least is what a machine with other work to do disturbs least. A figure that only one of the two has is
    left out.
    """
    there, here = Figures(), Figures()
    for _ in range(num_rounds):
        for tree, found in ((other.resolve(), there), (HERE, here)):
            for name, values in run_in(tree, module, arguments).items():
                found.setdefault(name, []).extend(values)
    table = Table(title=f"there: {other}", box=box.SIMPLE_HEAD, title_justify="left")
    for heading in ("", "median there", "here", "here / there", "least there", "here", "here / there"):
        table.add_column(heading, justify="right" if heading else "left")
    for name in there:
        if name in here:
            table.add_row(
                name, *_row(statistics.median, there[name], here[name]), *_row(min, there[name], here[name])
            )
    return table


def _row(statistic: Callable[[Sequence[float]], float], there: list[float], here: list[float]) -> list[str]:
    before, after = statistic(there), statistic(here)
    return [f"{before:,.1f}", f"{after:,.1f}", f"{after / before:.3f}"]
