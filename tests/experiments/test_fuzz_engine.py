"""A slice of the fuzz of the engine, and that it sees what it is there to see."""

from __future__ import annotations

import pytest
import torch

from engine.core.events import ENDINGS
from engine.runtime import kernels, sampler
from engine.runtime.sequences import Sequences
from experiments.fuzz_cases import FuzzFailed
from experiments.fuzz_engine import fuzz


def test_good_requests_get_their_tokens_and_bad_ones_a_reason() -> None:
    total = sum(fuzz(seed=7, runs=range(12)), start=next(iter(fuzz(seed=7, runs=[12]))))
    for name in (*ENDINGS, "refused", "preemptions"):
        assert total[name] > 0, total


def test_a_row_that_is_not_finite_and_is_served_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(logits: torch.Tensor, draws: list[sampler.Draw]) -> list[int]:
        return [int(logits[draw.row].argmax()) for draw in draws]

    monkeypatch.setattr(kernels, "sample", careless)
    with pytest.raises(FuzzFailed, match="FAILED"):
        list(fuzz(seed=7, runs=range(12)))


def test_a_token_outside_the_vocabulary_that_passes_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sequences, "_check", lambda self, spec, kind, token_ids: None)
    with pytest.raises((FuzzFailed, IndexError)):
        list(fuzz(seed=7, runs=range(12)))
