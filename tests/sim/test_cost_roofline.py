from __future__ import annotations

from dataclasses import replace

import pytest

from engine.core.plan import Transfer, TransferKind
from engine.core.work import Work
from sim.cost.base import MeasuredCostModel
from sim.cost.roofline import Roofline
from sim.hardware import Efficiency, Hardware, ModelShape
from tests.sim.plans import decode, make_plan, prefill

A100 = Hardware(
    name="A100-80GB",
    peak_flops={"float16": 312e12},
    memory_bandwidth_bytes_per_s=2.039e12,
    host_link_bytes_per_s=32e9,
    memory_bytes=80 * 2**30,
    linear=Efficiency(1.0, 1.0),
    prefill_attention=Efficiency(1.0, 1.0),
    decode_attention=Efficiency(1.0, 1.0),
    lm_head=Efficiency(1.0, 1.0),
    link_efficiency=1.0,
    transfer_latency_ns=10_000,
    layer_overhead_ns=0,
    step_overhead_ns=0,
)
LLAMA2_7B = ModelShape(
    "Llama-2-7B", 32, 4096, 11008, 32, 32, 128, 32000, gated_mlp=True, tied_embeddings=False,
    dtype="float16", kv_dtype="float16",
)  # fmt: skip
KV_BYTES = 524_288
LAYER_PARAMETERS = 32 * (4 * 4096**2 + 3 * 4096 * 11008 + 2 * 4096)
MODEL = Roofline(LLAMA2_7B, A100, block_size=16)


def nonzero(parts_ns: dict[str, float]) -> dict[str, float]:
    return {name: part_ns for name, part_ns in parts_ns.items() if part_ns}


def test_one_decode_reads_the_weights_once() -> None:
    """13.2 GB of matrices (all weights but the embedding table, 0.26 GB) at 2.039 TB/s: 6.5 ms."""
    parts_ns = nonzero(MODEL.parts_ns(Work.of(make_plan([decode("a", 999)]))))
    assert parts_ns == pytest.approx(
        {
            "linear": 2 * LAYER_PARAMETERS / 2.039e12 * 1e9,
            "attention_decode": 1000 * KV_BYTES / 2.039e12 * 1e9,
            "lm_head": 2 * 32000 * 4096 / 2.039e12 * 1e9,
        }
    )
    assert sum(parts_ns.values()) == pytest.approx(6.74e6, rel=0.01)


def test_a_larger_decode_batch_shares_the_weights_but_not_the_kv() -> None:
    one = MODEL.parts_ns(Work.of(make_plan([decode("a", 999)])))
    many = MODEL.parts_ns(Work.of(make_plan([decode(f"r{index}", 999) for index in range(64)])))
    assert many["linear"] == one["linear"]
    assert many["attention_decode"] == pytest.approx(64 * one["attention_decode"])


def test_prefill_is_bound_by_arithmetic() -> None:
    parts_ns = MODEL.parts_ns(Work.of(make_plan([prefill("a", 2048)])))
    assert parts_ns["linear"] == pytest.approx(2 * LAYER_PARAMETERS * 2048 / 312e12 * 1e9)
    assert parts_ns["attention_prefill"] == pytest.approx(4 * 32 * 4096 * (2048 * 2049 / 2) / 312e12 * 1e9)
    assert parts_ns["attention_decode"] == 0


def test_linear_layers_turn_from_memory_to_arithmetic_at_the_ridge() -> None:
    """2 FLOP for 2 bytes a token: the ridge lies at 312e12 / 2.039e12 = 153.02 tokens."""
    below, above = (MODEL.parts_ns(Work.of(make_plan([prefill("a", num)])))["linear"] for num in (153, 154))
    assert below == MODEL.parts_ns(Work.of(make_plan([prefill("a", 2)])))["linear"]
    assert above == pytest.approx(below * 154 / 153.02, rel=1e-4)


def test_transfers() -> None:
    """8 MiB a block: 4 over the link at 32 GB/s, 1 copied at 2.039 TB/s (read, written), 3 x 10 us."""
    plan = make_plan(
        transfers=[
            Transfer(TransferKind.SWAP_OUT, "a", (1, 2, 3), (1, 2, 3)),
            Transfer(TransferKind.SWAP_IN, "b", (4,), (1,)),
            Transfer(TransferKind.COPY, "c", (5,), (2,)),
        ]
    )
    expected_ns = 4 * 2**23 / 32e9 * 1e9 + 2 * 2**23 / 2.039e12 * 1e9 + 3 * 10_000
    assert nonzero(MODEL.parts_ns(Work.of(plan))) == pytest.approx({"transfers": expected_ns})
    assert MODEL.transfer_ns(4) == round(4 * 2**23 / 32e9 * 1e9 + 10_000)


