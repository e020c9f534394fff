"""A request and a capacity that cannot be are refused, with the field named."""

from __future__ import annotations

from typing import Any

import pytest

from engine.core.errors import UserError
from engine.core.spec import Capacity, RequestSpec, Sampling


@pytest.mark.parametrize(
    ("field", "value", "complaint"),
    [
        ("num_prompt_tokens", 0, "num_prompt_tokens is 0, must be at least 1"),
        ("max_tokens", 0, "max_tokens is 0, must be at least 1"),
        ("n", 0, "n is 0, must be at least 1"),
        ("num_output_tokens", 0, "num_output_tokens must be at least 1"),
        ("arrival_ns", -1, "arrival_ns is -1, must not be negative"),
        ("prompt_token_ids", (1, 2), "2 prompt token ids, but num_prompt_tokens is 4"),
    ],
)
def test_a_request_that_cannot_be(field: str, value: Any, complaint: str) -> None:
    fields: dict[str, Any] = {"request_id": "a", "arrival_ns": 0, "num_prompt_tokens": 4, "max_tokens": 4}
    with pytest.raises(ValueError, match=f"^request a: {complaint}"):
        RequestSpec(**{**fields, field: value})


@pytest.mark.parametrize(
    ("numbers", "complaint"),
    [
        ((4, 0, 0), "Capacity.block_size is 0: must be a whole number, at least 1"),
        ((0, 0, 4), "no room for a single block: raise the memory budget or lower the block size"),
        ((4, -1, 4), "Capacity.num_host_blocks is -1: must be a whole number, at least 0"),
    ],
)
def test_a_capacity_that_cannot_be(numbers: tuple[int, int, int], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Capacity(*numbers)


@pytest.mark.parametrize(
    ("max_tokens", "num_output_tokens", "window", "limit"),
    [(8, None, 64, 18), (8, 3, 64, 13), (8, 30, 64, 18), (8, 3, 12, 12)],
)
def test_a_sequence_ends_at_the_first_of_its_limits(
    max_tokens: int, num_output_tokens: int | None, window: int, limit: int
) -> None:
    spec = RequestSpec("a", 0, 10, max_tokens, num_output_tokens)
    assert spec.length_limit(window) == limit


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("temperature", (-1, -1e-9, NAN, INF, "hot", None, True)),
        ("top_k", (-1, 2.5, "3", None)),
        ("top_p", (0, -0.1, 1.001, NAN, "all", None)),
        ("seed", (1.5, "x", None)),
        ("stop_token_ids", (2, (2, -1), (2.0,), ("</s>",))),
    ],
)
def test_sampling_that_cannot_be(field: str, values: tuple[Any, ...]) -> None:
    for value in values:
        with pytest.raises(UserError, match=rf"^Sampling\.{field}(\[\d\])? is .*: must be "):
            Sampling(**{field: value})


def test_sampling_at_the_edges() -> None:
    Sampling(temperature=5e-324, top_k=10**9, top_p=1e-12, seed=-3, stop_token_ids=(0, 2))
    Sampling(temperature=2, top_p=1)
