"""Two checkouts measured in one run: the benchmark of this one and that of the other, by turns.

A machine that is shared is faster at one moment and slower at the next, by more than what is to be told
apart. So both benchmarks stand ready, in a process each, and take one measurement after the other: what is
compared are neighbours. A benchmark is a module with a generator of measurements, which it hands to
`take_turns` if it is called with `--take-turns`.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryFile
from typing import TextIO

from rich import box
from rich.table import Table

from engine.core.errors import UserError

HERE = Path(__file__).resolve().parent.parent
TAKE_TURNS = "--take-turns"
Measurement = tuple[str, float]
"""What was measured, and its value."""
Figures = dict[str, list[float]]
"""All values of each name, in the order in which they were measured."""


def collect(measurements: Iterator[Measurement]) -> Figures:
    """All of them, by name."""
    figures = Figures()
    for name, value in measurements:
        figures.setdefault(name, []).append(value)
    return figures


def take_turns(measurements: Iterator[Measurement]) -> None:
    """Measure once for each line on stdin, and answer with a line of JSON; with `null` after the last."""
    for _ in sys.stdin:
        print(json.dumps(next(measurements, None)), flush=True)


def check_has(tree: Path, module: str) -> None:
    """Refuse a folder without this module: Python would take the module of another place.

    Raises:
        UserError: it is no checkout, or too old a one.
    """
    if not (tree / f"{module.replace('.', '/')}.py").is_file():
        raise UserError(f"{tree} has no {module}: name a checkout of this repository that has it")


def environment(tree: Path) -> dict[str, str]:
    """The environment of a process that imports from this checkout, wherever the package is installed."""
    return os.environ | {"PYTHONPATH": os.pathsep.join((str(tree), str(tree / "kernels")))}


class _Side:
    """The benchmark of one checkout, which waits for its turns.

    Raises:
        UserError: the checkout has no such benchmark.
    """

    def __init__(
        self, tree: Path, module: str, arguments: Sequence[str], errors: TextIO, stack: ExitStack
    ) -> None:
        check_has(tree, module)
        self.figures = Figures()
        self._tree = tree
        self._errors = errors
        self._process = stack.enter_context(
            subprocess.Popen(
                [sys.executable, "-m", module, *arguments, TAKE_TURNS],
                cwd=tree,
                env=environment(tree),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        )

    def measure(self) -> bool:
        """Take a turn; False if there is nothing left to measure.

        Raises:
            UserError: the benchmark failed; with what it wrote to stderr.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            os.write(self._process.stdin.fileno(), b"\n")  # nothing stays in a buffer if it is gone
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self._process.wait()
            self._errors.seek(0)
            raise UserError(f"the benchmark in {self._tree} failed: {self._errors.read().strip()[-2000:]}")
        found: Measurement | None = json.loads(line)
        if found is not None:
            self.figures.setdefault(found[0], []).append(found[1])
        return found is not None


def compare(other: Path, module: str, arguments: Sequence[str]) -> Table:
    """What the benchmark of another checkout gives, and that of this one, as `comparison` shows it."""
    with TemporaryFile("w+") as errors, ExitStack() as stack:
        there, here = (_Side(tree, module, arguments, errors, stack) for tree in (other.resolve(), HERE))
        while any([there.measure(), here.measure()]):
            pass
    return comparison(other, there.figures, here.figures)


def comparison(other: Path, there: Figures, here: Figures) -> Table:
    """Medians of the figures of another checkout and of this one, and their ratio.

    The ratio is the median over pairs of neighbours. A figure that only one of the two has is left out.
    """
    table = Table(title=f"there: {other}", box=box.SIMPLE_HEAD, title_justify="left")
    for heading in ("median", "there", "here", "here / there", "middle half"):
        table.add_column(heading, justify="left" if heading == "median" else "right")
    for name in there:
        if name in here:
            table.add_row(name, *_row(there[name], here[name]))
    return table


def _row(there: Sequence[float], here: Sequence[float]) -> list[str]:
    ratios = [after / before for before, after in zip(there, here, strict=False)]
    low, middle, high = (
        statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    )
    medians = [f"{statistics.median(values):,.1f}" for values in (there, here)]
    return [*medians, f"{middle:.3f}", f"{low:.3f} to {high:.3f}"]
