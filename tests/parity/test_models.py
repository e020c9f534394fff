"""Our core against two independent models of vLLM's schedulers, on scenarios that nobody recorded.

The models must equal the golden traces; then they stand in for the real schedulers on random scenarios. By
hand, over any number of them: python -m tests.parity.test_models vllm_v0 FIRST_SEED LAST_SEED
"""

from __future__ import annotations

import random
import sys
from collections import Counter
from typing import Any

import pytest

from tests.parity.golden import Record, Run, load, names, without
from tests.parity.golden_async import AsyncRun, expected_v1_async
from tests.parity.model_v0 import ModelV0
from tests.parity.model_v1 import ModelV1
from tests.parity.model_v1_async import ModelV1Async
from tests.parity.test_golden import EMPTY, expected_v0, expected_v1

MODELS: dict[str, Any] = {"vllm_v0": ModelV0, "vllm_v1": ModelV1, "vllm_v1_async": ModelV1Async}
EXPECTED: dict[str, Any] = {
    "vllm_v0": expected_v0,
    "vllm_v1": expected_v1,
    "vllm_v1_async": expected_v1_async,
}
NUM_SCENARIOS = 400  # of each dialect, in the suite
SHOWN = [("vllm_v0", name) for name in names("vllm_v0", "v0_")] + [
    (engine, name)
    for engine in ("vllm_v1", "vllm_v1_async")
    for name in names(engine)
    if not name.startswith("prefix")
]


@pytest.mark.parametrize(("engine", "name"), SHOWN)
def test_a_model_decides_what_the_real_scheduler_decided(engine: str, name: str) -> None:
    scenario, trace = load(engine, name)
    modelled = list(MODELS[engine](scenario).records())
    if "raised" in trace[-1]:
        assert modelled[-1]["raised"] in trace[-1]["raised"]
        modelled[-1]["raised"] = trace[-1]["raised"]
    for ours, theirs in zip(modelled, trace, strict=True):
        assert ours == theirs


@pytest.mark.parametrize("engine", MODELS)
def test_our_core_decides_what_the_models_decide(engine: str) -> None:
    ends = Counter(check(engine, seed) for seed in range(NUM_SCENARIOS))
    # The scenarios are worth something: most run to their end, and the defects are among them.
    assert ends["ended"] > NUM_SCENARIOS / 3
    assert len(ends) > 1


def check(engine: str, seed: int) -> str:
    """Run a random scenario through both; returns how it ended for the model.

    Raises:
        AssertionError: they differ before the model shows a defect, or our core breaks a law or loses a
            request.
    """
    scenario = (scenario_v0 if engine == "vllm_v0" else scenario_v1)(random.Random(f"{engine} {seed}"))
    difference, end = first_difference(engine, scenario)
    assert difference is None, f"seed {seed}: {difference}"
    return end


def first_difference(engine: str, scenario: dict[str, Any]) -> tuple[Any, str]:
    """((step, key, ours, the model's) or None, how it ended for the model)."""
    model, run = MODELS[engine](scenario), Run.of(engine, scenario)
    position = {item["id"]: index for index, item in enumerate(scenario["requests"])}
    num_steps = max_steps(scenario)
    records = AsyncRun(run).records(2 * num_steps) if engine == "vllm_v1_async" else run.records(num_steps)
    seen: list[Record] = []
    for theirs in model.records():
        if model.defect is not None:
            break
        seen.append(EMPTY | next(records))
        decided = without(seen[-1], run.too_long)
        for key, value in without(EXPECTED[engine](theirs), run.too_long).items():
            ours = decided[key]
            if engine == "vllm_v1" and key in ("readmitted", "recomputed", "finished"):
                ours = sorted(ours, key=position.__getitem__)
            if ours != value:
                return (theirs.get("step", theirs.get("call")), key, ours, value), model.defect or "ended"
    last_arrival = max(item["arrival_step"] for item in scenario["requests"])
    while model.defect is not None and (run.scheduler.state.requests or len(seen) <= last_arrival):
        record = next(records, None)
        if record is None:
            break  # it would go on for ever: the requests are lost
        seen.append(EMPTY | record)
    ended = Counter(name for record in seen for name in (*record["finished"], *record["rejected"]))
    lost = [item["id"] for item in scenario["requests"] if ended[item["id"]] != 1]
    if lost or run.scheduler.state.requests:
        return (len(seen), "lost", lost, []), model.defect or "ended"
    return None, model.defect or "ended"


