"""Metrics by client, worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from engine.core.drive import drive
from engine.core.policies.admission import FullPrompt
from engine.core.policies.base import Policies
from engine.core.policies.batching import DecodeFirst
from engine.core.policies.order import Fcfs
from engine.core.policies.reservation import OnDemand
from engine.core.policies.restore import Recompute
from engine.core.policies.victim import LastAdmitted
from engine.core.scheduler import Scheduler
from engine.core.serving import Serving
from engine.core.sources import Listed
from engine.core.spec import Capacity, Limits, RequestSpec
from engine.core.work import Work
from engine.telemetry.clients import client_metrics, client_table
from engine.telemetry.metrics import summarize
from engine.telemetry.recorder import Recorder
from engine.telemetry.runlog import RunLog, read_run, write_run
from engine.telemetry.schema import World
from sim.backend import SimulatedBackend
from sim.clock import SimulatedClock
from tests.telemetry.scripted import two_requests

MS = 1_000_000
CAPACITY = Capacity(64, 0, 4)
LIMITS = Limits(max_num_seqs=8, max_num_batched_tokens=64, max_model_len=100)
POLICIES = Policies(Fcfs(), FullPrompt(), DecodeFirst(), LastAdmitted(), Recompute(), OnDemand())


class StepCost:
    """A step takes 10 ms, whatever it computes."""

    def parts_ns(self, step: Work) -> dict[str, float]:
        return {"fixed": 10.0 * MS}

    def recompute_ns(self, num_tokens: int) -> int:
        return 0

    def transfer_ns(self, num_blocks: int) -> int:
        return 0


def served(specs: list[RequestSpec]) -> RunLog:
    recorder = Recorder()
    backend = SimulatedBackend(CAPACITY, StepCost(), LIMITS.max_model_len)
    drive(
        Serving(Scheduler(CAPACITY, LIMITS, POLICIES), backend, [recorder]), Listed(specs), SimulatedClock()
    )
    return RunLog.of(recorder, World.SIMULATED, CAPACITY)


def spec(
    request_id: str, arrival_ms: int, num_prompt: int, num_output: int, client: str | None
) -> RequestSpec:
    return RequestSpec(request_id, arrival_ms * MS, num_prompt, 50, num_output, client=client)


SPECS = [
    spec("a1", 0, 10, 3, "ann"),  # tokens at 10, 20, 30 ms
    spec("a2", 15, 4, 1, "ann"),  # waits for the step at 20 ms, token at 30 ms: the backlog is 0 to 30 ms
    spec("a3", 100, 6, 2, "ann"),  # tokens at 110, 120 ms
    spec("b1", 100, 8, 5, "bob"),  # tokens at 110 to 150 ms
    spec("none", 100, 8, 2, None),
]


def test_each_client_is_counted_by_itself() -> None:
    table = client_table(served(SPECS).requests)
    assert table.index.tolist() == ["ann", "bob"]
    ann, bob = table.loc["ann"], table.loc["bob"]
    assert (ann["num_requests"], ann["completed"]) == (3, 3)
    assert (ann["total_input_tokens"], ann["total_output_tokens"]) == (20, 6)
    assert ann["mean_ttft_ms"] == pytest.approx((10 + 15 + 10) / 3)
    assert ann["mean_tpot_ms"] == 10 and bob["mean_tpot_ms"] == 10
    assert ann["p99_e2el_ms"] == pytest.approx(20 + 0.98 * 10)
    assert ann["service"] == 20 + 2 * 6 and bob["service"] == 8 + 2 * 5
    assert ann["backlog_s"] == pytest.approx(0.030 + 0.020) and bob["backlog_s"] == pytest.approx(0.050)
    assert ann["service_rate"] == pytest.approx(32 / 0.05)


def test_a_short_request_within_a_long_one_adds_nothing_to_the_backlog() -> None:
    log = served([spec("c1", 0, 4, 9, "cid"), spec("c2", 10, 4, 1, "cid"), spec("c3", 70, 4, 1, "cid")])
    assert client_table(log.requests).loc["cid", "backlog_s"] == pytest.approx(0.090)


def test_jain_is_taken_over_the_rates_of_service() -> None:
    rates = [32 / 0.05, 18 / 0.05]
    jain = sum(rates) ** 2 / (2 * sum(rate**2 for rate in rates))
    summary = summarize(served(SPECS))
    assert (summary["num_clients"], summary["jain_index"]) == (2, pytest.approx(jain))


def test_a_client_that_was_only_rejected_has_no_rate_and_does_not_count() -> None:
    log = served([*SPECS, spec("long", 0, 200, 2, "eve")])
    eve = client_table(log.requests).loc["eve"]
    assert (eve["num_requests"], eve["completed"], eve["service"]) == (1, 0, 0)
    assert math.isnan(eve["service_rate"]) and math.isnan(eve["mean_ttft_ms"])
    assert client_metrics(log.requests)["jain_index"] == client_metrics(served(SPECS).requests)["jain_index"]


def test_without_clients_nothing_is_told(tmp_path: Path) -> None:
    log = served([replace(spec, client=None) for spec in SPECS])
    assert client_table(log.requests).empty
    assert not {"num_clients", "jain_index"} & summarize(log).keys()
    assert client_table(two_requests().log().requests).empty


def test_the_column_survives_on_disk_with_its_gaps(tmp_path: Path) -> None:
    log = served(SPECS)
    write_run(log, tmp_path, summarize(log))
    back = read_run(tmp_path).requests
    pd.testing.assert_series_equal(back["client"], log.requests["client"])
    assert back.set_index("request_id")["client"].fillna("-").to_dict() == {
        spec.request_id: spec.client or "-" for spec in SPECS
    }
