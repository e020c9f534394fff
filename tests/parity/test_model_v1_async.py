"""The model of vLLM V1's AsyncScheduler keeps what any scheduler must keep, on scenarios nobody recorded."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

from tests.parity.model_v1 import Record
from tests.parity.model_v1_async import ModelV1Async
from tests.parity.test_models import scenario_v1

NUM_SCENARIOS = 400


def test_blocks_budget_seats_and_tokens_are_kept() -> None:
    ends: Counter[str] = Counter()
    for seed in range(NUM_SCENARIOS):
        scenario = scenario_v1(random.Random(f"vllm_v1_async {seed}"))
        model = ModelV1Async(scenario)
        records = []
        for record in model.records():
            if model.defect is not None:
                break
            check_state(model, record)
            records.append(record)
        ends[model.defect or "ended"] += 1
        ends["ended while it waited"] += sum(ended_while_waiting(record) for record in records)
        if model.defect is None:
            check_requests(scenario, records)
    assert ends["ended"] > NUM_SCENARIOS / 2
    assert ends["ended while it waited"] > 10


def check_state(model: ModelV1Async, record: Record) -> None:
    """Between two calls: every block free or held once, limits kept, the plan of this call in flight."""
    assert model.free == model.usable - sum(job.blocks for job in model.running)
    assert all(job.blocks * model.block_size >= job.computed for job in model.running)
    assert all(job.blocks == job.pending == job.computed == 0 for job in model.waiting)
    assert len(model.running) <= model.max_seqs
    assert len(model.in_flight) == ("plan" in record)
    tokens = [tokens for _, tokens in record.get("plan", {}).get("tokens", [])]
    assert sum(tokens) <= model.max_tokens
    assert all(tokens)


def check_requests(scenario: dict[str, Any], records: list[Record]) -> None:
    """Each request ends once, with as many tokens as it may have, and no step too many was planned for it."""
    finished = Counter(name for record in records for name in record.get("update", {}).get("finished", []))
    accepted = Counter(name for record in records for name in record.get("update", {}).get("accepted", []))
    sampled = Counter(name for record in records for name in record.get("plan", {}).get("samples", []))
    window = scenario["config"]["max_model_len"]
    for item in scenario["requests"]:
        room = window - len(item["prompt_token_ids"])
        assert finished[item["id"]] == 1
        assert accepted[item["id"]] == sampled[item["id"]] == min(item["max_tokens"], room)


def ended_while_waiting(record: Record) -> bool:
    """A victim whose last token was in flight."""
    return bool(
        set(record.get("plan", {}).get("waiting", ())) & set(record.get("update", {}).get("finished", ()))
    )
