"""The correctness matrix of decode and prefill, on the interpreter; and what their launchers refuse."""

import pytest
import torch

pytest.importorskip("triton")

from pagedkv.checks.attention import CASES, CPU, Setting, run
from pagedkv.launch import DECODE, PREFILL, SPLIT_TOKENS, decode_launch, prefill_launch
from pagedkv.options import AttentionOptions
from pagedkv.tiles import check_attention
from triton import knobs

interpreted = pytest.mark.skipif(
    not knobs.runtime.interpret, reason="needs TRITON_INTERPRET=1 from the start"
)


@interpreted
@pytest.mark.parametrize("case", [case for case in CASES if case.small], ids=lambda case: case.name)
def test_case(case):
    case.run(CPU)


def test_names_of_cases_are_unique():
    names = [case.name for case in CASES]
    assert len(names) == len(set(names))


@interpreted
def test_a_case_that_does_not_split_as_it_says_fails():
    with pytest.raises(AssertionError, match="1 splits"):
        run(Setting("", ((16, 1),), min_splits=2), CPU)


def test_tiles_divide_what_a_context_is_cut_at():
    assert all(SPLIT_TOKENS % launch.tile == 0 for launch in DECODE.values())


@pytest.mark.parametrize("group", [1, 3, 8, 32, 71])
def test_a_query_token_fits_the_rows(group):
    for head_dim, dtype in ((80, torch.float32), (128, torch.float8_e4m3fn), (256, torch.bfloat16)):
        assert prefill_launch(head_dim, dtype, group).rows >= group
        assert decode_launch(head_dim, dtype, group).rows >= max(16, group)
    assert set(DECODE) == set(PREFILL)


def check(
    query=(3, 4, 64), kv=(2, 2, 16, 2, 64), dtype=torch.float16, kv_dtype=torch.float16, scales=(), **options
):
    q, pool = torch.zeros(query, dtype=dtype), torch.zeros(kv, dtype=kv_dtype)
    k_scale, v_scale = [torch.ones(shape) for shape in scales] or (None, None)
    check_attention(q, pool, torch.zeros_like(q), AttentionOptions(1.0, **options), k_scale, v_scale)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"query": (3, 5, 64)}, "does not fit"),
        ({"query": (3, 4, 80)}, "does not fit"),
        ({"kv_dtype": torch.float32}, "float32"),
        ({"kv_dtype": torch.float8_e4m3fn}, "needs k_scale"),
        ({"kv_dtype": torch.float8_e4m3fn, "scales": ((2,), (4,))}, r"a scale is \(4,\)"),
        ({"scales": ((2,), (2,))}, "2 scales"),
        ({"sinks": torch.zeros(2)}, r"sinks are \(2,\)"),
        ({"sliding_window": 0}, "window of 0"),
        ({"chunk_size": 0}, "chunks of 0"),
    ],
)
def test_launchers_refuse(arguments, message):
    check()
    with pytest.raises(AssertionError, match=message):
        check(**arguments)
