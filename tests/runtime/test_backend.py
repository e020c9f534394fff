"""TorchBackend on plans made by hand."""

import pytest
import torch
from pagedkv import KVLayout

from engine.core.errors import UserError
from engine.core.plan import (
    Batch,
    Chunk,
    Finish,
    FinishReason,
    PoolState,
    StepPlan,
    TableUpdate,
    Transfer,
    TransferKind,
)
from engine.core.spec import Sampling
from engine.runtime.backend import TorchBackend
from engine.runtime.kernels import Reference
from engine.runtime.model import prepare
from engine.runtime.pools import Pools
from tests.runtime.support import LIMITS, VOCAB_SIZE, build, generate, load, prompts, request

EMPTY_POOL = PoolState(0, 0, 0, 0, 0, 0)


def plan(*chunks, updates=(), transfers=()):
    num_tokens = sum(chunk.num_tokens * len(chunk.seqs) for chunk in chunks)
    return StepPlan(
        0, Batch.of(chunks), tuple(updates), tuple(transfers), (), (), (), (), num_tokens, EMPTY_POOL
    )


def execute(backend, *chunks, updates=(), transfers=()):
    return backend.collect(backend.submit(plan(*chunks, updates=updates, transfers=transfers)))


@pytest.fixture(scope="module")
def llama():
    return load("llama")


@pytest.fixture
def backend(llama):
    return TorchBackend(llama, LIMITS, block_size=4, num_blocks=20, num_host_blocks=10)


def test_chunks_decodes_and_moves_between_blocks_give_the_tokens_of_generate(backend):
    """Two chunks of a prompt, decodes, a swap out and back to other blocks, a second request beside it."""
    first, second = prompts((7, 5))
    plain = build("llama")
    answers = generate(plain, first, 5), generate(plain, second, 3)
    backend.add(request("a", first, 5))
    backend.add(request("b", second, 3))
    a, b = ("a", 0), ("b", 0)

    result = execute(backend, Chunk("a", 0, 4, (0,), ()), updates=[TableUpdate("a", 0, 0, (3,))])
    assert result.token_ids == {}
    result = execute(backend, Chunk("a", 4, 3, (0,), (0,)), updates=[TableUpdate("a", 0, 1, (9,))])
    assert result.token_ids == {a: answers[0][0]}
    result = execute(
        backend,
        Chunk("a", 7, 1, (0,), (0,)),
        Chunk("b", 0, 5, (0,), (0,)),
        updates=[TableUpdate("b", 0, 0, (1, 0))],
    )
    assert result.token_ids == {a: answers[0][1], b: answers[1][0]}
    execute(backend, transfers=[Transfer(TransferKind.SWAP_OUT, "a", (3, 9), (8, 2))])
    backend.pools.device[[3, 9]] = 77.0  # whoever got the blocks
    result = execute(
        backend,
        Chunk("b", 5, 1, (0,), (0,)),
        Chunk("a", 8, 1, (0,), (0,)),
        updates=[TableUpdate("a", 0, 0, (5, 4, 12))],
        transfers=[Transfer(TransferKind.SWAP_IN, "a", (8, 2), (5, 4))],
    )
    assert result.token_ids == {a: answers[0][2], b: answers[1][1]}
    result = execute(backend, Chunk("b", 6, 1, (0,), (0,)), Chunk("a", 9, 1, (0,), (0,)))
    assert result.token_ids == {a: answers[0][3], b: answers[1][2]}
    assert result.finished == (Finish("b", 0, FinishReason.LENGTH),)
    assert backend.sequences.tokens("a", 0) == [*first, *answers[0][:4]]


def test_all_sequences_draw_from_the_prompts_last_position_then_go_their_own_ways(backend):
    prompt = prompts((6,))[0]
    sampling = Sampling(temperature=1.5, seed=11)
    backend.add(request("n", prompt, 3, n=3, sampling=sampling))
    first = execute(backend, Chunk("n", 0, 6, (0,), (0, 1, 2)), updates=[TableUpdate("n", 0, 0, (0, 1))])
    assert sorted(first.token_ids) == [("n", 0), ("n", 1), ("n", 2)]
    second = execute(
        backend,
        Chunk("n", 6, 1, (0, 1, 2), (0, 1, 2)),
        updates=[TableUpdate("n", seq, 0, (0, last)) for seq, last in ((0, 1), (1, 2), (2, 3))],
        transfers=[Transfer(TransferKind.COPY, "n", (1, 1), (2, 3))],
    )
    for seq in range(3):
        alone = TorchBackend(backend.model, LIMITS, block_size=4, num_blocks=4)
        seeded = Sampling(temperature=1.5, seed=11 + seq)
        alone.add(request("x", prompt, 3, sampling=seeded))
        one = execute(alone, Chunk("x", 0, 6, (0,), (0,)), updates=[TableUpdate("x", 0, 0, (0, 1))])
        two = execute(alone, Chunk("x", 6, 1, (0,), (0,)))
        assert one.token_ids["x", 0] == first.token_ids["n", seq]
        assert two.token_ids["x", 0] == second.token_ids["n", seq]


