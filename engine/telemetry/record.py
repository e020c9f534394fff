"""What the run log keeps of one request while it lives. Standard library only."""

from __future__ import annotations

from engine.core.events import EventKind
from engine.core.plan import Preemption, PreemptionKind, Transfer, TransferKind
from engine.core.spec import RequestSpec
from engine.telemetry.schema import Phase


class RequestRecord:
    """Times and counts of one request; its tokens are in the token log of the recorder."""

    __slots__ = (
        "end_ns", "end_step", "ending", "first_scheduled_ns", "max_computed_tokens", "num_blocks_swapped_in",
        "num_blocks_swapped_out", "num_fallbacks", "num_lost_tokens", "num_recompute_preemptions",
        "num_recomputed_tokens", "num_swap_preemptions", "phases", "reason", "row", "spec",
    )  # fmt: skip

    def __init__(self, spec: RequestSpec, row: int) -> None:
        self.spec = spec
        self.row = row
        """Order of arrival, from 0."""
        self.first_scheduled_ns: int | None = None
        self.end_ns: int | None = None
        self.end_step: int | None = None
        """The step that told of the end."""
        self.ending: EventKind | None = None
        self.reason = ""
        self.phases: list[tuple[Phase, int]] = [(Phase.WAITING, spec.arrival_ns)]
        self.max_computed_tokens = 0
        """KV that a sequence has had, up to its first token; of several sequences, at any time."""
        self.num_swap_preemptions = 0
        self.num_recompute_preemptions = 0
        self.num_fallbacks = 0
        self.num_lost_tokens = 0
        self.num_recomputed_tokens = 0
        self.num_blocks_swapped_out = 0
        self.num_blocks_swapped_in = 0

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