@pytest.mark.parametrize("num_layers", [1, 32, 80])
def test_overhead_goes_with_the_layers(num_layers: int) -> None:
    hardware = replace(A100, layer_overhead_ns=30_000, step_overhead_ns=46_000)
    model = Roofline(replace(LLAMA2_7B, num_layers=num_layers), hardware, 16)
    overhead_ns = num_layers * 30_000 + 46_000
    assert model.parts_ns(Work.of(make_plan([prefill("a", 5)])))["overhead"] == overhead_ns
    assert model.parts_ns(Work.of(make_plan([prefill("a", 500), decode("b", 9)])))["overhead"] == overhead_ns


def test_a_step_without_tokens_launches_no_layer() -> None:
    model = Roofline(LLAMA2_7B, replace(A100, layer_overhead_ns=30_000, step_overhead_ns=46_000), 16)
    assert sum(model.parts_ns(Work()).values()) == 0
    moving = make_plan(transfers=[Transfer(TransferKind.SWAP_OUT, "a", (1,), (1,))])
    assert set(nonzero(model.parts_ns(Work.of(moving)))) == {"transfers"}


@pytest.mark.parametrize(
    ("operator", "part"),
    [
        ("linear", "linear"),
        ("prefill_attention", "attention_prefill"),
        ("decode_attention", "attention_decode"),
        ("lm_head", "lm_head"),
    ],
)
@pytest.mark.parametrize("num_tokens", [2, 4000])
def test_efficiency_belongs_to_an_operator(operator: str, part: str, num_tokens: int) -> None:
    """Half of both ceilings doubles the operator's own part, memory-bound or not, and no other."""
    slow = Roofline(LLAMA2_7B, replace(A100, **{operator: Efficiency(0.5, 0.5)}), 16)
    step = Work.of(make_plan([prefill("a", num_tokens), decode("b", 50)]))
    before, after = MODEL.parts_ns(step), slow.parts_ns(step)
    assert after[part] == pytest.approx(2 * before[part])
    assert {name for name in before if after[name] != before[name]} == {part}


def test_recomputation_is_priced_with_the_efficiency_of_its_operators() -> None:
    slow = Roofline(LLAMA2_7B, replace(A100, prefill_attention=Efficiency(0.5, 1.0)), 16)
    pairs_ns = 4 * 32 * 4096 * (512 * 513 / 2) / 312e12 * 1e9
    assert slow.recompute_ns(512) - MODEL.recompute_ns(512) == pytest.approx(pairs_ns, abs=1)


def test_recomputation_against_swapping() -> None:
    """Close for Llama-2-7B on an A100, as the vLLM paper claims; with 4 KV heads, not 32, swapping wins."""
    num_tokens = 512
    recompute_ns = MODEL.recompute_ns(num_tokens)
    assert recompute_ns == round(
        (2 * LAYER_PARAMETERS * num_tokens + 4 * 32 * 4096 * num_tokens * (num_tokens + 1) / 2) / 312e12 * 1e9
    )
    round_trip_ns = 2 * MODEL.transfer_ns(num_tokens // 16)
    assert 0.5 < recompute_ns / round_trip_ns < 2
    grouped = Roofline(replace(LLAMA2_7B, num_kv_heads=4), A100, 16)
    assert grouped.recompute_ns(num_tokens) > 4 * 2 * grouped.transfer_ns(num_tokens // 16)


def test_block_size_must_be_positive() -> None:
    with pytest.raises(ValueError, match="block_size is 0"):
        Roofline(LLAMA2_7B, A100, 0)


def test_a_roofline_is_a_value() -> None:
    """A policy holds it, is hashed, compared and named in the header of a journal."""
    same = Roofline(LLAMA2_7B, replace(A100), block_size=16)
    assert same == MODEL
    assert hash(same) == hash(MODEL)
    assert repr(MODEL) == "Roofline(Llama-2-7B, A100-80GB, block_size=16)"
    assert Roofline(LLAMA2_7B, A100, 32) != MODEL
    assert Roofline(LLAMA2_7B, replace(A100, layer_overhead_ns=1), 16) != MODEL


def test_formulae_have_no_range() -> None:
    assert not isinstance(MODEL, MeasuredCostModel)
