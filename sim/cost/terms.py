"""The terms of the fitted cost model: what is counted in a step, and what one unit of it costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from engine.core.work import Work

FEATURES = (
    "num_tokens",
    "num_seqs",
    "num_prefill_chunks",
    "num_sampled",
    "decode_context_tokens",
    "prefill_context_tokens",
    "prefill_attention_pairs",
    "num_blocks_swapped_out",
    "num_blocks_swapped_in",
    "num_blocks_copied",
    "num_transfers",
)
"""What of a step's `Work` the terms are made of."""


@dataclass(frozen=True, slots=True)
class Coefficients:
    """Nanoseconds for one unit of each term, in the order of `terms`."""

    ns_per_step: float
    ns_per_token_below_knee: float
    ns_per_token_above_knee: float
    ns_per_seq: float
    ns_per_prefill_chunk: float
    ns_per_sampled_token: float
    ns_per_decode_context_token: float
    ns_per_prefill_context_token: float
    ns_per_prefill_attention_pair: float
    ns_per_block_swapped_out: float
    ns_per_block_swapped_in: float
    ns_per_block_copied: float
    ns_per_transfer: float


def terms(step: Work, knee_tokens: int) -> tuple[int, ...]:
    """The counts that the coefficients multiply.

    Tokens are counted below and above a knee. With a slope for each, both at least 0, linear layers may be
    convex in the batch (weights are read once, then arithmetic counts) or concave (small batches vectorize
    badly).
    """
    num_below = min(step.num_tokens, knee_tokens)
    return (
        1,
        num_below,
        step.num_tokens - num_below,
        step.num_seqs,
        step.num_prefill_chunks,
        step.num_sampled,
        step.decode_context_tokens,
        step.prefill_context_tokens,
        step.prefill_attention_pairs,
        step.num_blocks_swapped_out,
        step.num_blocks_swapped_in,
        step.num_blocks_copied,
        step.num_transfers,
    )


MAX_MEDIAN_ERROR = 0.10
"""Above this median error of the steps that it was fitted to, a cost model is not to be used in silence."""


@dataclass(frozen=True, slots=True)
class FitReport:
    """How well the coefficients describe the steps that they were fitted to.

    An error is (fitted - measured) / measured.
    """

    num_steps: int
    num_outliers: int
    """Steps that the fit trusts less than half: something else used the machine."""
    median_abs_error: float
    p90_abs_error: float
    total_error: float
    """Of the sum of all durations, outliers included: what a throughput would be off by."""
    r2: float
    """Variance explained, over the steps that are no outliers."""
    share_of_term: Mapping[str, float]
    """Share of each coefficient in the fitted total."""
    unmeasured: tuple[str, ...]
    """Coefficients of which the measured steps say nothing; they are 0."""

    @property
    def caveat(self) -> str | None:
        """What whoever uses the fit must know; None if it describes its own steps well enough."""
        if self.median_abs_error <= MAX_MEDIAN_ERROR:
            return None
        return (
            f"the calibration's own steps differ from the fitted ones by {self.median_abs_error:.1%} in the "
            f"median, above {MAX_MEDIAN_ERROR:.0%}: calibrate again on a quieter machine"
        )
