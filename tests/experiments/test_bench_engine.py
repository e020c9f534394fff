"""The fixed workload on which engines are compared, and the benchmark that serves it."""

from __future__ import annotations

import hashlib
import json

import pytest

from experiments import bench_engine


def test_the_fixed_workload_is_the_one_that_was_measured() -> None:
    specs = bench_engine.mixed64()
    assert len(specs) == 64
    assert sum(spec.num_prompt_tokens for spec in specs) == 18_178
    assert sum(spec.max_tokens for spec in specs) == 8_837
    tokens = json.dumps([[spec.prompt_token_ids, spec.max_tokens] for spec in specs])
    assert hashlib.sha256(tokens.encode()).hexdigest() == DIGEST
    assert bench_engine.mixed64(3) == specs[:3]


DIGEST = "16ac7caf411cb7cb21e19fba5b101a55aa307029fd51a38a9395a3685cfc640c"


def test_the_benchmark_needs_no_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    monkeypatch.setattr(bench_engine, "LLAMA_100M", {**bench_engine.LLAMA_100M, **tiny, **heads})
    bench_engine.main(["--requests", "2", "--threads", "1"])
    out = capsys.readouterr().out
    assert "189" in out  # output tokens of the first two
