"""What a policy may look at: the state of the scheduler, read-only."""

from __future__ import annotations

from collections.abc import Sequence

from engine.core.request import Request
from engine.core.spec import Limits
from engine.core.state import State


class View:
    """One view for every axis. It shows the moment: a verb that changes the state changes what is seen.

    Whoever enters or leaves the batch in the step being planned is seen as the verb left it: an entrant is in
    `batch` and holds its blocks, a victim is in no queue until the plan is closed.
    """

    __slots__ = ("_kv", "_state")

    def __init__(self, state: State) -> None:
        self._state = state
        self._kv = state.kv

    @property
    def now_ns(self) -> int:
        """When the step is planned, or the request arrived that is looked at."""
        return self._state.now_ns

    @property
    def limits(self) -> Limits:
        """What a step and a request may not exceed."""
        return self._state.limits

    # The queues.

    @property
    def waiting(self) -> Sequence[Request]:
        """Those that hold no blocks."""
        return self._state.waiting

    @property
    def running(self) -> Sequence[Request]:
        """The running queue; who enters in this step joins it at the end."""
        return self._state.running

    @property
    def swapped(self) -> Sequence[Request]:
        """Those that hold host blocks."""
        return self._state.swapped

    @property
    def batch(self) -> Sequence[Request]:
        """All that run, those that entered in this step included."""
        return [*self._state.running, *self._state.entrants]

    @property
    def is_busy(self) -> bool:
        """Some request runs, those that entered in this step included."""
        return bool(self._state.running or self._state.entrants)

    @property
    def num_running_seqs(self) -> int:
        """Sequences of `batch`: seats taken."""
        return self._state.num_running_seqs

    # The pools, in blocks.

    @property
    def block_size(self) -> int:
        """Tokens a block."""
        return self._kv.block_size

    @property
    def num_blocks(self) -> int:
        """Device blocks in all."""
        return self._kv.device.num_blocks

    @property
    def num_free_blocks(self) -> int:
        """Device blocks that can be taken now."""
        return len(self._kv.device.free)

    @property
    def num_free_host_blocks(self) -> int:
        """Host blocks that can be taken now."""
        return self._kv.host.num_free

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that one sequence of this length needs."""
        return self._kv.blocks_for(num_tokens)

    def blocks_to_hold(self, request: Request) -> int:
        """Blocks that a request needs for all its tokens, starting from none."""
        return self._kv.blocks_to_hold(request)

    def blocks_held(self, request: Request) -> int:
        """Distinct blocks of a request, on whichever side they are."""
        return self._kv.num_blocks_held(request)

    def blocks_freed_by(self, request: Request) -> int:
        """Device blocks that would be free if a running request left: those that nobody else holds."""
        return self._kv.num_blocks_freed_by(request)
