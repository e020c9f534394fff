from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from engine.core.events import EventKind
from engine.core.plan import Chunk, Preemption, PreemptionKind, Recomputed, Rejection, TableUpdate
from tests.telemetry.scripted import MS, Script, decode, ended, prefill, two_requests


def test_the_modules_of_the_inner_loop_import_the_standard_library_only() -> None:
    code = (
        "import sys, engine.telemetry.recorder; "
        "print([m for m in ('numpy', 'pandas', 'torch', 'simpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_counts_of_each_step() -> None:
    steps = two_requests().log().steps.set_index("step_id")
    expected = {
        "num_tokens": [5, 7, 1, 1, 1, 4, 4],
        "num_prefill_tokens": [5, 6, 0, 0, 0, 4, 4],
        "num_decode_tokens": [0, 1, 1, 1, 1, 0, 0],
        # b had computed its prompt of 6 and one output token when it lost them; position 7 is new.
        "num_recomputed_tokens": [0, 0, 0, 0, 0, 4, 3],
        "decode_context_tokens": [0, 6, 7, 7, 8, 0, 0],
        "max_decode_context_tokens": [0, 6, 7, 7, 8, 0, 0],
        "prefill_context_squares": [25, 36, 0, 0, 0, 16, 64],
        "num_sampled": [1, 2, 1, 1, 1, 0, 1],
        "num_transfers": [0, 0, 1, 1, 0, 0, 0],
        "prefill_attention_pairs": [15, 21, 0, 0, 0, 10, 5 + 6 + 7 + 8],
        "num_seqs": [1, 2, 1, 1, 1, 1, 1],
        "num_blocks_swapped_out": [0, 0, 2, 0, 0, 0, 0],
        "num_blocks_swapped_in": [0, 0, 0, 2, 0, 0, 0],
        "num_swap_preemptions": [0, 0, 1, 0, 0, 0, 0],
        "num_recompute_preemptions": [0, 0, 0, 0, 1, 0, 0],
        "num_fallbacks": [0, 0, 0, 0, 1, 0, 0],
        "num_lost_tokens": [0, 0, 0, 0, 7, 0, 0],
        "num_table_blocks": [2, 4, 2, 4, 2, 1, 2],
        # Both end with the KV of 8 tokens in 2 blocks of 4: no slot is left over.
        "num_unused_slots": [0] * 7,
        "duration_ns": [10 * MS] * 5 + [20 * MS] * 2,
        "transfer_ns": [0, 0, 3 * MS, 0, 0, 0, 0],
        "part_linear_ns": [0.0, 7e6, 7e6, 0.0, 0.0, 0.0, 0.0],
        "part_transfers_ns": [0.0, 0.0, 3e6, 0.0, 0.0, 0.0, 0.0],
    }
    assert {name: steps[name].tolist() for name in expected} == expected


def test_the_life_of_each_request() -> None:
    a, b = two_requests().log().requests.to_dict("records")
    assert a["token_times_ns"].tolist() == [10 * MS, 20 * MS, 50 * MS, 60 * MS]
    assert b["token_times_ns"].tolist() == [20 * MS, 30 * MS, 100 * MS]
    assert (a["first_scheduled_ns"], b["first_scheduled_ns"]) == (0, 10 * MS)
    assert (a["end_ns"], b["end_ns"]) == (60 * MS, 100 * MS)
    assert a["phases"].tolist() == ["waiting", "running", "swapped", "running", "ended"]
    assert a["phase_times_ns"].tolist() == [0, 0, 20 * MS, 40 * MS, 60 * MS]
    assert b["phases"].tolist() == ["waiting", "running", "waiting", "running", "ended"]
    assert b["phase_times_ns"].tolist() == [5 * MS, 10 * MS, 50 * MS, 60 * MS, 100 * MS]
    assert (a["num_blocks_swapped_out"], a["num_blocks_swapped_in"], a["num_swap_preemptions"]) == (2, 2, 1)
    assert (b["num_recompute_preemptions"], b["num_fallbacks"], b["num_lost_tokens"]) == (1, 1, 7)
    assert (a["num_recomputed_tokens"], b["num_recomputed_tokens"]) == (0, 7)
    assert (a["status"], a["reason"]) == ("finished", "length")


def test_two_sequences_share_the_prompt_and_part_after_it() -> None:
    script = Script()
    script.arrive("a", 0, 6, n=2)
    script.step(
        0, 10, [prefill("a", 0, 6, samples=(0, 1))], admitted=["a"], updates=[TableUpdate("a", 0, 0, (0, 1))]
    )
    tables = [TableUpdate("a", 0, 0, (0, 2)), TableUpdate("a", 1, 0, (0, 1))]
    script.step(10, 20, [decode("a", 6, seqs=(0, 1))], updates=tables, finished=[("a", 1)])
    script.step(20, 30, [decode("a", 7)])
    more = [TableUpdate("a", 0, 2, (3,))]
    end = [ended("a", EventKind.FINISHED, 40)]
    script.step(30, 40, [decode("a", 8)], updates=more, finished=[("a", 0)], events=end)
    log = script.log()
    (a,) = log.requests.to_dict("records")
    assert a["seq_num_output_tokens"].tolist() == [4, 2]
    assert a["token_times_ns"].tolist() == [10 * MS, 20 * MS, 30 * MS, 40 * MS, 10 * MS, 20 * MS]
    assert a["num_output_tokens"] == 6
    assert log.steps["num_seqs"].tolist() == [1, 2, 1, 1]
    assert log.steps["decode_context_tokens"].tolist() == [0, 14, 8, 9]
    assert log.steps["num_table_blocks"].tolist() == [2, 4, 2, 3]
    # Sequence 1 ends with the KV of 7 tokens in 8 slots, sequence 0 with that of 9 tokens in 12.
    assert log.steps["num_unused_slots"].tolist() == [0, 1, 0, 3]


def test_what_is_computed_again_is_told_by_the_plan() -> None:
    script = Script()
    script.arrive("a", 0, 4, n=2)
    script.step(0, 1, [prefill("a", 0, 4, samples=(0, 1))], admitted=["a"])
    script.step(1, 2, [decode("a", 4, seqs=(0, 1))])
    lost = Preemption("a", PreemptionKind.RECOMPUTE, 6, False)
    script.step(2, 3, [], preempted=[lost])
    script.step(3, 4, [Chunk("a", 0, 4, (0,), ())], admitted=["a"], recomputed=[Recomputed("a", 4)])
    script.step(4, 5, [Chunk("a", 4, 2, (0, 1), (0, 1))], recomputed=[Recomputed("a", 2)])
    log = script.log()
    assert log.steps["num_recomputed_tokens"].tolist() == [0, 0, 0, 4, 2]
    assert log.steps["num_prefill_tokens"].tolist() == [4, 0, 0, 4, 4]
    assert log.requests["num_recomputed_tokens"].tolist() == [6]
    assert log.requests["seq_num_output_tokens"][0].tolist() == [3, 3]


def test_an_aborted_request_does_not_keep_the_token_of_the_step_that_it_left() -> None:
    script = Script()
    script.arrive("a", 0, 3)
    script.arrive("b", 0, 3)
    table = [TableUpdate("a", 0, 0, (0,)), TableUpdate("b", 0, 0, (1,))]
    script.step(0, 10, [prefill("a", 0, 3), prefill("b", 0, 3)], admitted=["a", "b"], updates=table)
    script.step(10, 20, [decode("a", 3), decode("b", 3)], events=[ended("a", EventKind.ABORTED, 15, "")])
    script.step(20, 30, [], events=[ended("b", EventKind.ABORTED, 20, "")])
    log = script.log()
    assert [times.tolist() for times in log.requests["token_times_ns"]] == [[10 * MS], [10 * MS, 20 * MS]]
    assert log.requests["status"].tolist() == ["aborted", "aborted"]
    assert log.requests["end_ns"].tolist() == [15 * MS, 20 * MS]
    assert log.steps["num_table_blocks"].tolist() == [2, 2, 0]


def test_rejections_and_requests_that_never_end() -> None:
    script = Script()
    script.arrive("big", 0, 100)
    script.arrive("late", 1, 2)
    reason = "needs 25 blocks, there are 8"
    end = [ended("big", EventKind.REJECTED, 0, reason)]
    script.step(2, 2, [], rejected=[Rejection("big", reason)], events=end)
    log = script.log()
    assert log.steps["num_rejections"].tolist() == [1]
    assert log.requests["status"].tolist() == ["rejected", "unfinished"]
    assert log.requests["reason"].tolist() == [reason, ""]
    assert log.requests["first_token_ns"].isna().all()
    assert log.requests["phases"][1].tolist() == ["waiting"]


def test_a_run_without_requests_has_empty_frames_with_the_same_dtypes() -> None:
    empty, full = Script().log(), two_requests().log()
    assert len(empty.steps) == len(empty.requests) == 0
    shared = [name for name in full.steps.columns if not name.startswith("part_")]
    assert (empty.steps.dtypes == full.steps[shared].dtypes).all()
    assert (empty.requests.dtypes == full.requests.dtypes).all()


def test_errors_name_the_request() -> None:
    script = Script()
    script.arrive("a", 0, 1)
    with pytest.raises(ValueError, match="'a' arrives twice"):
        script.arrive("a", 0, 1)
    with pytest.raises(ValueError, match="'b', of which the recorder was not told"):
        script.step(0, 1, [prefill("b", 0, 1)], admitted=["b"])


def test_parts_that_change_from_step_to_step() -> None:
    script = Script()
    script.arrive("a", 0, 1)
    script.step(0, 1, [prefill("a", 0, 1)], admitted=["a"], parts_ns={"x": 1.0})
    script.step(1, 2, [decode("a", 1)], parts_ns={"y": 2.0, "x": 3.0})
    script.step(2, 3, [decode("a", 2)], parts_ns={"x": 4.0})
    steps = script.log().steps
    assert [name for name in steps.columns if name.startswith("part_")] == ["part_x_ns", "part_y_ns"]
    np.testing.assert_array_equal(steps["part_x_ns"], [1.0, 3.0, 4.0])
    np.testing.assert_array_equal(steps["part_y_ns"], [0.0, 2.0, 0.0])
