"""Floors against bytes and FLOPs counted one by one."""

from pathlib import Path

import pytest
from pagedkv import roofline
from pagedkv.markdown import read_between
from pagedkv.roofline import H200, LLAMA3_8B, Shape, Work, floor_s

SMALL = Shape(
    num_layers=3, num_q_heads=4, num_kv_heads=2, head_dim=8, hidden=32, intermediate=64, vocabulary=10
)


def scores(chunks):
    """Scores under a causal mask, one by one."""
    return sum(
        1 for cached, new in chunks for q in range(new) for k in range(cached + new) if k <= cached + q
    )


@pytest.mark.parametrize("chunks", [[(0, 1)], [(0, 5)], [(7, 3)], [(0, 5), (16, 1), (3, 9)]])
def test_prefill_counts_every_score_once(chunks) -> None:
    work = roofline.prefill_attention(SMALL, chunks)
    assert work.flops == 4 * SMALL.head_dim * SMALL.num_q_heads * scores(chunks)


def test_a_prefill_of_one_token_is_a_decode() -> None:
    contexts = [1, 16, 17, 40]
    chunks = [(context - 1, 1) for context in contexts]
    assert roofline.prefill_attention(SMALL, chunks) == roofline.decode_attention(SMALL, contexts)


def test_decode_reads_kv_once_whatever_the_query_heads() -> None:
    few, many = (roofline.decode_attention(SMALL._replace(num_q_heads=heads), [100, 7]) for heads in (2, 16))
    query_bytes = 2 * 8 * 2
    assert many.bytes_read - few.bytes_read == 14 * query_bytes
    assert many.flops == 8 * few.flops
    kv_bytes = (100 + 7) * 2 * 2 * 8 * 2
    table_bytes = (7 + 1) * 4
    assert few.bytes_read == kv_bytes + table_bytes + 2 * 2 * query_bytes // 2


def test_llama_3_8b_decode_is_what_the_targets_say() -> None:
    """kernels.md: batch 64 x 4k is 1.07 GB."""
    work = roofline.decode_attention(LLAMA3_8B, [4096] * 64)
    assert work.num_bytes == pytest.approx(1.07e9, rel=0.01)
    assert floor_s(work, H200) == pytest.approx(224e-6, rel=0.01)


def test_a_block_of_llama_3_8b_is_two_megabytes() -> None:
    assert roofline.block_bytes(LLAMA3_8B, 16) == 2 << 20
    assert roofline.swap(LLAMA3_8B, 3).link_bytes == 3 * (2 << 20)
    assert roofline.block_copy(LLAMA3_8B, 3).bytes_written == 3 * (2 << 20)


def test_the_floor_is_the_slowest_resource() -> None:
    for work, limit, seconds in [
        (Work(bytes_read=int(2.4e12), bytes_written=int(2.4e12), flops=1), "memory", 1),
        (Work(bytes_read=1, flops=int(989e12)), "arithmetic", 1),
        (Work(bytes_read=int(64e9), link_bytes=int(64e9)), "link", 1),
    ]:
        assert roofline.limit(work, H200) == limit
        assert floor_s(work, H200) == pytest.approx(seconds)


def test_elementwise_kernels_count_every_tensor_once() -> None:
    tokens, row = 5, 32 * 2
    assert roofline.add_rms_norm(SMALL, tokens).num_bytes == 4 * tokens * row + row
    assert roofline.silu_and_mul(SMALL, tokens).num_bytes == 3 * tokens * 64 * 2
    assert roofline.sampling(SMALL, 2).num_bytes == 2 * 10 * 4 + 2 * 8
    plain, rotated = (roofline.kv_store(SMALL, tokens, rope=rope) for rope in (False, True))
    assert plain.num_bytes == 2 * tokens * SMALL.slot_bytes + tokens * 8
    query_bytes, angle_bytes = 2 * tokens * SMALL.query_bytes, tokens * 2 * 8 * 2
    assert rotated.num_bytes - plain.num_bytes == query_bytes + angle_bytes


def test_the_readme_has_the_table_of_today() -> None:
    assert read_between(roofline.README, roofline.MARKER) == roofline.markdown()


def test_it_prints_and_writes(tmp_path: Path, monkeypatch, capsys) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("a\n<!-- begin roofline -->\nold\n<!-- end roofline -->\nb\n")
    monkeypatch.setattr(roofline, "README", readme)
    assert roofline.main(["--write"]) == 0
    assert roofline.markdown() in capsys.readouterr().out
    assert readme.read_text() == (
        f"a\n<!-- begin roofline -->\n{roofline.markdown()}\n<!-- end roofline -->\nb\n"
    )
    readme.write_text("no markers\n")
    with pytest.raises(ValueError, match="begin roofline"):
        roofline.main(["--write"])
