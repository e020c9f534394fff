"""The fixed workload on which engines are compared, and the benchmark that serves it."""

from __future__ import annotations

import hashlib
import json

import pytest

from engine.core.drive import Clock, Source, drive
from engine.core.serving import Serving
from experiments import bench_engine
from experiments.bench_engine import Measurement


def test_the_fixed_workload_is_the_one_that_was_measured() -> None:
    specs = bench_engine.mixed64()
    assert len(specs) == 64
    assert sum(spec.num_prompt_tokens for spec in specs) == 18_178
    assert sum(spec.max_tokens for spec in specs) == 8_837
    tokens = json.dumps([[spec.prompt_token_ids, spec.max_tokens] for spec in specs])
    assert hashlib.sha256(tokens.encode()).hexdigest() == DIGEST
    assert bench_engine.mixed64(3) == specs[:3]


DIGEST = "16ac7caf411cb7cb21e19fba5b101a55aa307029fd51a38a9395a3685cfc640c"


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model so small that a benchmark takes a moment."""
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    monkeypatch.setattr(bench_engine, "LLAMA_100M", {**bench_engine.LLAMA_100M, **sizes, **heads})


@pytest.mark.usefixtures("tiny")
def test_the_benchmark_needs_no_file(capsys: pytest.CaptureFixture[str]) -> None:
    bench_engine.main(["--requests", "2", "--threads", "1"])
    out = capsys.readouterr().out
    assert "189" in out  # output tokens of the first two
    assert "in flight" not in out


@pytest.mark.usefixtures("tiny")
def test_each_number_of_plans_in_flight_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    driven: list[int] = []

    def watched(serving: Serving, source: Source, clock: Clock, in_flight: int = 1) -> int:
        driven.append(in_flight)
        return drive(serving, source, clock, in_flight)

    monkeypatch.setattr(bench_engine, "drive", watched)
    engine = bench_engine.Engine(bench_engine.mixed64(2), "float32")
    one, two = bench_engine.measure_by_turns(engine, [1, 2], num_repeats=2)
    assert driven == [1, 1, 2, 1, 2], "the warm-up, then by turns"
    assert "2 in flight" in two.name and "in flight" not in one.name
    for measured in (one, two):
        computing_ns = measured.parts_ns["model"] + measured.parts_ns["sampling"]
        assert measured.model_share == computing_ns / (1e9 * measured.wall_s)
        assert 0 < measured.model_share < 1
    served: list[Measurement] = [one, two._replace(outputs={**two.outputs, "1": [0]})]
    monkeypatch.setattr(engine, "measure", lambda in_flight: served[in_flight - 1])
    with pytest.raises(RuntimeError, match="2 in flight gave other tokens than this engine"):
        bench_engine.measure_by_turns(engine, [1, 2], num_repeats=1)


@pytest.mark.parametrize(("option", "name"), [("--in-flight", "in-flight"), ("--repeats", "repeats")])
def test_none_is_refused(option: str, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench_engine.main([option, "0"])
    assert f"--{name}" in capsys.readouterr().err
