"""TritonAttention against ReferenceAttention, on the interpreter, and what it refuses to run."""

import math
import random

import pytest
import torch

pytest.importorskip("triton")

from pagedkv import AttentionOptions, Batch, KVLayout, Piece, ReferenceAttention, batch_order
from pagedkv.checks.common import tolerance
from pagedkv.schedule import StepLimits
from pagedkv.tiles import paged_attention_reference
from pagedkv.triton_attention import TritonAttention, tiling_of
from triton import knobs

CPU = torch.device("cpu")
LAYOUT = KVLayout(num_layers=3, num_kv_heads=2, head_dim=64, block_size=16)
NUM_Q_HEADS = 6
LIMITS = StepLimits(max_seqs=8, max_tokens=128, max_context_tokens=512)
interpreted = pytest.mark.skipif(
    not knobs.runtime.interpret, reason="needs TRITON_INTERPRET=1 from the start"
)

CHUNKS = [(200, 1), (0, 30), (17, 1), (30, 20), (8, 3), (0, 1)]
OPTIONS = {
    "plain": AttentionOptions(0.125),
    "window": AttentionOptions(0.125, sliding_window=9),
    "chunks": AttentionOptions(0.125, chunk_size=11),
    "softcap": AttentionOptions(0.125, softcap=2.0),
    "sinks": AttentionOptions(0.125, sinks=torch.linspace(-2, 2, NUM_Q_HEADS)),
    "all": AttentionOptions(0.2, 20, 33, softcap=1.0, sinks=torch.linspace(-1, 3, NUM_Q_HEADS)),
}


def pieces_of(chunks, seed=0, spare_blocks=0):
    block_ids = list(range(64))
    random.Random(seed).shuffle(block_ids)
    counts = [LAYOUT.num_blocks(s + n) + spare_blocks for s, n in chunks]
    tables = [[block_ids.pop() for _ in range(count)] for count in counts]
    return [Piece(*chunk, table) for chunk, table in zip(chunks, tables, strict=True)]


def tensors(num_tokens, seed):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(num_tokens, heads, 64, generator=generator) for heads in (NUM_Q_HEADS, 2, 2)]


@interpreted
@pytest.mark.parametrize("name", OPTIONS)
def test_equals_the_reference_over_all_layers(name):
    pool = LAYOUT.allocate(64, torch.float32, CPU).normal_(generator=torch.Generator().manual_seed(3))
    reference_pool = pool.clone()
    pieces = pieces_of(CHUNKS)
    pieces = [pieces[i] for i in batch_order(pieces)]
    triton_attention = TritonAttention(LAYOUT, pool, NUM_Q_HEADS, LIMITS)
    reference = ReferenceAttention(LAYOUT, reference_pool, 16)
    batch = triton_attention.prepare(pieces)
    reference_batch = Batch.build(LAYOUT, pieces, CPU, 16)
    assert torch.equal(batch.positions, reference_batch.positions)
    for layer in range(LAYOUT.num_layers):
        flat = tensors(len(batch.positions), seed=layer)
        out = triton_attention.attend(batch, layer, *flat, OPTIONS[name])
        expected = reference.attend(reference_batch, layer, *flat, OPTIONS[name])
        assert torch.equal(pool, reference_pool)
        # Both are float32 and as far from the truth as 24 roundings (checks/attention.py), on either side.
        torch.testing.assert_close(
            out, expected, rtol=tolerance(out.dtype, 48), atol=tolerance(out.dtype, 48)
        )