def test_a_plan_without_chunks_is_executed(backend):
    result = execute(backend)
    assert (result.finished, result.token_ids) == ((), {})
    assert 0 < result.duration_ns < 50_000_000
    assert sum(result.parts_ns.values()) == result.duration_ns


def test_the_time_of_the_transfers_is_part_of_the_duration(backend):
    assert execute(backend).transfer_ns == 0
    moves = [Transfer(TransferKind.SWAP_OUT, "a", tuple(range(10)), tuple(range(10)))]
    result = execute(backend, transfers=moves)
    assert 0 < result.transfer_ns <= result.duration_ns


def test_stop_token_ends_a_sequence_and_the_oracle_length_ends_another(backend):
    prompt = prompts((6,))[0]
    answer = generate(build("llama"), prompt, 1)
    backend.add(request("stop", prompt, 9, sampling=Sampling(stop_token_ids=(answer[0],))))
    backend.add(request("length", prompt, 1))
    result = execute(
        backend,
        Chunk("stop", 0, 6, (0,), (0,)),
        Chunk("length", 0, 6, (0,), (0,)),
        updates=[TableUpdate("stop", 0, 0, (0, 1)), TableUpdate("length", 0, 0, (2, 3))],
    )
    assert result.finished == (Finish("stop", 0, FinishReason.STOP), Finish("length", 0, FinishReason.LENGTH))


def poisoned(value):
    """A model with one token, 100, whose embedding is not finite."""
    plain = build("llama")
    with torch.no_grad():
        plain.model.embed_tokens.weight[100] = value
    return prepare(plain)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_request_whose_logits_are_not_finite_fails_alone_and_gets_no_token(value):
    backend = TorchBackend(poisoned(value), LIMITS, block_size=4, num_blocks=20)
    prompt = tuple(min(token, 99) for token in prompts((6,))[0])
    backend.add(request("bad", (100, *prompt[1:]), 3, n=2, sampling=Sampling(0.7)))
    backend.add(request("good", prompt, 1))
    result = execute(
        backend,
        Chunk("bad", 0, 6, (0,), (0, 1)),
        Chunk("good", 0, 6, (0,), (0,)),
        updates=[TableUpdate("bad", 0, 0, (0, 1)), TableUpdate("good", 0, 0, (2, 3))],
    )
    failed = [Finish("bad", seq, FinishReason.NOT_FINITE) for seq in (0, 1)]
    assert result.finished == (*failed, Finish("good", 0, FinishReason.LENGTH))
    assert result.token_ids == {("good", 0): generate(build("llama"), prompt, 1)[0]}
    assert backend.sequences.num_tokens("bad", 0) == 6


def test_one_sequence_that_fails_takes_the_others_of_its_request_along():
    backend = TorchBackend(poisoned(float("nan")), LIMITS, block_size=4, num_blocks=20)
    prompt = tuple(min(token, 99) for token in prompts((6,))[0])
    backend.add(request("a", prompt, 9, n=2))
    execute(backend, Chunk("a", 0, 6, (0,), (0, 1)), updates=[TableUpdate("a", 0, 0, (0, 1))])
    backend.sequences._tokens["a", 1][-1] = 100  # as if drawn
    second = [TableUpdate("a", seq, 0, (0, last)) for seq, last in ((0, 1), (1, 2))]
    copy = [Transfer(TransferKind.COPY, "a", (1,), (2,))]
    result = execute(backend, Chunk("a", 6, 1, (0, 1), (0, 1)), updates=second, transfers=copy)
    assert (result.token_ids, result.finished) == ({}, (Finish("a", 1, FinishReason.NOT_FINITE),))


