"""The words of this package: Workload, the Rows that every workload starts from, and its one error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from engine.core.backend import RequestSpec
from engine.core.errors import UserError

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]


class WorkloadError(UserError):
    """A trace or an option that cannot be used; raised before the first request is served."""


class Workload(Protocol):
    """Makes the requests of a run.

    The list is sorted by (arrival_ns, request_id) and starts at time 0. A request keeps its id, seed and
    priority in whatever slice it is read: "r00042" is row 42 of the trace, counted from 0.
    """

    def requests(self, max_model_len: int) -> list[RequestSpec]:
        """All requests, for a model whose window holds `max_model_len` tokens of prompt and output."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Arrivals and lengths before they are requests: equal columns, in order of (arrival_ns, number)."""

    number: IntArray
    """Position in the trace, from 0: the identity of a request."""
    arrival_ns: IntArray
    num_prompt_tokens: IntArray
    num_output_tokens: IntArray

    def __len__(self) -> int:
        return len(self.number)

    @property
    def total_tokens(self) -> IntArray:
        """Prompt and output of each request."""
        return self.num_prompt_tokens + self.num_output_tokens


def ordered_rows(arrival_ns: IntArray, num_prompt_tokens: IntArray, num_output_tokens: IntArray) -> Rows:
    """Rows from columns in the order of the trace, which need not be that of time."""
    order = np.argsort(arrival_ns, kind="stable")
    return Rows(order.astype(np.int64), arrival_ns[order], num_prompt_tokens[order], num_output_tokens[order])
