"""How rows become requests: lengths within the window, limits, priorities and sampling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from engine.core.backend import RequestSpec, Sampling
from engine.core.fields import Count, Natural, NonNegative, Share, check_fields
from sim.streams import stream
from sim.workloads.base import IntArray, Prepared, Rows, WorkloadError
from sim.workloads.transform import FITS
from sim.workloads.treatment import treatment


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Options that every workload has; what is left to chance depends on (seed, row), so slices agree."""

    fit_lengths: Literal["scale", "clip", "none"] = "none"
    """What to do with requests longer than the model's window: scale, clip or none (see transform.py)."""
    fit_quantile: Share = 0.99
    """scale: this share of the requests fits by scaling alone, longer ones are clipped. 1: none are."""
    max_tokens: Count | None = None
    """The limit on output tokens that the server is told; None: what the window leaves, as vLLM's default."""
    n: Count = 1
    """Sequences sampled in parallel from each prompt."""
    priorities: Mapping[int, NonNegative] | None = None
    """Priority (lower goes first) -> weight with which it is drawn; None: all 0."""
    temperature: NonNegative = 0.0
    top_k: Natural = 0
    top_p: Share = 1.0
    stop_token_ids: Sequence[Natural] = ()

    def __post_init__(self) -> None:
        check_fields(self)
        if self.priorities is not None and not sum(self.priorities.values()):
            raise WorkloadError(f"priorities are {self.priorities}: one weight at least must be above 0")
        self._sampling(seed=0)  # refuses what cannot be sampled with

    def prepare(self, source: Rows, max_model_len: int, seed: int, num_available: int) -> Prepared:
        """The requests of these rows, for a window of `max_model_len` tokens of prompt and output, with an
        account of what was done to them; the source had `num_available` rows.
        """
        if max_model_len < 2:
            raise WorkloadError(
                f"max_model_len is {max_model_len}: must be 2 or more: a prompt token, an output token"
            )
        rows = _at_least_one(source)
        fitted = FITS[self.fit_lengths](rows, max_model_len, self.fit_quantile)
        max_tokens = self._max_tokens(max_model_len - fitted.rows.num_prompt_tokens)
        done = treatment(rows, fitted, max_tokens, max_model_len, num_available)
        lengths = () if done.lengths is None else (done.lengths,)
        notes = (done.headline, *rows.notes)
        return Prepared(
            self._specs(fitted.rows, max_tokens, seed),
            done.figures,
            (*notes, *lengths) if done.is_faithful else notes,
            () if done.is_faithful else lengths,
        )

    def _specs(self, rows: Rows, max_tokens: IntArray, seed: int) -> list[RequestSpec]:
        num_drawn = int(rows.number.max()) + 1
        id_digits = max(5, len(str(num_drawn - 1)))
        columns = (
            rows.number,
            rows.arrival_ns,
            rows.num_prompt_tokens,
            max_tokens,
            rows.num_output_tokens,
            self._priorities(seed, num_drawn)[rows.number],
            stream(seed, "workload/sampling seeds").integers(2**48, size=num_drawn)[rows.number],
        )
        return [
            RequestSpec(
                request_id=f"r{number:0{id_digits}d}",
                arrival_ns=arrival_ns,
                num_prompt_tokens=num_prompt_tokens,
                max_tokens=limit,
                num_output_tokens=num_output_tokens,
                n=self.n,
                priority=priority,
                sampling=self._sampling(draw_seed),
            )
            for number, arrival_ns, num_prompt_tokens, limit, num_output_tokens, priority, draw_seed in zip(
                *(column.tolist() for column in columns), strict=True
            )
        ]

    def _max_tokens(self, room_tokens: IntArray) -> IntArray:
        """At least 1 even for a prompt that leaves no room: that request is for the scheduler to reject."""
        limits = room_tokens if self.max_tokens is None else np.minimum(room_tokens, self.max_tokens)
        return np.maximum(limits, 1)

    def _sampling(self, seed: int) -> Sampling:
        return Sampling(self.temperature, self.top_k, self.top_p, seed, tuple(self.stop_token_ids))

    def _priorities(self, seed: int, num_drawn: int) -> IntArray:
        if self.priorities is None:
            return np.zeros(num_drawn, np.int64)
        weights = np.array(list(self.priorities.values()), np.float64)
        rng = stream(seed, "workload/priorities")
        return rng.choice(
            np.array(list(self.priorities), np.int64), size=num_drawn, p=weights / weights.sum()
        )


def _at_least_one(rows: Rows) -> Rows:
    """Raise lengths of 0 to 1, and note how many there were.

    A request without a prompt cannot be computed, and one without an output still costs a step.
    """
    zeros = {"prompt": rows.num_prompt_tokens == 0, "output": rows.num_output_tokens == 0}
    notes = [
        f"lengths: {int(mask.sum()):,} of {len(rows):,} requests have an empty {name}: served as 1 token"
        for name, mask in zeros.items()
        if mask.any()
    ]
    return replace(
        rows,
        num_prompt_tokens=np.maximum(rows.num_prompt_tokens, 1),
        num_output_tokens=np.maximum(rows.num_output_tokens, 1),
        notes=(*rows.notes, *notes),
    )