def max_steps(scenario: dict[str, Any]) -> int:
    """More than any scenario takes, even if each token is paid for with a recomputation in small chunks."""
    num_steps: int = max(item["arrival_step"] for item in scenario["requests"]) + 10
    for item in scenario["requests"]:
        length = len(item["prompt_token_ids"]) + item["max_tokens"]
        num_steps += (item["max_tokens"] + 1) * (length // scenario["config"]["max_num_batched_tokens"] + 4)
    return num_steps


# Random scenarios: pools of any tightness, lengths near every limit.


def scenario_v0(rng: random.Random) -> dict[str, Any]:
    mode = rng.choice(["swap", "swap", "recompute", None])
    chunked = rng.random() < 0.5
    config, requests = _half_done_prompts(rng) if chunked and rng.random() < 0.5 else _anything(rng)
    if not chunked:  # 0.4.2 insists on it, and so do we
        config["max_num_batched_tokens"] = max(config["max_num_batched_tokens"], config["max_model_len"])
    elif rng.random() < 0.9:  # else it may serve what is longer than its window
        for request in requests:
            request["prompt_token_ids"] = request["prompt_token_ids"][: config["max_model_len"]]
    if config["max_num_seqs"] > 1 and rng.random() < (0.15 if chunked or mode == "recompute" else 0.5):
        for request in requests:
            request["n"] = rng.choice([1, 2, 2, min(3, config["max_num_seqs"])])
    ample = 6 * config["num_blocks"]
    config |= {
        "policy": "fcfs",
        "num_cpu_blocks": rng.choice([ample, ample, ample, rng.randint(0, 2 * config["num_blocks"])]),
        "preemption_mode": mode,
        "chunked_prefill": chunked,
        "watermark": rng.choice([0.0, 0.01, 0.01, 0.05, 0.15]),
    }
    scenario = {"config": config, "requests": requests}
    if mode == "swap" and rng.random() < 0.2:  # to the block what is needed
        config["num_cpu_blocks"] = ample
        config["num_cpu_blocks"] -= min(r["free_cpu_blocks"] for r in ModelV0(scenario).records())
    return scenario


def scenario_v1(rng: random.Random) -> dict[str, Any]:
    config, requests = (_half_done_prompts if rng.random() < 0.4 else _anything)(rng)
    config |= {
        "enable_prefix_caching": False,
        "enable_chunked_prefill": rng.random() < 0.85,
        "policy": rng.choice(["fcfs", "priority"]),
    }
    if not config["enable_chunked_prefill"]:
        config["max_num_batched_tokens"] = max(config["max_num_batched_tokens"], config["max_model_len"])
    if rng.random() < 0.9:  # each can be served
        slots = config["num_blocks"] * config["block_size"]
        longest = min(slots, config["max_model_len"] - 1)
        for request in requests:
            request["prompt_token_ids"] = request["prompt_token_ids"][:longest]
            room = slots + 1 - len(request["prompt_token_ids"])
            request["max_tokens"] = min(request["max_tokens"], room)
    config["num_blocks"] += 1  # the null block
    return {"config": config, "requests": requests}


def _anything(rng: random.Random) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    config = _config(rng)
    return config, _requests(rng, config, config["num_blocks"] * config["block_size"])


def _half_done_prompts(rng: random.Random) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Prompts take two or three steps each and find little room, so that they are preempted half done."""
    config = _config(rng)
    num_blocks = rng.randint(12, 50)
    slots = num_blocks * config["block_size"]
    max_num_seqs = rng.randint(4, 10)
    budget = rng.randint(slots // 12, slots // 5) + max_num_seqs
    config |= {"num_blocks": num_blocks, "max_num_seqs": max_num_seqs, "max_num_batched_tokens": budget}
    config["max_model_len"] = 2 * slots
    arrivals = rng.choice([8, 30])
    requests = [
        {
            "id": f"r{index}",
            "arrival_step": rng.randint(0, arrivals),
            "prompt_token_ids": [0] * rng.randint(1, min(2 * budget, slots // 2)),
            "max_tokens": rng.randint(1, max(2, min(60, slots // 4))),
            "priority": rng.randint(0, 3),
        }
        for index in range(rng.randint(6, 16))
    ]
    return config, requests


def _config(rng: random.Random) -> dict[str, Any]:
    small, middle, large = rng.randint(2, 8), rng.randint(5, 24), rng.choice([40, rng.randint(20, 120), 210])
    num_blocks = rng.choice([small, small, middle, middle, middle, large])
    block_size = rng.choice([1, 2, 3, 4, 8, 16])
    slots = num_blocks * block_size
    max_num_seqs = rng.choice([1, 2, 3, rng.randint(3, 8), 24])
    budget = max_num_seqs + rng.choice([0, 1, rng.randint(0, block_size), rng.randint(0, slots), slots])
    window = rng.choice([slots // 2, slots - 1, slots, slots + 1, 2 * slots, 10 * slots])
    return {
        "num_blocks": num_blocks,
        "block_size": block_size,
        "max_num_seqs": max_num_seqs,
        "max_num_batched_tokens": budget,
        "max_model_len": max(2, window),
    }


def _requests(rng: random.Random, config: dict[str, Any], slots: int) -> list[dict[str, Any]]:
    """Requests that fill the pool: a share of it each, sometimes all of it."""
    share = max(2, int(slots * rng.choice([0.1, 0.2, 0.3, 0.5, 1.0])))
    longest = max(1, min(share, 400))
    spread = rng.choice([0, 3, 20, 60])
    edges: list[int] = [
        config["max_model_len"],
        config["max_num_batched_tokens"],
        slots,
        slots - config["block_size"],
    ]
    gets_edges = rng.random() < 0.2

    def prompt() -> int:
        if gets_edges and rng.random() < 0.15:
            return max(1, min(rng.choice(edges) + rng.randint(-2, 2), 2 * slots))
        length = rng.randint(1, longest)
        return length if rng.random() < 0.8 else -(-length // config["block_size"]) * config["block_size"]

    return [
        {
            "id": f"r{index}",
            "arrival_step": rng.randint(0, spread),
            "prompt_token_ids": [0] * prompt(),
            "max_tokens": rng.randint(1, rng.choice([2, 20, min(longest, 60)])),
            "priority": rng.randint(0, 3),
        }
        for index in range(rng.randint(1, 16))
    ]


def main(engine: str, first: int, last: int) -> None:
    """Fuzz by hand: prints each difference, and how the scenarios ended."""
    ends: Counter[str] = Counter()
    for seed in range(first, last):
        try:
            ends[check(engine, seed)] += 1
        except AssertionError as error:
            ends["FAILED"] += 1
            print(f"{type(error).__name__}: {str(error)[:300]} (seed {seed})")
    print(engine, dict(ends))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