def test_the_models_window_ends_a_sequence(llama):
    backend = TorchBackend(llama, LIMITS.__class__(8, 100, 7), block_size=4, num_blocks=20)
    backend.add(request("a", prompts((6,))[0], 50))
    result = execute(backend, Chunk("a", 0, 6, (0,), (0,)), updates=[TableUpdate("a", 0, 0, (0, 1))])
    assert result.finished == (Finish("a", 0, FinishReason.LENGTH),)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_swaps_and_copies_move_blocks_bit_for_bit_in_the_order_of_the_plan(dtype):
    layout = KVLayout(num_layers=2, num_kv_heads=2, head_dim=4, block_size=4)
    pools = Pools(layout, dtype, torch.device("cpu"), 6, 4, Reference())
    pools.device.view(torch.uint8).random_(generator=torch.Generator().manual_seed(0))
    blocks = [block.clone() for block in pools.device]
    pools.execute(
        [
            Transfer(TransferKind.SWAP_OUT, "a", (0, 1, 4), (2, 3, 0)),
            Transfer(TransferKind.COPY, "b", (5,), (0,)),  # into a block just swapped out
            Transfer(TransferKind.COPY, "b", (0, 3), (1, 4)),  # and on from there
            Transfer(TransferKind.SWAP_IN, "a", (2, 3, 0), (2, 3, 5)),
        ]
    )
    expected = [blocks[5], blocks[5], blocks[0], blocks[1], blocks[3], blocks[4]]
    for found, right in zip(pools.device, expected, strict=True):
        assert torch.equal(found.view(torch.uint8), right.view(torch.uint8))


def test_prompts_of_a_length_only_trace_depend_on_seed_and_request_only(llama):
    spec = request("r", prompts((40,))[0], 5)
    blind = spec.__class__("r", 0, 40, 5)
    tokens = []
    for seed, before in ((0, 0), (0, 3), (1, 0)):
        backend = TorchBackend(llama, LIMITS, block_size=4, num_blocks=2, seed=seed)
        for i in range(before):
            backend.add(spec.__class__(f"other{i}", 0, 9, 5))
        backend.add(blind)
        tokens.append(backend.sequences.tokens("r", 0))
    assert tokens[0] == tokens[1] != tokens[2]
    assert len(tokens[0]) == 40
    assert all(0 <= token < VOCAB_SIZE for token in tokens[0])


def test_dropped_requests_leave_nothing_and_ids_must_be_unique(backend):
    spec = request("a", prompts((4,))[0], 2, n=2)
    backend.add(spec)
    with pytest.raises(ValueError, match="request a: this id is in use"):
        backend.add(spec)
    backend.drop("a")
    backend.add(spec)
    backend.drop("a")
    assert not backend.sequences.specs
    with pytest.raises(ValueError, match="request z: prompt token ids must be whole numbers from 0 to 100"):
        backend.add(request("z", (3, 101), 2))


def test_an_error_in_a_step_is_raised_by_collect(backend):
    ticket = backend.submit(plan(Chunk("nobody", 0, 1, (0,), (0,))))
    with pytest.raises(KeyError, match="nobody"):
        backend.collect(ticket)


def test_pool_sizes_that_cannot_be(llama):
    with pytest.raises(ValueError, match="no room for a single block"):
        TorchBackend(llama, LIMITS, num_blocks=0)
    with pytest.raises(ValueError, match="no room for a single block: raise the memory budget"):
        TorchBackend(llama, LIMITS, memory_bytes=1000)
    with pytest.raises(ValueError, match="give one of num_blocks, memory_bytes and utilization"):
        TorchBackend(llama, LIMITS)
    with pytest.raises(UserError, match="give one of num_blocks, memory_bytes and utilization"):
        TorchBackend(llama, LIMITS, num_blocks=5, utilization=0.5)
    for share in (0, -0.5, 1.01, float("nan")):
        with pytest.raises(UserError, match=f"utilization is {share}: give a share"):
            TorchBackend(llama, LIMITS, utilization=share)
    with pytest.raises(UserError, match=r"a KV pool of 1,000,000,000 blocks .* are free: lower num_blocks"):
        TorchBackend(llama, LIMITS, num_blocks=10**9)
    with pytest.raises(UserError, match="are free: lower num_blocks"):
        TorchBackend(llama, LIMITS, num_blocks=5, num_host_blocks=10**9)
    with pytest.raises(ValueError, match="max_model_len is 500, LlamaForCausalLM knows 128 positions"):
        TorchBackend(llama, LIMITS.__class__(8, 100, 500), num_blocks=5)
