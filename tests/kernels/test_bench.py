"""The bench without a GPU: grids, targets, files, the runner; times are made up."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
import torch
from pagedkv import roofline
from pagedkv.bench import __main__ as bench
from pagedkv.bench import flash_infer, flex, memory, output, paged, rows, supervise, targets
from pagedkv.bench.grids import DecodePoint, zipf_contexts
from pagedkv.bench.registry import STAGES
from pagedkv.bench.rows import Row, RowFile
from pagedkv.bench.stages import Measurement, NotApplicableError, Stage, run_here
from pagedkv.bench.supervise import Budget, Outcome
from pagedkv.roofline import H200, Shape, Work

CPU = torch.device("cpu")
SMALL = Shape(
    num_layers=2, num_q_heads=4, num_kv_heads=2, head_dim=64, hidden=64, intermediate=64, vocabulary=64
)


def fake_seconds(measurement: Measurement, *, share: float = 0.9) -> float:
    """As if everything ran at this share of the data sheet."""
    return max(roofline.floor_s(measurement.work, H200), 1e-6) / share


def fill(out: Path, stage: Stage, share: float = 0.9) -> None:
    file = RowFile(out, stage.name)
    for m in stage.plan():
        file.append(Row(m.case, m.provider, fake_seconds(m, share=share), m.work))


# Grids


def test_zipf_has_the_tokens_of_the_uniform_batch() -> None:
    contexts = zipf_contexts(64, 64 * 4096)
    assert len(contexts) == 64
    assert sum(contexts) == pytest.approx(64 * 4096, rel=1e-3)
    assert contexts[0] == pytest.approx(64 * contexts[-1], rel=1e-2)


def test_cases_are_named_apart() -> None:
    for stage in STAGES:
        if stage.name.startswith(("correctness", "sanitize")):
            continue
        names = [(m.case, m.provider) for m in stage.plan()]
        assert len(names) == len(set(names)), stage.name


def test_every_target_is_measured_by_a_stage() -> None:
    """With times for every case there is a verdict on every target."""
    made = [
        Row(m.case, m.provider, fake_seconds(m), m.work)
        for stage in STAGES
        if not stage.name.startswith(("correctness", "sanitize"))
        for m in stage.plan()
    ]
    verdicts = targets.judge(made)
    assert [v.note for v in verdicts] == [""] * len(verdicts)
    assert len(verdicts) > 15


# Targets


def judged(case: str, what: str, *made: Row) -> targets.Verdict:
    [verdict] = [v for v in targets.judge(made) if (v.case, v.what) == (case, what)]
    return verdict


@pytest.mark.parametrize("share, met", [(0.86, True), (0.84, False)])
def test_a_share_of_the_copy_rate(share: float, met: bool) -> None:
    case = "decode 64 x 4k, pages of 16"
    copy = Row(targets.COPY, targets.TORCH, 1.0, Work(500, 500))
    ours = Row(case, seconds=2.0, work=Work(int(2000 * share)))
    verdict = judged(case, targets.SHARE, copy, ours)
    assert verdict.met is met
    assert verdict.value == pytest.approx(share)


@pytest.mark.parametrize("seconds, met", [(9e-6, True), (11e-6, False)])
def test_a_time(seconds: float, met: bool) -> None:
    case = "decode 1 x 1k, pages of 16"
    assert judged(case, "us", Row(case, seconds=seconds)).met is met


def test_a_geometric_mean() -> None:
    ratios = {"64 x 4k": 0.5, "32 x 2k": 2.0, "1 x 32k": 1.0, "1 x 1k": 1.0, "Zipf-64": 4.0}
    made = [Row(f"decode {b}, pages of 16", seconds=r, work=Work(8)) for b, r in ratios.items()]
    made += [Row(f"decode {b}, pages of 16", targets.FLASHINFER, 1.0, Work(8)) for b in ratios]
    verdict = judged("decode, all batches", f"time, of {targets.FLASHINFER}", *made)
    assert verdict.value == pytest.approx(4 ** (1 / 5))
    assert verdict.met is False


def test_what_was_not_measured_is_no_verdict() -> None:
    case = "decode 64 x 4k, pages of 16"
    copy = Row(targets.COPY, targets.TORCH, 1.0, Work(500, 500))
    failed = Row(case, status="failed", note="out of memory")
    verdict = judged(case, targets.SHARE, copy, failed)
    assert verdict.met is None
    assert "out of memory" in verdict.note
    assert "was not measured" in judged(case, targets.SHARE, copy).note


# Rows


def test_rows_survive_the_file(tmp_path: Path) -> None:
    file = RowFile(tmp_path, "stage")
    assert file.read() == []
    made = [Row("a", seconds=1e-3, work=Work(1, 2, 3, 4)), Row("a", "other", status="failed", note='"x"\ny')]
    for row in [Row("a", status="started"), *made]:
        file.append(row)
    assert file.read() == made


def test_the_frame_has_rates_and_floors() -> None:
    data = rows.frame([Row("a", seconds=1e-3, work=Work(1000, 1000, 6000)), Row("b", status="failed")], H200)
    assert data["bytes_per_s"][0] == pytest.approx(2e6)
    assert data["flops_per_s"][0] == pytest.approx(6e6)
    assert data["floor_seconds"][0] == pytest.approx(2000 / 4.8e12)
    assert data["seconds"].isna()[1] and data["bytes_per_s"].isna()[1]
    assert "| b | pagedkv |  |" in rows.markdown(data)


# Stages


def stage_of(*measurements: Measurement, name: str = "test") -> Stage:
    return Stage(name, "a test", lambda: list(measurements), limit_s=10, needs_s=1)


def fail(error: Exception, device: torch.device) -> float:
    raise error


def test_what_a_measurement_raises_is_recorded_and_the_next_runs(tmp_path: Path) -> None:
    errors = {
        "failed": AssertionError("first line\nsecond"),
        "not installed": ImportError("no module"),
        "skipped": NotApplicableError("uneven"),
    }
    failing = [Measurement(status, partial(fail, error)) for status, error in errors.items()]
    stage = stage_of(
        *failing, Measurement("ok", lambda device: 2.0), Measurement("check", lambda device: None)
    )
    run_here(stage, CPU, tmp_path)
    found = {row.case: row for row in RowFile(tmp_path, "test").read()}
    assert {case: row.status for case, row in found.items()} == {
        **{status: status for status in errors},
        "ok": "ok",
        "check": "ok",
    }
    assert found["failed"].note == "AssertionError: first line second"
    assert found["ok"].seconds == 2.0


def test_a_second_process_goes_on_behind_the_case_that_killed_the_first(tmp_path: Path) -> None:
    ran: list[str] = []

    def die(device: torch.device) -> None:
        raise KeyboardInterrupt

    measurements = [
        Measurement("a", lambda device: ran.append("a")),
        Measurement("b", die),
        Measurement("c", lambda device: ran.append("c")),
    ]
    with pytest.raises(KeyboardInterrupt):
        run_here(stage_of(*measurements), CPU, tmp_path)
    run_here(stage_of(*measurements), CPU, tmp_path)
    assert ran == ["a", "c"]
    assert [row.status for row in RowFile(tmp_path, "test").read()] == ["ok", "started", "ok"]


# The runner


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_stages_that_no_longer_fit_are_skipped() -> None:
    clock = Clock()
    limits: dict[str, float] = {}

    def launch(stage: Stage, limit_s: float) -> Outcome:
        limits[stage.name] = limit_s
        clock.now += 12
        return Outcome(stage.name, "done", 12)

    stages = [Stage(name, "", list, limit_s, needs_s=5) for name, limit_s in [("a", 20), ("b", 90), ("c", 9)]]
    outcomes = supervise.run(stages, Budget(25, clock), launch, report=lambda outcome: None)
    assert [o.status for o in outcomes] == ["done", "done", "skipped"]
    assert limits == {"a": 20, "b": 13}


def child(tmp_path: Path, code: str) -> list[str]:
    """A process that appends to the rows of stage `test`."""
    head = f"import sys, os, time; file = open({str(tmp_path / 'test.jsonl')!r}, 'a'); "
    row = json.dumps(
        {"case": "CASE", "provider": "p", "seconds": 1, "work": [0] * 4, "status": "ok", "note": ""}
    )
    define = f"row = lambda case: (file.write({row!r}.replace('CASE', case) + chr(10)), file.flush()); "
    return [sys.executable, "-c", head + define + code]


@pytest.mark.parametrize(
    "code, status, note, num_rows",
    [
        ("row('a')", "done", "", 1),
        ("row('a'); sys.exit('no GPU')", "failed", "no GPU", 1),
        ("row(str(os.getpid())); os.kill(os.getpid(), 9)", "failed", "", supervise.MAX_DEATHS),
        ("row('a'); time.sleep(60)", "stopped", "out of time", 1),
    ],
)
def test_a_process_is_watched(
    tmp_path: Path, code: str, status: str, note: str, num_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervise, "MAX_DEATHS", 3) if num_rows > 1 else None
    outcome = supervise.supervise("test", child(tmp_path, code), tmp_path, limit_s=2)
    assert outcome.status == status
    assert note in outcome.note
    assert len(RowFile(tmp_path, "test").read()) == min(num_rows, 3)


# What is written


def test_the_report_is_written_after_every_stage(tmp_path: Path) -> None:
    timed = [s for s in STAGES if s.name in ("ceilings", "decode", "prefill", "swap", "memory", "flashinfer")]
    report = output.Report(tmp_path, [s.name for s in timed], {"gpu": "NVIDIA H200", "driver": "1.2"})
    for stage in timed[:2]:
        fill(tmp_path, stage)
        report.add(Outcome(stage.name, "done", 3.0))
    first = pd.read_parquet(tmp_path / "targets.parquet")
    assert first["met"].isna().any() and first["met"].notna().any()
    for stage in timed[2:]:
        fill(tmp_path, stage)
        report.add(Outcome(stage.name, "done", 3.0))
    verdicts = pd.read_parquet(tmp_path / "targets.parquet")
    assert verdicts["met"].notna().all()
    for stage in timed:
        data = pd.read_parquet(tmp_path / f"{stage.name}.parquet")
        assert list(data["case"]) == [m.case for m in stage.plan()]
        assert (tmp_path / f"{stage.name}.md").exists()
    for name in output.PLOTS:
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000
    about = json.loads((tmp_path / "meta.json").read_text())
    assert about["gpu"] == "NVIDIA H200"
    assert [stage["stage"] for stage in about["stages"]] == [s.name for s in timed]
    assert "## Targets" in (tmp_path / "results.md").read_text()
    assert report.failed == []


def test_cases_of_ours_that_failed_or_never_ended_are_told(tmp_path: Path) -> None:
    file = RowFile(tmp_path, "test")
    for row in [
        Row("a"),
        Row("b", status="failed"),
        Row("c", status="started"),
        Row("d", "x", status="failed"),
    ]:
        file.append(row)
    report = output.Report(tmp_path, ["test"], {})
    report.add(Outcome("test", "done"))
    assert report.failed == ["b", "c"]


def test_an_unknown_gpu_has_no_floor() -> None:
    assert output.accelerator("NVIDIA H100 80GB HBM3") is roofline.H100
    assert roofline.floor_s(Work(1, 1, 1, 1), output.accelerator("NVIDIA L4")) == 0


def test_meta_names_versions_and_commit() -> None:
    about = output.meta()
    assert about["torch"] and about["date"] and about["commit"]
    assert "gpu" not in about


# The command


def test_without_a_gpu_it_says_what_it_needs(tmp_path: Path, capsys, monkeypatch) -> None:
    out = tmp_path / "out"
    assert bench.main(["--out", str(out)]) == bench.NEEDS
    assert "TRITON_INTERPRET" in capsys.readouterr().err
    monkeypatch.delenv("TRITON_INTERPRET")
    assert bench.main(["--out", str(out)]) == bench.NEEDS
    assert "needs an NVIDIA GPU" in capsys.readouterr().err
    assert not out.exists()


def test_a_dry_run_lists_everything(capsys) -> None:
    assert bench.main(["--dry-run"]) == 0
    text = capsys.readouterr().out
    for stage in STAGES:
        assert (f"{stage.name}: " in text) is not stage.on_request
    for case in (
        "decode 64 x 4k, pages of 16 (pagedkv): H200 223.9 us",
        "swap out, 64 blocks",
        "block copy, 512 blocks",
        "bf16 matmul",
    ):
        assert case in text


def test_stages_can_be_chosen(capsys) -> None:
    assert bench.main(["--dry-run", "--stage", "swap", "--stage", "ceilings"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines if line[0] != " "] == ["ceilings", "swap"]
    with pytest.raises(SystemExit):
        bench.main(["--stage", "nothing"])


# What is timed is right, as far as it runs here


@pytest.mark.parametrize("block_size", [16, 64])
def test_decode_calls_give_attention(block_size: int) -> None:
    from pagedkv.decode import decode_attention_reference

    point = DecodePoint("small", (40, 17), block_size, SMALL)
    setting = paged.paged(SMALL, [(c - 1, 1) for c in point.contexts], block_size, 2, CPU)
    setting = half(setting)
    for layer, call in enumerate(paged.decode_calls(setting)):
        call()
        expected = decode_attention_reference(
            setting.query, setting.pool[:, layer], setting.pieces, setting.options
        )
        torch.testing.assert_close(
            call.keywords.get("out", call.args[4]).double(), expected, rtol=1e-2, atol=1e-2
        )


def half(setting: paged.Paged) -> paged.Paged:
    """In float16: the interpreter gets bfloat16 wrong."""
    return setting._replace(pool=setting.pool.half(), query=setting.query.half())


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
    ids=str,
)
def test_memory_calls_run(build) -> None:
    build(2, CPU)()


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
