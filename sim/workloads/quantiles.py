"""Measured distributions of lengths: quantiles, and quantiles of the output for each band of prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated

import numpy as np

from engine.core.fields import AtLeast, AtMost, Count, check_fields
from sim.workloads.base import FloatArray, IntArray, WorkloadError
from sim.workloads.lengths import Lengths


@dataclass(frozen=True, slots=True)
class EmpiricalQuantiles(Lengths):
    """A measured distribution: lengths at some cumulative probabilities, and straight lines between them."""

    probabilities: Sequence[Annotated[float, AtLeast(0), AtMost(1)]]
    """From 0 to 1, ascending."""
    tokens: Sequence[Annotated[float, AtLeast(1)]]
    """The length at each: the smallest first, the largest last."""

    def __post_init__(self) -> None:
        check_fields(self)
        p, q = list(self.probabilities), list(self.tokens)
        if len(p) != len(q) or len(p) < 2:
            raise WorkloadError(
                f"EmpiricalQuantiles: {len(p)} probabilities and {len(q)} tokens: give 2 or more of both"
            )
        if p[0] != 0 or p[-1] != 1 or not all(a < b for a, b in pairwise(p)):
            raise WorkloadError(
                f"EmpiricalQuantiles: probabilities must ascend from 0 to 1, but they are {p}"
            )
        if not all(a <= b for a, b in pairwise(q)):
            raise WorkloadError(f"EmpiricalQuantiles: tokens must not descend, but they are {q}")

    def at(self, u: FloatArray) -> IntArray:
        """Interpolated, then rounded to whole tokens."""
        return np.rint(np.interp(u, self.probabilities, self.tokens)).astype(np.int64)


@dataclass(frozen=True, slots=True)
class ByPromptLength:
    """Output lengths that depend on the prompt: a distribution for each band of prompt lengths.

    Band i holds the prompts longer than upper_bounds[i-1] and not longer than upper_bounds[i]; the last band
    has no upper bound.
    """

    upper_bounds: Sequence[Count]
    bands: Sequence[Lengths]

    def __post_init__(self) -> None:
        check_fields(self)
        bounds = list(self.upper_bounds)
        if len(self.bands) != len(bounds) + 1:
            raise WorkloadError(
                f"ByPromptLength: {len(bounds)} upper bounds make {len(bounds) + 1} bands, "
                f"but {len(self.bands)} are given"
            )
        if not all(a < b for a, b in pairwise(bounds)):
            raise WorkloadError(f"ByPromptLength: upper_bounds must ascend, but they are {bounds}")

    def given(self, rng: np.random.Generator, num_prompt_tokens: IntArray) -> IntArray:
        """Draw an output length for each prompt from the distribution of its band."""
        u = rng.random(len(num_prompt_tokens))
        band_of = np.searchsorted(
            np.asarray(self.upper_bounds, dtype=np.int64), num_prompt_tokens, side="left"
        )
        lengths = np.empty(len(u), np.int64)
        for i, band in enumerate(self.bands):
            lengths[band_of == i] = band.at(u[band_of == i])
        return lengths
