"""What became of a workload on its way to the scheduler: figures for the summary, lines for a person."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sim.workloads.arrivals import mean_rate_per_s
from sim.workloads.base import IntArray, Rows
from sim.workloads.transform import Fitted

ENOUGH = 0.9
"""A workload that keeps less of its tokens than this is another one: that is a warning."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Treatment:
    """Counts of requests, and what is left of their tokens."""

    num_requests: int
    num_available: int
    """In the source."""
    rate_per_s: float
    """Of the arrivals, the reciprocal of the mean gap; NaN if there is no gap."""
    mean_prompt_tokens: float
    mean_output_tokens: float
    max_model_len: int
    longest_tokens: int
    """Of a prompt and its output, as the source has them."""
    scale: float
    """The factor of all lengths."""
    num_clipped: int
    num_too_long: int
    """Their prompts leave no room for a token, so the scheduler rejects them."""
    num_cut: int
    """Their outputs are longer than what the window or max_tokens allows."""
    num_changed: int
    """Served with other lengths than the source has."""
    token_share: float
    """Tokens to be served, of all tokens that the source has for these requests."""

    @property
    def figures(self) -> dict[str, float]:
        """For summary.json; shares are of the requests, token_share is of their tokens."""
        return {
            "offered_rate_per_s": self.rate_per_s,
            "workload_num_available": self.num_available,
            "workload_scale": self.scale,
            "workload_changed_share": self.num_changed / self.num_requests,
            "workload_too_long_share": self.num_too_long / self.num_requests,
            "workload_token_share": self.token_share,
        }

    @property
    def headline(self) -> str:
        """How many requests of how many, how long they are and how fast they come."""
        rate = "all at once" if np.isnan(self.rate_per_s) else f"{self.rate_per_s:.4g} requests/s offered"
        prompt, output = (
            f"{self.mean_prompt_tokens:,.0f} prompt",
            f"{self.mean_output_tokens:,.0f} output tokens",
        )
        counts = f"{self.num_requests:,} of {self.num_available:,} requests"
        return f"workload: {counts}, {rate}, {prompt} and {output} on average"

    @property
    def lengths(self) -> str | None:
        """What was done to the lengths; None if they are those of the source."""
        things = {
            f"all scaled by {self.scale:.3g}": self.scale < 1,
            f"{self.num_clipped:,} clipped": self.num_clipped,
            f"{self.num_too_long:,} with prompts that fill the window, to be rejected": self.num_too_long,
            f"{self.num_cut:,} with outputs cut at their limit": self.num_cut,
        }
        done = [text for text, happened in things.items() if happened]
        if not done:
            return None
        text = (
            f"lengths: of {self.num_requests:,} requests {', '.join(done)}: {self.token_share:.1%} of their "
            f"tokens are served in a window of {self.max_model_len:,} (limits.max_model_len)"
        )
        return text if self.is_faithful else f"{text}; the longest request has {self.longest_tokens:,}"

    @property
    def is_faithful(self) -> bool:
        """Whether this is still the workload of the source."""
        return self.token_share >= ENOUGH and self.scale >= ENOUGH


def treatment(
    source: Rows, fitted: Fitted, max_tokens: IntArray, max_model_len: int, num_available: int
) -> Treatment:
    """Compare the rows of the source with what was made of them."""
    rows = fitted.rows
    outputs = np.minimum(rows.num_output_tokens, max_tokens)
    served = rows.num_prompt_tokens < max_model_len
    changed = (rows.num_prompt_tokens != source.num_prompt_tokens) | (outputs != source.num_output_tokens)
    num_served_tokens = int((rows.num_prompt_tokens + outputs)[served].sum())
    return Treatment(
        num_requests=len(rows),
        num_available=num_available,
        rate_per_s=mean_rate_per_s(rows.arrival_ns),
        mean_prompt_tokens=float(rows.num_prompt_tokens.mean()),
        mean_output_tokens=float(rows.num_output_tokens.mean()),
        max_model_len=max_model_len,
        longest_tokens=int(source.total_tokens.max()),
        scale=fitted.scale,
        num_clipped=fitted.num_clipped,
        num_too_long=int((~served).sum()),
        num_cut=int((served & (outputs < rows.num_output_tokens)).sum()),
        num_changed=int((served & changed).sum()),
        token_share=num_served_tokens / int(source.total_tokens.sum()),
    )
