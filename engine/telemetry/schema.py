"""The columns of the run log, in the order in which they are written. Standard library only."""

from __future__ import annotations

from enum import StrEnum

from engine.core.plan import PoolState
from engine.core.work import Work


class World(StrEnum):
    """Where a run took place."""

    SIMULATED = "simulated"
    MEASURED = "measured"


class Phase(StrEnum):
    """Where a request is, for the timeline; the last phase of a request that ended is ENDED."""

    WAITING = "waiting"
    RUNNING = "running"
    SWAPPED = "swapped"
    ENDED = "ended"


PLANNED = (
    "step_id",
    "start_ns",
    "end_ns",
    "closed_ns",
    "duration_ns",
    "transfer_ns",
    *Work._fields,
    *PoolState._fields,
)
"""What the recorder logs for each step, all int64.

A step begins at `start_ns` (when it is planned, or, with plans in flight, when the one before it ends) and is
committed at `end_ns`, which is when its tokens are there. Its period ends
at `closed_ns`, when bookkeeping is done: there the next step starts, unless the engine goes idle. A cost
model is fitted to closed - start, which is what a simulated step takes (there closed = end). The backend
measured or modelled `duration_ns`; `transfer_ns` is the part of it that moving blocks took. Queue lengths and
pool are those after planning, before the step is executed.
"""

MOVED = (
    "num_swap_preemptions",
    "num_recompute_preemptions",
    "num_fallbacks",
    "num_lost_tokens",
    "num_rejections",
)
"""What it logs for steps that preempt or reject, all int64 and 0 in other steps.

A fallback is a preemption by recomputation where a swap was wanted; lost are the tokens with KV that
recomputation drops.
"""

DERIVED = ("num_decode_tokens", "num_prefill_tokens", "num_table_blocks", "num_unused_slots")
"""Worked out when the run is over, int64.

`num_table_blocks`: device blocks summed over the tables of all sequences; a shared one counts once a holder.
`num_unused_slots`: slots allocated to sequences that, as is known after the run, never get KV.
"""

STEP_COLUMNS = (*PLANNED, *MOVED, *DERIVED)

REQUEST_COLUMNS = {
    "request_id": "string",
    "arrival_ns": "int64",
    "first_scheduled_ns": "Int64",
    "first_token_ns": "Int64",
    "last_token_ns": "Int64",
    "end_ns": "Int64",
    "status": "string",
    "reason": "string",
    "num_prompt_tokens": "int64",
    "num_output_tokens": "int64",
    "max_tokens": "int64",
    "n": "int64",
    "priority": "int64",
    "client": "string",
    "num_swap_preemptions": "int64",
    "num_recompute_preemptions": "int64",
    "num_fallbacks": "int64",
    "num_lost_tokens": "int64",
    "num_recomputed_tokens": "int64",
    "num_blocks_swapped_out": "int64",
    "num_blocks_swapped_in": "int64",
    "seq_num_output_tokens": "list<int64>",
    "token_times_ns": "list<int64>",
    "phases": "list<string>",
    "phase_times_ns": "list<int64>",
}
"""Columns of requests.parquet after `world`, with their pandas dtype, or their Arrow type for lists.

`status` is finished, aborted, rejected, failed or unfinished; `reason` is the finish reason of the last
sequence, or why the request was rejected or has failed. `num_output_tokens` sums over the sequences;
`token_times_ns` holds their tokens, sequence after sequence, as many of each as `seq_num_output_tokens` says.
`phases` and `phase_times_ns`: what the request entered when. `client` is null where the workload names none.
"""

NULLABLE = ("first_scheduled_ns", "first_token_ns", "last_token_ns", "end_ns", "client")
"""Columns of requests.parquet that have no value for some requests."""

UNFINISHED = "unfinished"
"""Status of a request that had not ended when the run did."""
