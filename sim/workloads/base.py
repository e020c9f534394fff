"""The words of this package: Workload, the Rows that every workload starts from, and its one error."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.core.errors import UserError
from engine.core.spec import RequestSpec

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]

MAX_TOKENS = 2**31 - 1
"""No prompt and no output is longer, so products of two lengths fit into 64 bits."""
_YEAR_NS = 365 * 86_400 * 10**9
MAX_YEARS = 10
MAX_SPAN_NS = MAX_YEARS * _YEAR_NS
"""No workload lasts longer: a unit or a rate would be wrong, and 64 bits hold 292 years of nanoseconds."""


class WorkloadError(UserError):
    """A trace or an option that cannot be used; raised before the first request is served."""


@dataclass(frozen=True, slots=True)
class Prompts:
    """What people wrote, and how to read the answers."""

    by_request_id: Mapping[str, object]
    """Text, messages, or token ids."""
    decode: Callable[[Sequence[int]], str]


@dataclass(frozen=True, slots=True)
class Prepared:
    """The requests of a run, and what was done to make them."""

    specs: list[RequestSpec]
    figures: Mapping[str, float]
    """For summary.json: the offered rate, and what is left of the lengths (see treatment.py)."""
    notes: tuple[str, ...]
    """One line each; the first says how many requests of how many there are."""
    warnings: tuple[str, ...] = ()
    """One line each: what makes these requests different from those of the source."""
    prompts: Prompts | None = None
    """None for requests of which the lengths are known and nothing else."""


class Workload(ABC):
    """Makes the requests of a run.

    The list is sorted by (arrival_ns, request_id) and starts at time 0. A request keeps its id, seed and
    priority in whatever slice it is read: "r00042" is row 42 of the trace, counted from 0.
    """

    __slots__ = ()

    @abstractmethod
    def prepare(self, max_model_len: int) -> Prepared:
        """All requests, for a model whose window holds `max_model_len` tokens of prompt and output."""

    def requests(self, max_model_len: int) -> list[RequestSpec]:
        """The requests alone."""
        return self.prepare(max_model_len).specs


@dataclass(frozen=True, slots=True, eq=False)
class Labels:
    """What a trace says of its requests beside times and lengths: columns in the order of the trace.

    A column that the trace does not have is None.
    """

    request_id: Sequence[str] | None = None
    client: Sequence[str | None] | None = None
    priority: Sequence[int] | None = None
    max_tokens: Sequence[int] | None = None
    """The limit on output tokens that the client sent."""
    prompt_token_ids: Sequence[tuple[int, ...]] | None = None
    """Of requests whose outputs end by themselves or at max_tokens: their recorded output is that limit."""


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Arrivals and lengths before they are requests: equal columns, in order of (arrival_ns, number)."""

    number: IntArray
    """Position in the trace, from 0: the identity of a request."""
    arrival_ns: IntArray
    num_prompt_tokens: IntArray
    num_output_tokens: IntArray
    notes: tuple[str, ...] = ()
    """What a reader did to the whole trace, one line each."""
    labels: Labels = Labels()
    """Of the whole trace, whichever part of it these rows are: label `number[i]` is that of row i."""

    def __len__(self) -> int:
        return len(self.number)

    @property
    def total_tokens(self) -> IntArray:
        """Prompt and output of each request."""
        return self.num_prompt_tokens + self.num_output_tokens


def ordered_rows(
    arrival_ns: IntArray,
    num_prompt_tokens: IntArray,
    num_output_tokens: IntArray,
    labels: Labels = Labels(),
) -> Rows:
    """Rows from columns in the order of the trace, which need not be that of time."""
    order = np.argsort(arrival_ns, kind="stable")
    return Rows(
        order.astype(np.int64),
        arrival_ns[order],
        num_prompt_tokens[order],
        num_output_tokens[order],
        labels=labels,
    )


def check_span(span_ns: float, cause: str) -> None:
    """Raise unless the last arrival lies within MAX_YEARS of the first; `cause` is the key that says so."""
    if not span_ns <= MAX_SPAN_NS:
        raise WorkloadError(
            f"{cause}: the last request would arrive {span_ns / _YEAR_NS:,.0f} years after the first, "
            f"at most {MAX_YEARS} are allowed"
        )
