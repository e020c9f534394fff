"""What the run log keeps of one request while it lives. Standard library only."""

from __future__ import annotations

from array import array

from engine.core.events import EventKind
from engine.core.plan import Preemption, PreemptionKind, Transfer, TransferKind
from engine.core.spec import RequestSpec
from engine.telemetry.schema import Phase


class RequestRecord:
    """Times and counts of one request, the steps that brought its tokens, and its block tables over time."""

    __slots__ = (
        "end_ns", "end_step", "ended_seqs", "ending", "first_scheduled_ns", "first_step",
        "max_computed_tokens",
        "num_blocks_swapped_in", "num_blocks_swapped_out", "num_fallbacks", "num_lost_tokens",
        "num_recompute_preemptions", "num_recomputed_tokens", "num_swap_preemptions", "phases", "reason",
        "row", "spans", "spec", "tables",
    )  # fmt: skip

    def __init__(self, spec: RequestSpec, row: int) -> None:
        self.spec = spec
        self.row = row
        """Order of arrival, from 0."""
        self.first_step: int | None = None
        """The first step that gave it a block or a token."""
        self.first_scheduled_ns: int | None = None
        self.end_ns: int | None = None
        self.end_step: int | None = None
        """The step that told of the end."""
        self.ending: EventKind | None = None
        self.ended_seqs: tuple[int, ...] = ()
        """Of several sequences, those that have ended before the request."""
        self.reason = ""
        self.phases: list[tuple[Phase, int]] = [(Phase.WAITING, spec.arrival_ns)]
        self.spans = array("q")
        """Steps in a row each of which brought a sequence a token: sequence, first step, the one after the
        last, and 1 if the last token was never served.
        """
        self.tables = array("q")
        """Changes of its device block tables: step, sequence, length of the table from then on."""
        self.max_computed_tokens = 0
        """KV that a sequence has had, up to its first token; of several sequences, at any time."""
        self.num_swap_preemptions = 0
        self.num_recompute_preemptions = 0
        self.num_fallbacks = 0
        self.num_lost_tokens = 0
        self.num_recomputed_tokens = 0
        self.num_blocks_swapped_out = 0
        self.num_blocks_swapped_in = 0

    def touch(self, step: int) -> None:
        """A step gives it a block or a token: until it has ended, that step and all later ones are kept."""
        if self.first_step is None:
            self.first_step = step

    def hold(self, step: int, seq: int, num_blocks: int) -> None:
        """From a step on, the table of a sequence has so many device blocks."""
        self.touch(step)
        self.tables.extend((step, seq, num_blocks))

    def release(self, step: int) -> None:
        """From a step on, it has none."""
        for seq in range(self.spec.n):
            self.tables.extend((step, seq, 0))

    def gain(self, seq: int, first: int, last: int, *, loses: bool = False) -> None:
        """A sequence gained a token in each step from `first` to before `last`; `loses`: the last is not
        served, since the request was gone before its step was committed, or failed in it.
        """
        self.spans.extend((seq, first, last, loses))

    def enter(self, phase: Phase, time_ns: int) -> None:
        """The request moves to another queue, or leaves the last one."""
        self.phases.append((phase, time_ns))

    def preempt(self, preemption: Preemption, time_ns: int) -> None:
        """Count a preemption; a swap keeps the tokens, recomputation loses them."""
        self.num_fallbacks += preemption.fell_back
        if preemption.kind is PreemptionKind.SWAP:
            self.num_swap_preemptions += 1
            self.enter(Phase.SWAPPED, time_ns)
        else:
            self.num_recompute_preemptions += 1
            self.num_lost_tokens += preemption.num_tokens
            self.enter(Phase.WAITING, time_ns)

    def move(self, transfer: Transfer) -> None:
        """Count swapped blocks."""
        if transfer.kind is TransferKind.SWAP_OUT:
            self.num_blocks_swapped_out += len(transfer.src)
        elif transfer.kind is TransferKind.SWAP_IN:
            self.num_blocks_swapped_in += len(transfer.src)

    def end(self, ending: EventKind, reason: str, time_ns: int, step: int) -> None:
        """The request is over, as the events of a step tell."""
        self.ending, self.reason, self.end_ns, self.end_step = ending, reason, time_ns, step
        self.enter(Phase.ENDED, time_ns)
