"""How fast is the machine now? A fixed piece of the engine's work, served again and again."""

from __future__ import annotations

from dataclasses import replace
from statistics import fmean, median

from experiments.samples import StepSamples
from experiments.worlds import Run, Stage


class Probe:
    """Serves the same few requests between the blocks of a measurement and notes their median step time.

    Block i lies between readings i and i + 1, so a reading comes first and one follows each block.
    """

    def __init__(self, stage: Stage, run: Run) -> None:
        self._stage = stage
        self._run = run
        self.readings_ns: list[float] = []

    def warm_up(self) -> None:
        """Serve the requests and look away: after other work the first steps find cold caches."""
        self._stage.warm_up(self._run)

    def measure(self) -> None:
        """Take a reading: less than a second on a CPU."""
        samples = StepSamples()
        self._stage.play(replace(self._run, observers=(samples,)))
        self.readings_ns.append(median(samples.periods_ns))

    @property
    def next_block(self) -> int:
        """The number of the block that begins after the last reading."""
        return len(self.readings_ns) - 1

    def pace(self, block: int) -> float:
        """How much slower than on average the machine was during a block: 1.1 is 10 % slower."""
        return fmean(self.readings_ns[block : block + 2]) / fmean(self.readings_ns)

    def describe(self) -> str:
        """The mean and the range of the readings, in one line."""
        mean_ns = fmean(self.readings_ns)
        low, high = min(self.readings_ns) / mean_ns - 1, max(self.readings_ns) / mean_ns - 1
        return (
            f"speed of the machine: {len(self.readings_ns)} readings of a fixed workload, median step "
            f"{mean_ns / 1e6:.2f} ms on average, from {low:+.1%} to {high:+.1%}"
        )
