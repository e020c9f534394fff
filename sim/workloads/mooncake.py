"""The Mooncake traces: JSON lines with timestamp (ms), input_length, output_length and hash_ids."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from sim.streams import stream
from sim.workloads.arrivals import NS_PER_S
from sim.workloads.base import IntArray, Rows, WorkloadError, ordered_rows
from sim.workloads.recorded import RecordedTrace
from sim.workloads.table import at_least_one, json_records, open_trace, parse_columns, token_count

SOURCE = "https://github.com/kvcache-ai/Mooncake, FAST25-release/traces/conversation_trace.jsonl"
_NS_PER_MS = 1_000_000


def milliseconds_ns(cell: object) -> int:
    """A time in milliseconds, whole or not, as nanoseconds."""
    if isinstance(cell, bool) or not isinstance(cell, int | float) or not 0 <= cell < 2**53:
        raise ValueError("is not a time in milliseconds from the start of the trace")
    return cell * _NS_PER_MS if isinstance(cell, int) else round(cell * _NS_PER_MS)


def spread(times_ns: IntArray, tick_ns: int, rng: np.random.Generator) -> IntArray:
    """Ascending times, quantised to ticks, spread uniformly inside their ticks; the order stays.

    Stamps lie within milliseconds of multiples of the tick (0, 2999, 6000), so round to find their tick.
    """
    ticks = (times_ns + tick_ns // 2) // tick_ns
    return np.sort(ticks * tick_ns + rng.integers(tick_ns, size=len(times_ns)))


@dataclass(frozen=True, slots=True)
class MooncakeTrace(RecordedTrace):
    """Arrivals of Mooncake's conversation trace come in batches every 3 s, an artefact of its logging.

    Replayed as they are they would measure the batches, so they are spread inside each tick unless `tick_s`
    is None. hash_ids (shared prefixes) are not used: the requests are lengths only.
    Qin et al., "Mooncake: Trading more storage for less computation", FAST 2025.
    """

    tick_s: float | None = 3.0

    def __post_init__(self) -> None:
        super(MooncakeTrace, self).__post_init__()
        if self.tick_s is not None and not 0 < self.tick_s < np.inf:
            raise WorkloadError(f"tick_s is {self.tick_s}, must be above 0, or null to replay as recorded")

    def read(self) -> Rows:
        """All rows, spread over their ticks."""
        parsers = {"timestamp": milliseconds_ns, "input_length": token_count, "output_length": token_count}
        with open_trace(self.path, SOURCE) as file:
            times_ns, inputs, outputs = parse_columns(file, json_records(file, parsers), parsers)
            rows = ordered_rows(
                times_ns,
                at_least_one(file.name, "input_length", inputs),
                at_least_one(file.name, "output_length", outputs),
            )
        if self.tick_s is None:
            return rows
        rng = stream(self.seed, "workload/ticks")
        return replace(rows, arrival_ns=spread(rows.arrival_ns, round(self.tick_s * NS_PER_S), rng))
