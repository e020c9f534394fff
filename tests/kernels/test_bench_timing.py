"""What the bench times, as far as it runs without a GPU: the calls are right, and a fake device is timed."""

from __future__ import annotations

import contextlib
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from pagedkv.bench import flash_infer, flex, memory, paged, sdpa, timing
from pagedkv.bench.grids import DecodePoint, PrefillPoint
from pagedkv.bench.stages import NotApplicableError
from pagedkv.launch import AttentionLaunch
from pagedkv.roofline import Shape
from torch.nn.attention import SDPBackend
from torch.nn.functional import scaled_dot_product_attention

CPU = torch.device("cpu")
SMALL = Shape(num_layers=2, num_q_heads=4, num_kv_heads=2, head_dim=64)


# Timing, with a device of which every call takes a known time


class FakeDevice:
    """Stands in for torch.cuda: runs calls by a clock, records those of a capture, plays them back."""

    def __init__(self) -> None:
        self.now = 0.0
        self.captured: list[float] | None = None
        self.log: list[str] = []

    def kernel(self, seconds: float) -> None:
        if self.captured is not None:
            self.captured.append(seconds)
        else:
            self.now += seconds
            self.log.append(f"run on {self.stream_name}")

    stream_name = "default"

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        device = self

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                assert enable_timing

            def record(self) -> None:
                self.at = device.now

            def synchronize(self) -> None: ...

            def elapsed_time(self, end: Event) -> float:
                return (end.at - self.at) * 1e3

        class CUDAGraph:
            def replay(self) -> None:
                assert device.captured is None
                device.now += 5e-6 + sum(self.kernels)
                device.log.append("replay")

        class Stream:
            def wait_stream(self, other: Stream) -> None:
                device.log.append("wait")

        @contextlib.contextmanager
        def stream(side: Stream):
            device.stream_name = "side"
            yield
            device.stream_name = "default"

        @contextlib.contextmanager
        def graph(made: CUDAGraph, stream: Stream):
            device.captured = made.kernels = []
            yield
            device.captured = None
            device.log.append("captured")

        fakes = {"Event": Event, "CUDAGraph": CUDAGraph, "Stream": Stream, "stream": stream, "graph": graph}
        fakes |= {"current_stream": Stream, "synchronize": lambda device=None: self.log.append("synchronize")}
        for name, fake in fakes.items():
            monkeypatch.setattr(torch.cuda, name, fake)


def test_a_graph_is_warmed_up_captured_and_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    device = FakeDevice()
    device.install(monkeypatch)
    calls = [partial(device.kernel, seconds) for seconds in (1e-3, 3e-3)]
    assert timing.graph_seconds(calls) == pytest.approx(2e-3, rel=0.01)
    warm_up = ["wait", *["run on side"] * 2 * timing.WARM_UPS, "wait", "synchronize", "captured", "replay"]
    assert device.log[: len(warm_up)] == warm_up
    rounds = device.log[len(warm_up) :]
    assert rounds.count("replay") == 1 + timing.ROUNDS * round(timing.ROUND_SECONDS / 4e-3)


def test_calls_from_python_are_timed_between_events(monkeypatch: pytest.MonkeyPatch) -> None:
    device = FakeDevice()
    device.install(monkeypatch)
    assert timing.stream_seconds(partial(device.kernel, 1e-3)) == pytest.approx(1e-3)


@pytest.mark.parametrize("num_bytes, num_calls", [(1 << 30, 2), (50 << 20, 3), (1 << 20, 64)])
def test_calls_read_three_times_the_cache(monkeypatch, num_bytes: int, num_calls: int) -> None:
    properties = SimpleNamespace(L2_cache_size=50 << 20)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    assert timing.num_cold(num_bytes, CPU) == num_calls


# What is timed is right, as far as it runs here


def half(setting: paged.Paged) -> paged.Paged:
    """In float16: the interpreter gets bfloat16 wrong."""
    return setting._replace(pool=setting.pool.half(), query=setting.query.half())


