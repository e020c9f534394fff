"""How rows become requests: lengths within the window, limits, priorities and sampling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import numpy as np

from engine.core.fields import Count, Natural, NonNegative, Share, check_fields
from engine.core.spec import RequestSpec, Sampling
from sim.streams import stream
from sim.workloads.base import IntArray, Labels, Prepared, Rows, WorkloadError
from sim.workloads.transform import FITS
from sim.workloads.treatment import treatment

T = TypeVar("T")


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
    clients: Mapping[str, NonNegative] | None = None
    """Client -> weight with which a request is its; None: those that the trace names, if it does."""
    temperature: NonNegative = 0.0
    top_k: Natural = 0
    top_p: Share = 1.0
    stop_token_ids: Sequence[Natural] = ()

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("priorities", "clients"):
            weights = getattr(self, name)
            if weights is not None and not sum(weights.values()):
                raise WorkloadError(f"{name} are {weights}: one weight at least must be above 0")
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
        max_tokens = self._max_tokens(fitted.rows, max_model_len)
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
        ids = rows.labels.request_id or _numbered(num_drawn)
        prompts = rows.labels.prompt_token_ids  # one that was clipped keeps its end, as vLLM truncates
        priorities = self._priorities(rows.labels, seed, num_drawn)
        clients = self._clients(rows.labels, seed, num_drawn)
        seeds = stream(seed, "workload/sampling seeds").integers(2**48, size=num_drawn).tolist()
        columns = (
            rows.number,
            rows.arrival_ns,
            rows.num_prompt_tokens,
            max_tokens,
            rows.num_output_tokens,
        )
        specs = [
            RequestSpec(
                request_id=ids[number],
                arrival_ns=arrival_ns,
                num_prompt_tokens=num_prompt_tokens,
                max_tokens=limit,
                num_output_tokens=num_output_tokens if prompts is None else None,
                n=self.n,
                priority=priorities[number],
                prompt_token_ids=None if prompts is None else prompts[number][-num_prompt_tokens:],
                sampling=self._sampling(seeds[number]),
                client=clients[number],
            )
            for number, arrival_ns, num_prompt_tokens, limit, num_output_tokens in zip(
                *(column.tolist() for column in columns), strict=True
            )
        ]
        return sorted(specs, key=lambda spec: (spec.arrival_ns, spec.request_id))  # ids may be the trace's

    def _max_tokens(self, rows: Rows, max_model_len: int) -> IntArray:
        """At least 1 even for a prompt that leaves no room: that request is for the scheduler to reject."""
        limits = max_model_len - rows.num_prompt_tokens
        if self.max_tokens is not None:
            limits = np.minimum(limits, self.max_tokens)
        if rows.labels.max_tokens is not None:
            limits = np.minimum(limits, np.array(rows.labels.max_tokens, np.int64)[rows.number])
        return np.maximum(limits, 1)

    def _sampling(self, seed: int) -> Sampling:
        return Sampling(self.temperature, self.top_k, self.top_p, seed, tuple(self.stop_token_ids))

    def _priorities(self, labels: Labels, seed: int, num_drawn: int) -> Sequence[int]:
        if self.priorities is None:
            return labels.priority or [0] * num_drawn
        return _drawn(self.priorities, seed, "workload/priorities", num_drawn)

    def _clients(self, labels: Labels, seed: int, num_drawn: int) -> Sequence[str | None]:
        if self.clients is None:
            return labels.client or [None] * num_drawn
        return _drawn(self.clients, seed, "workload/clients", num_drawn)


def _numbered(num_requests: int) -> list[str]:
    """The ids of requests that have none: r00000 and so on, by position in the trace."""
    num_digits = max(5, len(str(num_requests - 1)))
    return [f"r{number:0{num_digits}d}" for number in range(num_requests)]


def _drawn(weights: Mapping[T, float], seed: int, name: str, size: int) -> list[T]:
    """So many of the keys, each with a probability in proportion to its weight, from a named stream."""
    keys, shares = list(weights), np.array(list(weights.values()), np.float64)
    picks = stream(seed, name).choice(len(keys), size=size, p=shares / shares.sum())
    return [keys[pick] for pick in picks.tolist()]


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
