from __future__ import annotations

import random

import pytest

from engine.core.plan import Chunk, Transfer, TransferKind
from sim.cost.base import StepFeatures, features
from tests.sim.plans import decode, make_plan, prefill


def by_enumeration(chunks: list[Chunk]) -> StepFeatures:
    """The definition, position by position: token at position p reads p + 1 positions of KV."""
    decode_context = prefill_context = pairs = num_prefill_chunks = 0
    for chunk in chunks:
        for _ in chunk.seqs:
            positions = range(chunk.start, chunk.start + chunk.num_tokens)
            if chunk.num_tokens == 1:
                decode_context += chunk.start + 1
            else:
                num_prefill_chunks += 1
                prefill_context += max(positions) + 1
                pairs += sum(position + 1 for position in positions)
    return StepFeatures(
        num_tokens=sum(chunk.num_tokens * len(chunk.seqs) for chunk in chunks),
        num_seqs=sum(len(chunk.seqs) for chunk in chunks),
        num_prefill_chunks=num_prefill_chunks,
        num_sampled=sum(len(chunk.samples) for chunk in chunks),
        decode_context_tokens=decode_context,
        prefill_context_tokens=prefill_context,
        prefill_attention_pairs=pairs,
        num_blocks_swapped_out=0,
        num_blocks_swapped_in=0,
        num_blocks_copied=0,
        num_transfers=0,
    )


def test_mixed_step() -> None:
    plan = make_plan(
        [
            decode("a", 99),
            decode("b", 49, seqs=(0, 2)),
            prefill("c", 10, samples=(0, 1)),
            prefill("d", 4, start=6, samples=()),
        ],
        [
            Transfer(TransferKind.SWAP_OUT, "e", (1, 2, 3), (7, 8, 9)),
            Transfer(TransferKind.SWAP_IN, "b", (4,), (1,)),
            Transfer(TransferKind.COPY, "b", (5, 6), (2, 3)),
        ],
    )
    assert features(plan) == StepFeatures(
        num_tokens=1 + 2 + 10 + 4,
        num_seqs=5,
        num_prefill_chunks=2,
        num_sampled=1 + 2 + 2,
        decode_context_tokens=100 + 2 * 50,
        prefill_context_tokens=10 + 10,
        prefill_attention_pairs=55 + (7 + 8 + 9 + 10),
        num_blocks_swapped_out=3,
        num_blocks_swapped_in=1,
        num_blocks_copied=2,
        num_transfers=3,
    )


def test_step_that_only_decodes() -> None:
    assert features(make_plan([decode("a", 9), decode("b", 19)])) == StepFeatures(
        2, 2, 0, 2, 30, 0, 0, 0, 0, 0, 0
    )


def test_one_token_that_does_not_sample() -> None:
    plan = make_plan([Chunk("a", 15, 1, (0,), ()), decode("b", 19)])
    assert features(plan) == StepFeatures(2, 2, 0, 1, 36, 0, 0, 0, 0, 0, 0)


def test_step_without_chunks() -> None:
    assert features(make_plan()) == StepFeatures(*([0] * 11))
    plan = make_plan(transfers=[Transfer(TransferKind.SWAP_OUT, "a", (1,), (2,))])
    assert features(plan) == StepFeatures(0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 1)


@pytest.mark.parametrize("max_width", [1, 3])
@pytest.mark.parametrize("max_num_tokens", [1, 8])
def test_random_steps_against_enumeration(max_width: int, max_num_tokens: int) -> None:
    stream = random.Random(f"features/{max_width}/{max_num_tokens}")
    for _ in range(200):
        chunks = []
        for index in range(stream.randint(1, 6)):
            seqs = tuple(range(stream.randint(1, max_width)))
            samples = seqs if stream.random() < 0.7 else ()
            chunks.append(
                Chunk(f"r{index}", stream.randint(0, 40), stream.randint(1, max_num_tokens), seqs, samples)
            )
        assert features(make_plan(chunks)) == by_enumeration(chunks)


def test_attention_work_does_not_depend_on_how_a_prompt_is_chunked() -> None:
    whole = features(make_plan([prefill("a", 100)]))
    chunks = [
        features(make_plan([prefill("a", num, start=start)])) for start, num in ((0, 33), (33, 40), (73, 27))
    ]
    assert sum(step.prefill_attention_pairs for step in chunks) == whole.prefill_attention_pairs == 5050
