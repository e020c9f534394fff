"""What the compiler makes of the kernels for sm_80 and sm_90, and that the checks on it can fail.

This process has TRITON_INTERPRET set, in which nothing can be compiled: compilation is in processes without.
Run as a program, this file compiles kernels of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import triton
import triton.language as tl
from pagedkv import aot
from pagedkv.aot import Report, Variant, table
from pagedkv.launch import AttentionLaunch

ROOT = Path(__file__).parents[2]


@triton.jit
def gather(out, pool, block_ids, num_blocks, stride, TILE: tl.constexpr, WIDTH: tl.constexpr):
    """Add up rows of blocks times their transpose, the rows found through a table; pipelined."""
    rows, columns = tl.arange(0, TILE), tl.arange(0, WIDTH)
    acc = tl.zeros((TILE, TILE), tl.float32)
    for i in range(num_blocks):
        block = pool + tl.load(block_ids + i).to(tl.int64) * TILE * stride
        x = tl.load(block + rows[:, None] * stride + columns[None, :])
        acc = tl.dot(x, tl.trans(x), acc)
    tl.store(out + rows[:, None] * TILE + rows[None, :], acc)


def variant(stride: str = "i32:16", **changes) -> Variant:
    signature = {"out": "*fp32", "pool": "*fp16", "block_ids": "*i32", "num_blocks": "i32", "stride": stride}
    constexprs = {"TILE": 32, "WIDTH": 64}
    made = Variant("gather", gather, signature, constexprs, 4, 3, 128, 32768, (90,), True, True)
    return made._replace(**changes)


def own() -> dict[str, list[str]]:
    """What breaks a budget, of kernels that should and of one that should not."""
    fixed = {"signature": {k: v for k, v in variant().signature.items() if k != "stride"}}
    broken = {
        "good": variant(),
        "stride": variant("i32"),
        "constexpr stride 65": variant(**fixed, constexprs={"TILE": 32, "WIDTH": 64, "stride": 65}),
        "registers": variant(max_registers=16),
        "shared memory": variant(max_shared_bytes=1024),
        "spills": variant(constexprs={"TILE": 128, "WIDTH": 64}, num_warps=1, max_shared_bytes=1 << 20),
    }
    return {name: aot.compile_all([v])[1] for name, v in broken.items()}


def narrowed() -> dict[str, list[str]]:
    """Attention kernels in use, with strides that are not divisible by 16.

    Where a tile spans several blocks the kernels promise the compiler that blocks are aligned, so the stride
    of a block is tried where a tile lies within one.
    """
    result = {}
    for found in aot.all_variants():
        fixed = dict(found.constexprs)
        if found.async_copies and fixed.get("HEAD_DIM") == 128:
            within = fixed["TILE"] <= fixed["BLOCK_SIZE"]
            for name in ["BLOCK_STRIDE"] if within else ["HEAD_DIM", "QUERY_STRIDE"]:
                key = f"{found.kernel.__name__} {name}"
                if key not in result:
                    changed = found._replace(archs=(90,), constexprs={**fixed, name: 65})
                    result[key] = aot.compile_all([changed])[1]
    return result


def swept() -> dict[str, list[str]]:
    """What keeps configurations of prefill from being timed."""
    from pagedkv.bench.stages import NotApplicableError
    from pagedkv.bench.sweep import prune
    from pagedkv.prefill import prefill_variant

    launches = {
        "in use": None,
        "4 warps": AttentionLaunch(128, 64, 4, 3, "test"),
        "7 stages": AttentionLaunch(64, 128, 8, 7, "test"),
    }
    result: dict[str, list[str]] = {}
    for name, launch in launches.items():
        result[f"sweep, {name}"] = []
        try:
            prune(prefill_variant(launch), 90)
        except NotApplicableError as reason:
            result[f"sweep, {name}"].append(str(reason))
    return result


def python(*arguments: str, **environment: str) -> str:
    compiling = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    path = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**compiling, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode in (0, 1), done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """All variants in use."""
    path = tmp_path_factory.mktemp("aot") / "reports.json"
    output = python("-m", "pagedkv.aot", "--json", str(path))
    assert path.exists(), output
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def failures() -> dict[str, list[str]]:
    return json.loads(python("-m", "tests.kernels.test_aot").splitlines()[-1])


def test_no_kernel_breaks_its_budget(compiled: dict) -> None:
    assert compiled["broken"] == []


def test_every_kernel_is_compiled_for_both_architectures(compiled: dict) -> None:
    """Unless its type exists on one of them only."""
    names = {arch: {r["name"] for r in compiled["reports"] if r["arch"] == arch} for arch in (80, 90)}
    both = {v.name for v in aot.all_variants() if v.in_use and v.archs == (80, 90)}
    assert both <= names[80] & names[90]
    assert len(both) > 30


def test_figures_are_plausible(compiled: dict) -> None:
    for report in compiled["reports"]:
        assert 8 <= report["registers"] <= 255, report
        assert report["instructions"] > 20, report
        assert report["spills"] == report["stack_bytes"] == 0, report


def test_the_readme_has_the_table_of_today(compiled: dict) -> None:
    """Its rows always; its figures where they come from the compiler at hand."""
    today = table.markdown([Report(**r) for r in compiled["reports"]])
    written = table.in_readme()
    first_columns = [[line.split("|")[1:4] for line in text.splitlines()[2:]] for text in (today, written)]
    assert first_columns[0] == first_columns[1], "run python -m pagedkv.aot --write"
    if written.splitlines()[0] == today.splitlines()[0]:
        assert written == today, "run python -m pagedkv.aot --write"


@pytest.mark.parametrize(
    "name, text",
    [
        ("stride", "loads of 1 or 2 bytes"),
        ("stride", "no 128-bit async copies"),
        ("constexpr stride 65", "loads of 1 or 2 bytes"),
        ("registers", "registers > 16"),
        ("shared memory", "bytes of shared memory > 1024"),
        ("spills", "spills"),
    ],
)
def test_the_checks_can_fail(failures: dict, name: str, text: str) -> None:
    assert failures["good"] == []
    assert any(text in line for line in failures[name]), failures[name]


@pytest.mark.parametrize("stride", ["BLOCK_STRIDE", "HEAD_DIM", "QUERY_STRIDE"])
@pytest.mark.parametrize("kernel", ["decode_kernel", "prefill_kernel"])
def test_a_stride_that_loses_its_divisibility_is_found(failures: dict, kernel: str, stride: str) -> None:
    found = failures[f"{kernel} {stride}"]
    assert any("loads of 1 or 2 bytes" in line for line in found), found
    if stride != "QUERY_STRIDE":  # queries are loaded once, without the pipeline
        assert any("no 128-bit async copies" in line for line in found), found


def test_a_sweep_leaves_out_what_spills_or_does_not_fit(failures: dict) -> None:
    assert failures["sweep, in use"] == []
    assert "spills" in failures["sweep, 4 warps"][0]
    assert "shared memory" in failures["sweep, 7 stages"][0]


def test_an_interpreted_process_cannot_compile() -> None:
    with pytest.raises(RuntimeError, match="unset TRITON_INTERPRET"):
        aot.compile_variant(variant(), 90)


if __name__ == "__main__":
    print(json.dumps(own() | narrowed() | swept()))