def check_calls(setting: paged.Paged, calls: list) -> None:
    """Each gives the attention of its layer; the output is the fifth argument."""
    from pagedkv.tiles import paged_attention_reference

    for layer, call in enumerate(calls):
        call.args[4].fill_(float("nan"))
        call()
        kv = setting.pool[:, layer]
        expected = paged_attention_reference(setting.query, kv, setting.pieces, setting.options)
        torch.testing.assert_close(call.args[4].double(), expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("lanes", [1, 3])
@pytest.mark.parametrize("block_size", [16, 64])
def test_decode_calls_give_attention(block_size: int, lanes: int) -> None:
    setting = half(paged.paged(SMALL, [(199, 1), (16, 1)], block_size, 2, CPU))
    check_calls(setting, paged.decode_calls(setting, lanes=lanes))


@pytest.mark.parametrize("launch", [None, AttentionLaunch(16, 32, 4, 2, "test")])
def test_prefill_calls_give_attention(launch: AttentionLaunch | None) -> None:
    setting = half(paged.paged(SMALL, [(0, 40), (20, 12)], 16, 2, CPU))
    check_calls(setting, paged.prefill_calls(setting, launch))


@pytest.mark.parametrize("cached", [0, 20])
def test_sdpa_sees_what_ours_see(cached: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A decode sees all of the context; a chunk the cached tokens and those before."""
    made = []

    def record(query, keys, values, **mask) -> None:
        made.append((query, keys, values, scaled_dot_product_attention(query, keys, values, **mask)))

    monkeypatch.setattr(sdpa, "scaled_dot_product_attention", record)
    for call in sdpa.decode_calls(DecodePoint("test", (40, 40), 16, SMALL), 2, CPU, SDPBackend.MATH):
        call()
    chunk = PrefillPoint("test", ((cached, 12),) * 2, 16, SMALL)
    for call in sdpa.prefill_calls(chunk, CPU, SDPBackend.MATH):
        call()
    for i, (query, keys, values, out) in enumerate(made):
        seen = torch.ones(query.shape[2], keys.shape[2], dtype=torch.bool)
        if i == 2:
            seen = seen.tril(cached)
        scores = (query.float() @ keys.float().mT / 8).masked_fill(~seen, float("-inf"))
        expected = scores.softmax(-1) @ values.float()
        torch.testing.assert_close(out.float(), expected, rtol=2e-2, atol=2e-2)
    assert [query.shape for query, *_ in made] == [(2, 2, 2, 64), (2, 2, 2, 64), (2, 4, 12, 64)]


def test_uneven_contexts_are_not_for_sdpa() -> None:
    with pytest.raises(NotApplicableError, match="uneven"):
        sdpa.decode_seconds(DecodePoint("test", (40, 39), 16, SMALL), CPU)


def test_the_fastest_backend_counts() -> None:
    def calls(backend: SDPBackend) -> list:
        if backend is SDPBackend.CUDNN_ATTENTION:
            raise RuntimeError("no available kernel")
        return [backend]

    times = {SDPBackend.FLASH_ATTENTION: 3.0, SDPBackend.EFFICIENT_ATTENTION: 2.0}
    assert sdpa.fastest(calls, sdpa.FUSED, seconds=lambda made: times[made[0]]) == 2.0
    with pytest.raises(NotApplicableError, match="CUDNN_ATTENTION: no available kernel"):
        sdpa.fastest(calls, sdpa.CUDNN)


@pytest.mark.parametrize(
    "build",
    [
        memory.build_store,
        memory.build_store_rope,
        memory.build_add_rms_norm,
        memory.build_silu_and_mul,
        memory.build_sampling,
        memory.build_block_copy,
        partial(memory.build_swap, "in"),
        partial(memory.build_swap, "out"),
    ],
    ids=["store", "store with RoPE", "norm", "product", "sampling", "copy", "swap in", "swap out"],
)
def test_memory_calls_run(build) -> None:
    build(2, CPU)()


@pytest.mark.filterwarnings("ignore:flex_attention called without")
def test_flex_pages_are_the_block_tables() -> None:
    """The mask over physical slots, in eager mode, gives what the reference gives."""
    from pagedkv.tiles import paged_attention_reference
    from torch.nn.attention.flex_attention import flex_attention

    setting = paged.paged(SMALL, [(39, 1), (16, 1), (15, 1)], 16, 1, CPU)
    keys, values = (setting.pool[:, 0, i].flatten(0, 1).transpose(0, 1)[None].float() for i in (0, 1))
    mask = flex.page_mask(setting)
    query = setting.query.view(3, 4, 1, 64).float()
    out = flex_attention(query, keys.contiguous(), values.contiguous(), block_mask=mask, enable_gqa=True)
    expected = paged_attention_reference(setting.query, setting.pool[:, 0], setting.pieces, setting.options)
    torch.testing.assert_close(out.view(3, 4, 64).double(), expected, rtol=1e-5, atol=1e-5)
    assert mask.full_kv_num_blocks.flatten().tolist() == [2, 1, 1]
    assert mask.kv_num_blocks.flatten().tolist() == [1, 1, 0]


def test_page_tables_are_as_flashinfer_takes_them() -> None:
    setting = paged.paged(SMALL, [(39, 1), (16, 1), (15, 1)], 16, 1, CPU)
    first, ids, last = flash_infer.page_tables(setting)
    assert first.tolist() == [0, 3, 5, 6]
    assert ids.tolist() == [i for piece in setting.pieces for i in piece.block_ids]
    assert last.tolist() == [8, 1, 16]
    assert {first.dtype, ids.dtype, last.dtype} == {torch.int32}
