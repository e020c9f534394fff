"""Distributions of prompt and output lengths, each given by its inverse CDF.

One uniform number makes one length, so the first n lengths are the same however many follow, and two
distributions drawn from the same stream are comparable request by request.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, Protocol

import numpy as np
from scipy.special import ndtri

from engine.core.fields import AtLeast, Count, NonNegative, check_fields
from sim.workloads.base import FloatArray, IntArray, WorkloadError


class OutputLengths(Protocol):
    """Draws an output length for each request, whose prompt length is known."""

    def given(self, rng: np.random.Generator, num_prompt_tokens: IntArray) -> IntArray:
        """One output length for each prompt length."""
        ...


class Lengths(ABC):
    """A distribution of lengths in tokens, at least 1."""

    __slots__ = ()

    @abstractmethod
    def at(self, u: FloatArray) -> IntArray:
        """The lengths at these cumulative probabilities, each in [0, 1)."""

    def sample(self, rng: np.random.Generator, n: int) -> IntArray:
        """Draw n lengths."""
        return self.at(rng.random(n))

    def given(self, rng: np.random.Generator, num_prompt_tokens: IntArray) -> IntArray:
        """Draw an output length for each prompt, independently of the prompt."""
        return self.sample(rng, len(num_prompt_tokens))


@dataclass(frozen=True, slots=True)
class Fixed(Lengths):
    """Always the same length."""

    num_tokens: Count

    def __post_init__(self) -> None:
        check_fields(self)

    def at(self, u: FloatArray) -> IntArray:
        """That length."""
        return np.full(len(u), self.num_tokens, np.int64)


@dataclass(frozen=True, slots=True)
class Uniform(Lengths):
    """Every whole number from `low` to `high`, both included, equally often."""

    low: Count
    high: Count

    def __post_init__(self) -> None:
        check_fields(self)
        if self.low > self.high:
            raise WorkloadError(f"Uniform: low is {self.low}, which is above high ({self.high})")

    def at(self, u: FloatArray) -> IntArray:
        """`low` + floor(u x number of values)."""
        return self.low + np.floor(u * (self.high - self.low + 1)).astype(np.int64)


@dataclass(frozen=True, slots=True)
class LogNormal(Lengths):
    """exp(Normal(ln median_tokens, sigma)), rounded and kept within [1, max_tokens].

    Before that, its mean is median_tokens x exp(sigma^2 / 2).
    """

    median_tokens: Annotated[float, AtLeast(1)]
    sigma: NonNegative
    max_tokens: Count = 1_000_000

    def __post_init__(self) -> None:
        check_fields(self)

    def at(self, u: FloatArray) -> IntArray:
        """The normal quantile, exponentiated; clipped before that, so that it cannot overflow."""
        log_tokens = np.log(self.median_tokens) + self.sigma * ndtri(np.maximum(u, np.finfo(np.float64).tiny))
        tokens = np.rint(np.exp(np.clip(log_tokens, 0.0, np.log(self.max_tokens))))
        return np.asarray(tokens, dtype=np.int64)
