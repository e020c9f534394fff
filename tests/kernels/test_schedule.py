"""The plan of a step: every token of every sequence in exactly one item or tile, and work spread evenly."""

import random
from itertools import pairwise

import numpy as np
import pytest
import torch
from pagedkv import KVLayout, Piece
from pagedkv.schedule import MAX_WAVES, Planner, StepLimits, Tiling, choose_splits, estimated_time

CPU = torch.device("cpu")
LAYOUT = KVLayout(2, 2, 64, 16)
TILING = Tiling(num_lanes=16, split_tokens=64, max_decode_tokens=8, prefill_tokens=32)
LIMITS = StepLimits(max_seqs=12, max_tokens=600, max_context_tokens=4096)


def make_pieces(chunks, seed=0):
    block_ids = list(range(2000))
    random.Random(seed).shuffle(block_ids)
    return [
        Piece(start, n, [block_ids.pop() for _ in range(LAYOUT.num_blocks(start + n) + (i % 2))])
        for i, (start, n) in enumerate(chunks)
    ]


CHUNKS = [(3000, 1), (0, 1), (0, 100), (63, 1), (64, 8), (40, 9), (15, 1), (700, 33), (500, 2)]


@pytest.mark.parametrize("chunks", [CHUNKS, CHUNKS[:1], CHUNKS[2:3], [(0, 1)] * 12, CHUNKS[::-1]])
def test_a_plan_covers_each_token_once(chunks):
    pieces = make_pieces(chunks)
    plan = Planner(LAYOUT, LIMITS, TILING, CPU).plan(pieces)
    row = 0
    ids_at = 0
    for i, piece in enumerate(pieces):
        context = piece.start + piece.num_tokens
        assert plan.seqs[i].tolist() == [row, piece.num_tokens, context, ids_at]
        held = LAYOUT.num_blocks(context)
        assert plan.block_ids[ids_at : ids_at + held].tolist() == list(piece.block_ids[:held])
        positions = range(piece.start, context)
        rows = slice(row, row + piece.num_tokens)
        assert plan.positions[rows].tolist() == list(positions)
        assert plan.slots[rows].tolist() == [piece.block_ids[p // 16] * 16 + p % 16 for p in positions]
        row, ids_at = rows.stop, ids_at + held

        items = sorted(r for r in plan.items[: plan.num_items].tolist() if r[0] == i)
        tiles = sorted(r for r in plan.tiles[: plan.num_tiles].tolist() if r[0] == i)
        ranges = [r[1:3] for r in (items or tiles)]
        assert bool(items) == (piece.num_tokens <= 8) == (not tiles)
        assert ranges[0][0] == 0 and ranges[-1][1] == (context if items else piece.num_tokens)
        assert all(a[1] == b[0] for a, b in pairwise(ranges))
        assert all(start < end and start % (64 if items else 32) == 0 for start, end in ranges)
        assert all(r[3] == len(items) for r in items)
    assert len(plan.positions) == len(plan.slots) == row


def test_merges_name_the_partials_of_split_sequences():
    plan = Planner(LAYOUT, LIMITS, TILING, CPU).plan(make_pieces(CHUNKS))
    merges = plan.merges[: plan.num_merges].tolist()
    assert merges
    items = plan.items[: plan.num_items].tolist()
    for seq, first, count in merges:
        assert [r[4] for r in sorted(items) if r[0] == seq] == list(range(first, first + count))
    used = [p for _, first, count in merges for p in range(first, first + count)]
    assert len(used) == len(set(used)) and max(used) < len(plan.items)
    assert {seq for seq, *_ in merges} == {r[0] for r in items if r[3] > 1}


def test_unused_entries_are_empty_and_addresses_stay():
    planner = Planner(LAYOUT, LIMITS, TILING, CPU)
    first = planner.plan(make_pieces(CHUNKS))
    address = first.items.data_ptr(), first.slots.data_ptr(), first.block_ids.data_ptr()
    plan = planner.plan(make_pieces([(5, 1)]))
    assert address == (plan.items.data_ptr(), plan.slots.data_ptr(), plan.block_ids.data_ptr())
    assert not plan.items[plan.num_items :].any()
    assert not plan.merges.any() and not plan.tiles.any()
    full = plan.full_grid()
    assert (full.num_items, full.num_merges, full.num_tiles) == tuple(
        map(len, (plan.items, plan.merges, plan.tiles))
    )


def test_longest_work_comes_first():
    plan = Planner(LAYOUT, LIMITS, TILING, CPU).plan(make_pieces(CHUNKS))
    sizes = (plan.items[: plan.num_items, 2] - plan.items[: plan.num_items, 1]).tolist()
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize(
    ("pieces", "message"),
    [
        ([], "0 sequences"),
        ([Piece(0, 1, [0])] * 13, "13 sequences"),
        ([Piece(0, 601, list(range(38)))], "600 in all"),
        ([Piece(0, 0, [])], "1 or more"),
        ([Piece(4096, 1, list(range(257)))], "4097 tokens; the limit is 4096"),
        ([Piece(15, 2, [0])], "1 blocks does not cover 17"),
    ],
)
def test_a_step_beyond_the_limits_is_refused(pieces, message):
    with pytest.raises(ValueError, match=message):
        Planner(LAYOUT, LIMITS, TILING, CPU).plan(pieces)


def test_one_long_sequence_fills_the_lanes():
    assert choose_splits(np.array([512]), 33)[0] >= 32


def test_a_batch_that_fills_the_lanes_is_not_split():
    assert choose_splits(np.full(32, 32), 33).tolist() == [1] * 32


def test_a_long_sequence_among_many_short_ones_is_split():
    num_tiles = np.array([512] + [16] * 100)
    splits = choose_splits(num_tiles, 33)
    # Unsplit, the long one alone would take 5 times the fair share of (512 + 1600) / 33.
    assert estimated_time(num_tiles, splits, 33) < 1.3 * num_tiles.sum() / 33
    assert splits[0] > 4


@pytest.mark.parametrize("seed", range(20))
def test_splits_stay_within_the_capacity_and_help(seed):
    rng = np.random.default_rng(seed)
    num_tiles = rng.integers(1, rng.integers(2, 600), size=rng.integers(1, 90))
    lanes = int(rng.integers(1, 140))
    splits = choose_splits(num_tiles, lanes)
    assert splits.sum() <= len(num_tiles) + MAX_WAVES * lanes
    assert ((splits >= 1) & (splits <= num_tiles)).all()
    whole = np.ones(len(num_tiles), dtype=np.int64)
    assert estimated_time(num_tiles, splits, lanes) <= estimated_time(num_tiles, whole, lanes)


def test_the_estimate_is_close_to_list_scheduling():
    rng = np.random.default_rng(1)
    for _ in range(50):
        num_tiles, lanes = rng.integers(1, 100, size=60), int(rng.integers(2, 40))
        loads = np.zeros(lanes)
        for size in sorted(num_tiles, reverse=True):
            loads[loads.argmin()] += size + 0.5
        estimate = estimated_time(num_tiles, np.ones(60, dtype=np.int64), lanes)
        assert 0.75 * loads.max() <= estimate <= loads.max() + 1e-9