def poison(pool, pieces, options, value):
    """A copy of the pool in which all is `value` but the slots that a query of the pieces sees."""
    poisoned = torch.full_like(pool, value)
    for piece in pieces:
        seen = torch.arange(int(options.first_seen(torch.tensor(piece.start))), piece.start)
        at = torch.tensor(piece.block_ids)[seen // 16], slice(None), slice(None), seen % 16
        poisoned[at] = pool[at]
    return poisoned


def attend(pool, pieces, options, flat):
    attention = TritonAttention(LAYOUT, pool, NUM_Q_HEADS, LIMITS)
    return attention.attend(attention.prepare(pieces), 1, *flat, options)


@interpreted
@pytest.mark.parametrize(
    ("name", "value"),
    [*((name, math.nan) for name in ("plain", "window", "chunks", "all")), ("all", math.inf)],
)
def test_slots_that_no_query_sees_change_nothing(name, value):
    """Blocks of others, unwritten slots of the last block and of the table, and what lies before a window."""
    pool = LAYOUT.allocate(64, torch.float32, CPU).normal_(generator=torch.Generator().manual_seed(3))
    pieces = pieces_of(CHUNKS, spare_blocks=1)
    flat = tensors(sum(n for _, n in CHUNKS), seed=4)
    poisoned = poison(pool, pieces, OPTIONS[name], value)
    expected = attend(pool, pieces, OPTIONS[name], flat)
    assert torch.equal(attend(poisoned, pieces, OPTIONS[name], flat), expected)


@interpreted
@pytest.mark.filterwarnings("ignore:All-NaN slice:RuntimeWarning")  # numpy, of a row of NaN
@pytest.mark.parametrize("bad", [0, 1, 4])
def test_a_sequence_that_is_not_finite_changes_no_other(bad):
    """A split one, a prefill, and one of 3 query tokens."""
    pool = LAYOUT.allocate(64, torch.float32, CPU).normal_(generator=torch.Generator().manual_seed(3))
    pieces = pieces_of(CHUNKS)
    flat = tensors(sum(n for _, n in CHUNKS), seed=4)
    expected = attend(pool.clone(), pieces, OPTIONS["plain"], flat)
    mine = torch.tensor([i == bad for i, (_, n) in enumerate(CHUNKS) for _ in range(n)])
    for x in flat:
        x[mine] = math.nan
    pool[torch.tensor(pieces[bad].block_ids)] = math.nan
    out = attend(pool, pieces, OPTIONS["plain"], flat)
    assert torch.equal(out[~mine], expected[~mine])
    assert out[mine].isnan().all()


@interpreted
@pytest.mark.filterwarnings("ignore:All-NaN slice:RuntimeWarning")
@pytest.mark.parametrize("name", ["plain", "window", "all"])
@pytest.mark.parametrize(("start", "num_tokens"), [(60, 8), (50, 30)], ids=["decode", "prefill"])
def test_a_key_that_is_not_finite_changes_only_what_sees_it(start, num_tokens, name):
    options = OPTIONS[name]
    pool = LAYOUT.allocate(64, torch.float32, CPU).normal_(generator=torch.Generator().manual_seed(3))
    pieces = pieces_of([(start, num_tokens)])
    flat = tensors(num_tokens, seed=4)
    expected = attend(pool, pieces, options, flat)
    flat[1][4, 0, 3] = math.nan
    out = attend(pool, pieces, options, flat)
    asking = torch.arange(start, start + num_tokens)
    sees = (options.first_seen(asking) <= start + 4) & (asking >= start + 4)
    assert sees.any() and not sees.all()
    assert out[sees, :3].isnan().all(), "query heads of the KV head that is not finite"
    out[sees, :3] = expected[sees, :3]
    assert torch.equal(out, expected)


@interpreted
def test_a_chunked_prompt_and_its_decodes_equal_one_pass():
    [piece] = pieces_of([(0, 90)])
    query, key, value = tensors(90, seed=7)
    pool = LAYOUT.allocate(64, torch.float32, CPU)
    attention = TritonAttention(LAYOUT, pool, NUM_Q_HEADS, LIMITS)
    outs = []
    for start, end in ((0, 37), (37, 80), (80, 87), (87, 88), (88, 89), (89, 90)):
        batch = attention.prepare([Piece(start, end - start, piece.block_ids)])
        rows = slice(start, end)
        outs.append(attention.attend(batch, 2, query[rows], key[rows], value[rows], OPTIONS["plain"]))
    expected = paged_attention_reference(query, pool[:, 2], [piece], OPTIONS["plain"])
    torch.testing.assert_close(
        torch.cat(outs).double(), expected, rtol=tolerance(torch.float32, 24), atol=2e-6
    )


@interpreted
def test_the_full_grid_gives_the_same():
    pool = LAYOUT.allocate(64, torch.float32, CPU)
    attention = TritonAttention(LAYOUT, pool, NUM_Q_HEADS, StepLimits(4, 64, 256))
    batch = attention.prepare(pieces_of([(199, 1), (0, 12)]))
    assert batch.num_merges == 1
    flat = tensors(13, seed=1)
    out = attention.attend(batch, 0, *flat, OPTIONS["plain"])
    assert torch.equal(out, attention.attend(batch.full_grid(), 0, *flat, OPTIONS["plain"]))


@interpreted
def test_e4m3_pool():
    layout = KVLayout(2, 2, 64, 16)
    pool = layout.allocate(64, torch.float32, CPU).to(torch.float8_e4m3fn)
    scales = torch.tensor([[0.5, 0.25], [0.125, 1.0]]), torch.tensor([[1.0, 0.5], [0.25, 0.0625]])
    attention = TritonAttention(layout, pool, NUM_Q_HEADS, LIMITS, *scales)
    pieces = pieces_of([(0, 20), (0, 5)])
    flat = [x.half() for x in tensors(25, seed=2)]
    out = attention.attend(attention.prepare(pieces), 1, *flat, OPTIONS["plain"])
    expected = paged_attention_reference(
        flat[0], pool[:, 1], pieces, OPTIONS["plain"], *(s[1] for s in scales)
    )
    bound = tolerance(torch.float16)
    torch.testing.assert_close(out.double(), expected, rtol=bound, atol=bound)


@interpreted
def test_nan_in_an_e4m3_pool_is_nan():
    """Its code in 8 bits is next to that of the largest number."""
    layout = KVLayout(1, 2, 64, 16)
    scales = torch.ones(1, 2), torch.ones(1, 2)
    for part in (1, 2):
        pool = layout.allocate(64, torch.float32, CPU).to(torch.float8_e4m3fn)
        attention = TritonAttention(layout, pool, NUM_Q_HEADS, LIMITS, *scales)
        flat = [x.half() for x in tensors(4, seed=2)]
        flat[part][3, 0, 5] = math.nan
        out = attention.attend(attention.prepare(pieces_of([(0, 4)])), 0, *flat, OPTIONS["plain"])
        assert out[3, :3].isnan().any() and out[3, 3:].isfinite().all()


def make(num_q_heads=6, dtype=torch.float32, scales=(), **layout):
    layout = KVLayout(**({"num_layers": 1, "num_kv_heads": 2, "head_dim": 64, "block_size": 16} | layout))
    pool = torch.zeros((2, *layout.block_shape)).to(dtype)
    return TritonAttention(layout, pool, num_q_heads, LIMITS, *scales)


@interpreted
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"head_dim": 72}, "head_dim is 72"),
        ({"block_size": 8}, "block_size is 8"),
        ({"num_q_heads": 7}, "7 query heads"),
        ({"dtype": torch.float64}, "float64"),
        ({"dtype": torch.bfloat16}, "interpreter"),
        ({"dtype": torch.float8_e4m3fn}, "needs k_scales"),
        ({"scales": (torch.ones(1, 2), torch.ones(1, 2))}, "scales are for"),
        ({"dtype": torch.float8_e4m3fn, "scales": (torch.ones(1, 2), torch.ones(2))}, "scales must be"),
    ],
)
def test_what_cannot_run_is_refused(arguments, message):
    make()
    with pytest.raises(ValueError, match=message):
        make(**arguments)


def test_a_cpu_without_the_interpreter_is_refused(monkeypatch):
    monkeypatch.setattr(knobs.runtime, "interpret", False)
    with pytest.raises(ValueError, match="CUDA device"):
        make()


def test_the_tiling_fits_the_kernels():
    tiling = tiling_of(LAYOUT, 2 * 32, torch.float32, CPU)
    assert tiling.max_decode_tokens == 2 and tiling.prefill_tokens >= 1
