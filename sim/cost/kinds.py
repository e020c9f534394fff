"""Steps by what they do: an error of a cost model is looked for kind by kind."""

from __future__ import annotations

from engine.core.work import Work

KINDS = ("decode", "mixed", "prefill", "transfer")


def kind(step: Work) -> str:
    """One of KINDS: `transfer` if blocks are moved, whatever is computed; `mixed` if some rows decode."""
    if step.num_transfers:
        return "transfer"
    if not step.num_prefill_chunks:
        return "decode"
    return "prefill" if step.num_prefill_chunks == step.num_seqs else "mixed"
