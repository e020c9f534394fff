from __future__ import annotations

import random

import pytest

from engine.core.plan import Chunk, Recomputed, Transfer, TransferKind
from engine.core.work import Work
from tests.sim.plans import decode, make_plan, prefill


def by_enumeration(chunks: list[Chunk]) -> Work:
    """The definition, position by position: token at position p reads p + 1 positions of KV."""
    decodes: list[int] = []
    prefills: list[int] = []
    pairs = 0
    for chunk in chunks:
        for _ in chunk.seqs:
            reads = [position + 1 for position in range(chunk.start, chunk.start + chunk.num_tokens)]
            if len(reads) == 1:
                decodes += reads
            else:
                prefills.append(max(reads))
                pairs += sum(reads)
    return Work(
        num_tokens=sum(chunk.num_tokens * len(chunk.seqs) for chunk in chunks),
        num_seqs=sum(len(chunk.seqs) for chunk in chunks),
        num_prefill_chunks=len(prefills),
        num_sampled=sum(len(chunk.samples) for chunk in chunks),
        decode_context_tokens=sum(decodes),
        prefill_context_tokens=sum(prefills),
        prefill_attention_pairs=pairs,
        max_decode_context_tokens=max(decodes, default=0),
        max_prefill_context_tokens=max(prefills, default=0),
        decode_context_squares=sum(context**2 for context in decodes),
        prefill_context_squares=sum(context**2 for context in prefills),
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
    plan = plan._replace(recomputed=(Recomputed("b", 2), Recomputed("d", 3)))
    assert Work.of(plan) == Work(
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
        num_recomputed_tokens=5,
        max_decode_context_tokens=100,
        max_prefill_context_tokens=10,
        decode_context_squares=100**2 + 2 * 50**2,
        prefill_context_squares=2 * 10**2,
    )


def test_step_that_only_decodes() -> None:
    chunks = [decode("a", 9), decode("b", 19)]
    work = Work.of(make_plan(chunks))
    assert work == by_enumeration(chunks)
    assert (work.num_decode_tokens, work.num_prefill_tokens) == (2, 0)


def test_one_token_is_a_decode_whatever_it_is_for() -> None:
    chunks = [Chunk("a", 15, 1, (0,), ()), prefill("b", 1), prefill("c", 2)]
    work = Work.of(make_plan(chunks))
    assert work == by_enumeration(chunks)
    assert (work.num_decode_tokens, work.num_prefill_tokens, work.num_sampled) == (2, 2, 2)


def test_step_without_chunks() -> None:
    assert Work.of(make_plan()) == Work()
    plan = make_plan(transfers=[Transfer(TransferKind.SWAP_OUT, "a", (1,), (2,))])
    assert Work.of(plan) == Work(num_blocks_swapped_out=1, num_transfers=1)


def test_squares_are_exact_for_as_many_long_contexts_as_anybody_serves() -> None:
    stream = random.Random("squares")
    chunks = [decode(f"r{index}", stream.randint(900_000, 2**20)) for index in range(1024)]
    assert Work.of(make_plan(chunks)).decode_context_squares == sum(
        (chunk.start + 1) ** 2 for chunk in chunks
    )


def test_what_is_counted_once_is_right_for_a_plan_with_the_same_chunks() -> None:
    plan = make_plan([decode("a", 9)], [Transfer(TransferKind.COPY, "a", (1,), (2,))])
    assert Work.of(plan).num_blocks_copied == 1
    assert Work.of(plan._replace(transfers=())) == by_enumeration([decode("a", 9)])


@pytest.mark.parametrize("max_width", [1, 3])
@pytest.mark.parametrize("max_num_tokens", [1, 8])
def test_random_steps_against_enumeration(max_width: int, max_num_tokens: int) -> None:
    stream = random.Random(f"work/{max_width}/{max_num_tokens}")
    for _ in range(200):
        chunks = []
        for index in range(stream.randint(1, 6)):
            seqs = tuple(range(stream.randint(1, max_width)))
            samples = seqs if stream.random() < 0.7 else ()
            chunks.append(
                Chunk(f"r{index}", stream.randint(0, 40), stream.randint(1, max_num_tokens), seqs, samples)
            )
        assert Work.of(make_plan(chunks)) == by_enumeration(chunks)


def test_attention_work_does_not_depend_on_how_a_prompt_is_chunked() -> None:
    whole = Work.of(make_plan([prefill("a", 100)]))
    chunks = [
        Work.of(make_plan([prefill("a", num, start=start)])) for start, num in ((0, 33), (33, 40), (73, 27))
    ]
    assert sum(step.prefill_attention_pairs for step in chunks) == whole.prefill_attention_pairs == 5050
