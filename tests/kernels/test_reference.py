"""The torch reference against attention written out for one query at a time."""

import math
import random

import pytest
import torch
from pagedkv import AttentionOptions, Batch, KVLayout, Piece, ReferenceAttention, batch_order, write_kv

LAYOUT = KVLayout(num_layers=3, num_kv_heads=2, head_dim=8, block_size=4)
NUM_Q_HEADS = 6
LAYER = 1
CPU = torch.device("cpu")
SPARE_BLOCKS = 1
"""Blocks of a table that hold nothing yet."""


def plain(query, keys, values, options):
    """One query `(num_q_heads, head_dim)` at the last position of keys and values, in double precision."""
    out = torch.empty(query.shape, dtype=torch.float64)
    per_kv_head = len(query) // keys.shape[1]
    first = 0 if options.sliding_window is None else max(0, len(keys) - options.sliding_window)
    if options.chunk_size is not None:
        first = max(first, (len(keys) - 1) // options.chunk_size * options.chunk_size)
    for head, q in enumerate(query.double()):
        k, v = (x[first:, head // per_kv_head].double() for x in (keys, values))
        scores = [float(q @ row) * options.scaling for row in k]
        if options.softcap is not None:
            scores = [options.softcap * math.tanh(s / options.softcap) for s in scores]
        weights = [math.exp(s) for s in scores]
        total = sum(weights) + (0 if options.sinks is None else math.exp(float(options.sinks[head])))
        out[head] = sum(w / total * row for w, row in zip(weights, v, strict=True))
    return out


class Case:
    """Sequences with random KV of which a part is in the pool, and a batch of the rest."""

    def __init__(self, shapes, dtype, seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.shapes = shapes  # (start, num_tokens) of each sequence
        lengths = [start + num_tokens for start, num_tokens in shapes]
        num_blocks = 1 + sum(LAYOUT.num_blocks(length) + SPARE_BLOCKS for length in lengths)
        block_ids = list(range(num_blocks))
        random.Random(seed).shuffle(block_ids)
        self.pool = LAYOUT.allocate(num_blocks, dtype, CPU)
        self.pool.normal_(generator=generator)

        def tensors(num_heads):
            return [torch.randn(n, num_heads, 8, generator=generator).to(dtype) for n in lengths]

        self.queries, self.keys, self.values = tensors(NUM_Q_HEADS), tensors(2), tensors(2)
        self.pieces = []
        for (start, num_tokens), keys, values in zip(shapes, self.keys, self.values, strict=True):
            table = [block_ids.pop() for _ in range(LAYOUT.num_blocks(start + num_tokens) + SPARE_BLOCKS)]
            self.pieces.append(Piece(start, num_tokens, table))
            for position in range(start):
                block, offset = table[position // 4], position % 4
                self.pool[block, LAYER, 0, offset] = keys[position]
                self.pool[block, LAYER, 1, offset] = values[position]

    def poison(self, options, value):
        """Every slot of the pool becomes `value`, but those that a query of the batch sees."""
        poisoned = torch.full_like(self.pool, value)
        for (start, _), piece in zip(self.shapes, self.pieces, strict=True):
            for position in range(int(options.first_seen(torch.tensor(start))), start):
                slot = piece.block_ids[position // 4], LAYER, slice(None), position % 4
                poisoned[slot] = self.pool[slot]
        self.pool = poisoned

    def run(self, options, max_blocks=16):
        order = batch_order(self.pieces)
        attention = ReferenceAttention(LAYOUT, self.pool, max_blocks)
        batch = Batch.build(LAYOUT, [self.pieces[i] for i in order], CPU, max_blocks)
        flat = [
            torch.cat([x[i][self.shapes[i][0] :] for i in order])
            for x in (self.queries, self.keys, self.values)
        ]
        out = attention.attend(batch, LAYER, *flat, options)
        return order, batch, out

    def expected(self, order, options):
        return torch.cat(
            [
                plain(self.queries[i][p], self.keys[i][: p + 1], self.values[i][: p + 1], options)[None]
                for i in order
                for p in range(self.shapes[i][0], sum(self.shapes[i]))
            ]
        )


MIXED = [(9, 1), (0, 5), (30, 1), (7, 6), (8, 1), (0, 1), (3, 1), (16, 4), (31, 1), (4, 9)]
OPTIONS = {
    "plain": AttentionOptions(0.35),
    "window": AttentionOptions(0.35, sliding_window=5),
    "chunks of 1": AttentionOptions(0.35, chunk_size=1),
    "chunks of 6": AttentionOptions(0.35, chunk_size=6),  # no multiple of the block size
    "chunks of 8": AttentionOptions(0.35, chunk_size=8),
    "chunks and window": AttentionOptions(0.35, sliding_window=4, chunk_size=7),
    "softcap": AttentionOptions(0.35, softcap=2.0),
    "sinks": AttentionOptions(0.35, sinks=torch.linspace(-2, 2, NUM_Q_HEADS)),
    "all": AttentionOptions(0.2, 3, 5, softcap=1.0, sinks=torch.linspace(-1, 3, NUM_Q_HEADS)),
}


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("shapes", [MIXED, [(0, 1)], [(0, 7)], [(12, 1)] * 5, [(0, 1), (0, 1)]])
def test_attention_equals_plain_attention(name, shapes):
    case = Case(shapes, torch.float32)
    order, _, out = case.run(OPTIONS[name])
    torch.testing.assert_close(out.double(), case.expected(order, OPTIONS[name]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("shapes", [MIXED, [(12, 1)] * 5, [(5, 1), (9, 1)], [(7, 6)]])
def test_slots_that_no_query_sees_change_nothing(name, shapes, value):
    """Blocks of others, unwritten slots of the last block and of the table, and what lies before a window."""
    case = Case(shapes, torch.float32)
    _, _, expected = case.run(OPTIONS[name])
    case.poison(OPTIONS[name], value)
    _, _, out = case.run(OPTIONS[name])
    assert torch.equal(out, expected)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("bad", range(len(MIXED)))
def test_a_sequence_that_is_not_finite_changes_no_other(name, bad, value):
    case = Case(MIXED, torch.float32)
    order, _, expected = case.run(OPTIONS[name])
    for x in (case.queries, case.keys, case.values):
        x[bad].fill_(value)
    for position in range(MIXED[bad][0]):
        case.pool[case.pieces[bad].block_ids[position // 4], LAYER, :, position % 4] = value
    _, _, out = case.run(OPTIONS[name])
    owner = torch.tensor([i for i in order for _ in range(MIXED[i][1])])
    assert torch.equal(out[owner != bad], expected[owner != bad])
    assert not out[owner == bad].isfinite().any()


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("start", [0, 7])
@pytest.mark.parametrize("part", ["keys", "values"])
def test_a_token_that_is_not_finite_changes_only_what_sees_it(name, start, part):
    options, case = OPTIONS[name], Case([(start, 12)], torch.float32)
    order, _, _ = case.run(options)
    expected = case.expected(order, options)
    bad = start + 4
    getattr(case, part)[0][bad, 0, 3] = math.inf
    _, _, out = case.run(options)
    asking = torch.arange(start, start + 12)
    sees = (options.first_seen(asking) <= bad) & (asking >= bad)
    assert sees.any() and not sees.all()
    assert out[sees, :3].isnan().all(), "query heads of the KV head that is not finite"
    out[sees, :3] = expected[sees, :3].float()
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)


def test_a_score_that_overflows_is_hidden_from_earlier_tokens():
    """Its key is finite, and in half precision its scores are not."""
    case = Case([(3, 6)], torch.float16)
    order, _, _ = case.run(OPTIONS["sinks"])
    expected = case.expected(order, OPTIONS["sinks"])
    case.keys[0][8] = 60000.0
    _, _, out = case.run(OPTIONS["sinks"])
    torch.testing.assert_close(out[:5].double(), expected[:5], rtol=0.01, atol=0.01)


@pytest.mark.parametrize(
    ("position", "window", "chunk", "first"),
    [
        (7, None, None, 0),
        (7, None, 8, 0),
        (8, None, 8, 8),
        (9, None, 8, 8),
        (15, 3, 8, 13),
        (9, 3, 8, 8),
        (9, 1, 8, 9),
        (2, 9, 9, 0),
    ],
)
def test_first_seen(position, window, chunk, first):
    assert int(AttentionOptions(1.0, window, chunk).first_seen(torch.tensor(position))) == first


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_attention_in_half_precision(dtype):
    case = Case(MIXED, dtype)
    order, _, out = case.run(OPTIONS["plain"])
    # Weights and result are rounded to the type: a few units in the last place of values up to about 3.
    tolerance = 8 * torch.finfo(dtype).eps
    torch.testing.assert_close(
        out.double(), case.expected(order, OPTIONS["plain"]), rtol=tolerance, atol=tolerance
    )


def test_groups_hold_decodes_alike_and_chunks_alone():
    case = Case(MIXED, torch.float32)
    _, batch, _ = case.run(OPTIONS["plain"])
    assert [group.num_queries for group in batch.groups][-4:] == [5, 9, 6, 4]
    decodes = [group for group in batch.groups if group.num_queries == 1]
    assert sum(group.num_seqs for group in decodes) == 6
    assert len(decodes) < 6
    assert all(group.num_seqs * LAYOUT.num_blocks(group.num_slots) <= 16 for group in decodes)


def test_a_group_never_outgrows_the_scratch():
    case = Case([(30, 1)] * 7, torch.float32)
    _, batch, _ = case.run(OPTIONS["plain"])
    assert [group.num_seqs for group in batch.groups] == [2, 2, 2, 1]


def test_blocks_before_a_window_or_chunk_are_not_read():
    batch = Batch.build(LAYOUT, [Piece(29, 1, range(8)), Piece(30, 1, range(8, 16))], CPU, 16)
    [group] = batch.groups
    rows = group.context(AttentionOptions(1.0, sliding_window=5)).rows
    blocks = (rows[LAYER] // LAYOUT.rows_per_block).tolist()
    assert blocks == [6, 7, 14, 15] * 2  # K and V of positions 24 to 31: the windows start at 25 and 26
    rows = group.context(AttentionOptions(1.0, chunk_size=30)).rows
    # Position 29 sees its chunk, 30 only itself: its second to last blocks are padding.
    assert (rows[LAYER] // LAYOUT.rows_per_block).tolist() == [*range(8), *[15] * 8] * 2


def test_write_kv_touches_only_its_slots():
    pool = LAYOUT.allocate(3, torch.float32, CPU)
    before = pool.normal_(generator=torch.Generator().manual_seed(1)).clone()
    batch = Batch.build(LAYOUT, [Piece(6, 3, [2, 0, 1])], CPU, 16)
    key, value = torch.full((3, 2, 8), 5.0), torch.full((3, 2, 8), 7.0)
    write_kv(LAYOUT.slots(pool), batch.slots[2], key, value)
    for block, offset in ((0, 2), (0, 3), (1, 0)):  # positions 6, 7, 8 in blocks of 4
        assert (pool[block, 2, 0, offset] == 5).all()
        assert (pool[block, 2, 1, offset] == 7).all()
        before[block, 2, :, offset] = pool[block, 2, :, offset]
    assert torch.equal(pool, before)


def test_a_block_is_one_contiguous_piece():
    pool = LAYOUT.allocate(5, torch.bfloat16, CPU)
    assert pool[3].is_contiguous()
    assert pool[3].nbytes == LAYOUT.block_bytes(torch.bfloat16) == 3 * 2 * 4 * 2 * 8 * 2
    assert LAYOUT.rows(pool).data_ptr() == LAYOUT.slots(pool).data_ptr() == pool.data_ptr()
