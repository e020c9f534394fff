"""The Mooncake traces: JSON lines with timestamp (ms), input_length, output_length and hash_ids."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Literal

from engine.core.fields import AtLeast, AtMost
from sim.streams import stream
from sim.workloads.arrivals import NS_PER_S
from sim.workloads.base import Rows, ordered_rows
from sim.workloads.recorded import RecordedTrace
from sim.workloads.table import Number, json_records, open_trace, parse_columns, token_count
from sim.workloads.ticks import detect_tick_ns, share_at_multiples, spread
from sim.workloads.times import check_unit, since_first_ns

SOURCE = "https://github.com/kvcache-ai/Mooncake, FAST25-release/traces/conversation_trace.jsonl"


def stamp(cell: object) -> Number:
    """A time, whole or not, in whatever unit."""
    if isinstance(cell, bool) or not isinstance(cell, int | float) or not 0 <= cell < 2**63:
        raise ValueError("is not a time: a number that is not negative")
    return cell


@dataclass(frozen=True, slots=True)
class MooncakeTrace(RecordedTrace):
    """Traces in Mooncake's format; stamps may count from anything, the first request arrives at 0.

    Arrivals of the conversation trace come in batches every 3 s, an artefact of its logging. Replayed as
    they are they would measure the batches, so stamps that are found to be quantised are spread inside their
    ticks. `tick_s` says otherwise: a number is the tick, None replays as recorded. `time_unit` is that of the
    stamps; None: milliseconds, unless they look like a time since 1970 in another unit, which is an error.
    hash_ids (shared prefixes) are not used: the requests are lengths only.
    Qin et al., "Mooncake: Trading more storage for less computation", FAST 2025.
    """

    tick_s: Annotated[float, AtLeast(0.001), AtMost(86_400)] | Literal["auto"] | None = "auto"
    time_unit: Literal["s", "ms", "us", "ns"] | None = None

    def read(self) -> Rows:
        """All rows, spread over their ticks if they have any."""
        parsers = {"timestamp": stamp, "input_length": token_count, "output_length": token_count}
        with open_trace(self.path, "mooncake", SOURCE) as file:
            columns = parse_columns(file, json_records(file, parsers), parsers)
        if self.time_unit is None:
            check_unit(columns, "timestamp", "ms", "workload.time_unit")
        times_ns = since_first_ns(columns, "timestamp", self.time_unit or "ms")
        rows = ordered_rows(times_ns, columns.tokens("input_length"), columns.tokens("output_length"))
        return self._untick(rows)

    def _untick(self, rows: Rows) -> Rows:
        if self.tick_s is None:
            return rows
        if isinstance(self.tick_s, str):
            tick_ns = detect_tick_ns(rows.arrival_ns)
        else:
            tick_ns = round(self.tick_s * NS_PER_S)
        if tick_ns is None:
            return rows
        share = share_at_multiples(rows.arrival_ns, tick_ns)
        note = (
            f"arrivals: {share:.1%} of the stamps lie at multiples of {tick_ns / NS_PER_S:g} s, so they are "
            "spread inside these ticks (workload.tick_s=null replays them as recorded)"
        )
        times_ns = spread(rows.arrival_ns, tick_ns, stream(self.seed, "workload/ticks"))
        return replace(rows, arrival_ns=times_ns, notes=(*rows.notes, note))
