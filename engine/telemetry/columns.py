"""What each column of the run log means, and in which unit it counts. Standard library only.

    python -m engine.telemetry.columns > engine/telemetry/COLUMNS.md

The same words are in the parquet files, as metadata of their fields (keys `unit` and `description`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from engine.telemetry.schema import REQUEST_COLUMNS, STEP_COLUMNS


class Column(NamedTuple):
    """The unit of a column, empty for names and shares of nothing, and what it tells."""

    unit: str
    description: str


WORLD = Column("", "simulated or measured")
PART = Column("ns", "this part of the step's duration, by the cost model or by the engine's stopwatch")
"""Of the columns that begin with `part_`, which differ from one cost model to another."""

STEPS: Mapping[str, Column] = {
    "step_id": Column("", "number of the step, from 0"),
    "start_ns": Column("ns", "when the step began: was planned, or the one in flight before it ended"),
    "end_ns": Column("ns", "when it was committed: its tokens are there"),
    "closed_ns": Column("ns", "when bookkeeping was done: the next step starts unless it idles"),
    "duration_ns": Column("ns", "of the execution alone, measured or modelled by the backend"),
    "transfer_ns": Column("ns", "the part of the duration that moving blocks took"),
    "num_tokens": Column("tokens", "computed, over all sequences"),
    "num_seqs": Column("sequences", "that compute in this step"),
    "num_prefill_chunks": Column("sequences", "of these, that compute more than one token: prefill chunks"),
    "num_sampled": Column("sequences", "whose next token is drawn"),
    "decode_context_tokens": Column("tokens", "KV positions that decodes read, their own included"),
    "prefill_context_tokens": Column("tokens", "KV positions that prefill chunks read, their own included"),
    "prefill_attention_pairs": Column("pairs", "of a query and a key in prefill chunks, causal"),
    "num_blocks_swapped_out": Column("blocks", "moved from the device to the host"),
    "num_blocks_swapped_in": Column("blocks", "moved from the host to the device"),
    "num_blocks_copied": Column("blocks", "copied on the device: copy-on-write"),
    "num_transfers": Column("transfers", "in which these blocks were moved"),
    "num_recomputed_tokens": Column("tokens", "at positions that the request had computed before"),
    "max_decode_context_tokens": Column("tokens", "that the longest of the decodes reads"),
    "max_prefill_context_tokens": Column("tokens", "that the longest of the prefill chunks reads"),
    "decode_context_squares": Column("tokens^2", "what each decode reads, squared and summed"),
    "prefill_context_squares": Column("tokens^2", "what each prefill chunk reads, squared and summed"),
    "num_running": Column("requests", "running after planning"),
    "num_waiting": Column("requests", "waiting after planning"),
    "num_swapped": Column("requests", "swapped out after planning"),
    "num_free_blocks": Column("blocks", "free on the device after planning"),
    "num_free_host_blocks": Column("blocks", "free on the host after planning"),
    "num_kv_tokens": Column("tokens", "whose KV is on the device, a shared position counted once"),
    "num_swap_preemptions": Column("preemptions", "whose blocks went to the host"),
    "num_recompute_preemptions": Column("preemptions", "whose blocks were dropped"),
    "num_fallbacks": Column("preemptions", "by recomputation where a swap was wanted"),
    "num_lost_tokens": Column("tokens", "with KV that recomputation dropped"),
    "num_rejections": Column("requests", "that can never be served"),
    "num_decode_tokens": Column("tokens", "of sequences that compute one token: decodes"),
    "num_prefill_tokens": Column("tokens", "of the others; recomputation included"),
    "num_table_blocks": Column("blocks", "in the tables of all sequences; a shared one counts once a holder"),
    "num_unused_slots": Column("slots", "allocated to sequences that, as the run shows, get no KV"),
}

REQUESTS: Mapping[str, Column] = {
    "request_id": Column("", "its name, unique within the run"),
    "arrival_ns": Column("ns", "when it arrived"),
    "first_scheduled_ns": Column("ns", "when its first step was planned"),
    "first_token_ns": Column("ns", "when its first token was there"),
    "last_token_ns": Column("ns", "when its last token was there"),
    "end_ns": Column("ns", "when it ended"),
    "status": Column("", "finished, aborted, rejected, failed or unfinished"),
    "reason": Column("", "finish reason of the last sequence, or why it was rejected or has failed"),
    "num_prompt_tokens": Column("tokens", "of the prompt"),
    "num_output_tokens": Column("tokens", "generated, over its sequences"),
    "max_tokens": Column("tokens", "that a sequence may generate at most"),
    "n": Column("sequences", "sampled in parallel"),
    "priority": Column("", "the lower the sooner, for policies that heed it"),
    "client": Column("", "who sent it; null where the workload names nobody"),
    "num_swap_preemptions": Column("preemptions", "of this request by swapping"),
    "num_recompute_preemptions": Column("preemptions", "of this request by recomputation"),
    "num_fallbacks": Column("preemptions", "by recomputation where a swap was wanted"),
    "num_lost_tokens": Column("tokens", "with KV that recomputation dropped"),
    "num_recomputed_tokens": Column("tokens", "computed again"),
    "num_blocks_swapped_out": Column("blocks", "moved to the host"),
    "num_blocks_swapped_in": Column("blocks", "moved back to the device"),
    "seq_num_output_tokens": Column("tokens", "of each sequence"),
    "token_times_ns": Column(
        "ns", "of each token, sequence after sequence, as many as the column above says"
    ),
    "phases": Column("", "what the request entered: waiting, running, swapped, ended"),
    "phase_times_ns": Column("ns", "when it entered each of its phases"),
}


def step_column(name: str) -> Column:
    """Of steps.parquet, `world` and the parts included."""
    if name == "world":
        return WORLD
    return PART if name.startswith("part_") else STEPS[name]


def request_column(name: str) -> Column:
    """Of requests.parquet, `world` included."""
    return WORLD if name == "world" else REQUESTS[name]


def markdown() -> str:
    """Both tables."""
    lines = [
        "# Columns of the run log",
        "",
        "Made by `python -m engine.telemetry.columns`; the same words are in the parquet files as metadata.",
        "Times are in ns from the start of the run. A block is `block_size` positions of KV in every layer.",
    ]
    files = {
        "steps.parquet: a row a step": {
            name: step_column(name) for name in ("world", *STEP_COLUMNS, "part_...")
        },
        "requests.parquet: a row a request": {
            name: request_column(name) for name in ("world", *REQUEST_COLUMNS)
        },
    }
    for title, columns in files.items():
        lines += ["", f"## {title}", "", "| column | unit | what |", "|---|---|---|"]
        lines += [f"| `{name}` | {unit} | {text} |" for name, (unit, text) in columns.items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(markdown(), end="")
