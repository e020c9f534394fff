"""KV store, block copy and swap: the matrix on the interpreter, and what the launchers refuse."""

import pytest
import torch

pytest.importorskip("triton")

from pagedkv import copy
from pagedkv.checks.memory import CASES, CPU
from pagedkv.copy import copy_blocks, swap_blocks
from pagedkv.rope import store_kv_rope
from pagedkv.store import store_kv
from triton import knobs

interpreted = pytest.mark.skipif(
    not knobs.runtime.interpret, reason="needs TRITON_INTERPRET=1 from the start"
)
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy on infinities, which are meant
HALF, FP8 = torch.float16, torch.float8_e4m3fn


@interpreted
@pytest.mark.parametrize("case", [case for case in CASES if case.small], ids=lambda case: case.name)
def test_case(case):
    case.run(CPU)


def test_names_of_cases_are_unique():
    names = [case.name for case in CASES]
    assert len(names) == len(set(names))


def arguments(shape=(3, 2, 64), dtype=HALF, pool=(4, 1, 2, 16, 2, 64), pool_dtype=HALF):
    key, value = torch.zeros(shape, dtype=dtype), torch.zeros(shape, dtype=dtype)
    return [key, value, torch.zeros(pool, dtype=pool_dtype)[:, 0], torch.arange(shape[0])]


SCALE = torch.ones(2)
WRONG_STORES = {
    "key must be": lambda: store_kv(torch.zeros(3, 64), *arguments()[1:]),
    "but key": lambda: store_kv(torch.zeros(2, 2, 64, dtype=HALF), *arguments()[1:]),
    "value is torch.float32": lambda: store_kv(arguments()[0], torch.zeros(3, 2, 64), *arguments()[2:]),
    "head_dim 72": lambda: store_kv(*arguments((3, 2, 72), pool=(4, 1, 2, 16, 2, 72))),
    "last stride 2": lambda: store_kv(torch.zeros(3, 2, 128, dtype=HALF)[..., ::2], *arguments()[1:]),
    "pool_layer": lambda: store_kv(*arguments(pool=(4, 1, 2, 16, 3, 64))),
    "not contiguous": lambda: store_kv(
        *arguments()[:2], arguments()[2].transpose(2, 3).contiguous().transpose(2, 3), torch.arange(3)
    ),
    "slots must be": lambda: store_kv(*arguments()[:3], torch.arange(4)),
    "torch.int32": lambda: store_kv(*arguments()[:3], torch.arange(3, dtype=torch.int32)),
    "but the pool torch.float32": lambda: store_kv(*arguments(pool_dtype=torch.float32)),
    "k_scale given": lambda: store_kv(*arguments(), SCALE, SCALE),
    "v_scale must be": lambda: store_kv(*arguments(pool_dtype=FP8), SCALE, None),
    r"k_scale must be \(2,\)": lambda: store_kv(*arguments(pool_dtype=FP8), torch.ones(1), SCALE),
}


@pytest.mark.parametrize("text", WRONG_STORES)
def test_store_refuses(text):
    with pytest.raises(ValueError, match=text):
        WRONG_STORES[text]()


def rope(query=(3, 4, 64), angles=(3, 64), dtype=HALF, **options):
    query, cos = torch.zeros(query, dtype=dtype), torch.zeros(angles)
    key, value, pool, slots = arguments()
    return store_kv_rope(query, key, value, cos, cos, pool, slots, **options)


WRONG_ROPES = {
    r"query \(3, 4, 80\)": lambda: rope(query=(3, 4, 80)),
    "query is torch.float32": lambda: rope(dtype=torch.float32),
    r"must be \(3, rotary_dim\)": lambda: rope(angles=(2, 64)),
    "rotary_dim 24": lambda: rope(angles=(3, 24)),
    "rotary_dim 80": lambda: rope(angles=(3, 80)),
    "like the query": lambda: rope(out=torch.zeros(3, 4, 64)),
}


@pytest.mark.parametrize("text", WRONG_ROPES)
def test_fused_store_refuses(text):
    with pytest.raises(ValueError, match=text):
        WRONG_ROPES[text]()


def test_fused_store_does_not_rotate_in_place():
    query = torch.zeros(3, 4, 64, dtype=HALF)
    key, value, pool, slots = arguments()
    cos = torch.zeros(3, 64)
    with pytest.raises(ValueError, match="must not be the query"):
        store_kv_rope(query, key, value, cos, cos, pool, slots, out=query)


POOL, OTHER = torch.zeros(4, 8), torch.ones(3, 8)
WRONG_COPIES = {
    "blocks differ": (POOL, torch.zeros(4, 12), [0], [1]),
    "torch.float16": (POOL, torch.zeros(4, 8, dtype=HALF), [0], [1]),
    "12 bytes": (torch.zeros(4, 3), torch.zeros(4, 3), [0], [1]),
    "not contiguous": (torch.zeros(4, 16)[:, ::2], POOL, [0], [1]),
    r"source ids \[4\]": (POOL, OTHER, [4, 0], [0, 1]),
    r"target ids \[3\]": (POOL, OTHER, [3, 0], [3, 1]),
    r"source ids \[-1\]": (POOL, OTHER, [-1], [0]),
    "2 source ids, but 1": (POOL, OTHER, [1, 2], [0]),
    "occurs twice": (POOL, OTHER, [1, 2], [0, 0]),
    "both source and target": (POOL, POOL, [1, 2], [0, 1]),
}


@pytest.mark.parametrize("function", [copy_blocks, swap_blocks])
@pytest.mark.parametrize("text", WRONG_COPIES)
def test_copy_refuses(text, function):
    with pytest.raises(ValueError, match=text):
        function(*WRONG_COPIES[text])


@pytest.mark.parametrize(("ids", "by_kernel"), [([5, 3, 1], True), ([1, 2, 3], False)])
def test_swap_takes_the_kernel_for_short_runs_only(ids, by_kernel, monkeypatch):
    """On stand-ins for a device pool, whose blocks of 64 KB are too short alone and long enough in threes."""
    calls = []
    monkeypatch.setattr(copy, "copy_blocks", lambda *arguments: calls.append(arguments))
    monkeypatch.setattr(copy, "_check", lambda *arguments: None)
    source, target = torch.ones(6, 2**14).as_subclass(OnDevice), torch.zeros(6, 2**14)
    swap_blocks(source, target, ids, [0, 1, 2])
    assert len(calls) == by_kernel
    assert bool(target[:3].all()) != by_kernel


class OnDevice(torch.Tensor):
    """Says that it is on a GPU."""

    is_cuda = True
