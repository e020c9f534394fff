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
from pagedkv.bench import output, supervise, tables, targets
from pagedkv.bench.grids import zipf_contexts
from pagedkv.bench.registry import STAGES
from pagedkv.bench.rows import Row, RowFile
from pagedkv.bench.stages import Measurement, NotApplicableError, Stage, run_here
from pagedkv.bench.supervise import Budget, Outcome
from pagedkv.roofline import H200, Work

CPU = torch.device("cpu")


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


def test_tables_have_rates_floors_and_shares_of_what_was_measured() -> None:
    copy = Row(targets.COPY, targets.TORCH, 1.0, Work(2_000_000, 2_000_000))
    made = [Row("a", seconds=1e-3, work=Work(1000, 1000, 6000)), Row("b", status="failed")]
    data = tables.frame(made, H200, tables.ceilings([copy]))
    assert data["bytes_per_s"][0] == pytest.approx(2e6)
    assert data["flops_per_s"][0] == pytest.approx(6e6)
    assert data["floor_seconds"][0] == pytest.approx(2000 / 4.8e12)
    assert data["share_of_ceiling"][0] == pytest.approx(0.5)
    assert data["seconds"].isna()[1] and data["bytes_per_s"].isna()[1]
    assert "| b | pagedkv |  |" in tables.markdown(data)


@pytest.mark.parametrize("limit, work", [("arithmetic", Work(1, 1, 10**9)), ("link", Work(9, 0, 0, 9))])
def test_a_share_is_of_what_limits(limit: str, work: Work) -> None:
    data = tables.frame([Row("a", seconds=0.5, work=work)], H200, {"memory": 1.0, limit: max(work) * 4.0})
    assert data["limit"][0] == limit
    assert data["share_of_ceiling"][0] == pytest.approx(0.5)


def test_rows_of_ours_carry_their_targets() -> None:
    case = "decode 1 x 1k, pages of 16"
    made = [Row(case, seconds=9e-6, work=Work(9)), Row(case, targets.SDPA, 2e-5, Work(9)), Row("other")]
    data = tables.frame(made, H200, {}, targets.judge(made))
    assert data["target"][0] == "us <= 10; rate, of pages of 64 >= 0.93"
    assert data["met"].isna().all()  # one of the two is not known
    made[0] = Row(case, seconds=2e-5, work=Work(9))
    assert tables.frame(made, H200, {}, targets.judge(made))["met"][0] == False  # noqa: E712
    assert data["target"].isna().tolist() == [False, True, True]


# Stages


def stage_of(*measurements: Measurement, name: str = "test") -> Stage:
    return Stage(name, "a test", lambda: list(measurements), limit_s=10, needs_s=1)


def fail(error: Exception, device: torch.device) -> float:
    raise error


def two(device: torch.device) -> float:
    return 2.0


def test_what_a_measurement_raises_is_recorded_and_the_next_runs(tmp_path: Path) -> None:
    errors = {
        "failed": AssertionError("first line\nsecond"),
        "not installed": ImportError("no module"),
        "skipped": NotApplicableError("uneven"),
    }
    failing = [Measurement(status, partial(fail, error)) for status, error in errors.items()]
    stage = stage_of(*failing, Measurement("ok", two), Measurement("check", lambda device: None))
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
    """A process that appends to the rows of stage `test`; it imports nothing that takes its time."""
    row = {"provider": "pagedkv", "seconds": None, "work": [0, 0, 0, 0], "note": ""}
    head = f"""
import json, os, sys, time
path = {str(tmp_path / "test.jsonl")!r}
def add(case, status="ok"):
    with open(path, "a") as file:
        file.write(json.dumps({row!r} | dict(case=case, status=status)) + chr(10))
"""
    return [sys.executable, "-c", head + code]


@pytest.mark.parametrize(
    "code, status, note, found",
    [
        ("add('a')", "done", "", {"a": "ok"}),
        ("add('a'); sys.exit('no GPU')", "failed", "no GPU", {"a": "ok"}),
        ("add('a', 'started'); time.sleep(60)", "stopped", "out of time", {"a": "stopped"}),
    ],
)
def test_a_process_is_watched(tmp_path: Path, code: str, status: str, note: str, found: dict) -> None:
    outcome = supervise.supervise("test", child(tmp_path, code), tmp_path, limit_s=1.5)
    assert outcome.status == status
    assert note in outcome.note
    assert {row.case: row.status for row in RowFile(tmp_path, "test").read()} == found


def test_a_process_that_dies_is_continued(tmp_path: Path) -> None:
    """As long as each begins a case that the one before had not."""
    code = """
case = str(len({json.loads(line)["case"] for line in open(path)}) if os.path.exists(path) else 0)
add(case, "started")
if case != "2":
    os.kill(os.getpid(), 9)
add(case)
"""
    outcome = supervise.supervise("test", child(tmp_path, code), tmp_path, limit_s=60)
    assert (outcome.status, outcome.note) == ("done", "died 2 times")
    died = ("failed", "the process died with status -9")
    assert [(row.status, row.note) for row in RowFile(tmp_path, "test").read()] == [died, died, ("ok", "")]


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


def test_cases_of_ours_that_failed_are_told(tmp_path: Path) -> None:
    file = RowFile(tmp_path, "test")
    for row in [
        Row("a"),
        Row("b", status="failed"),
        Row("c", status="stopped"),
        Row("d", "x", status="failed"),
    ]:
        file.append(row)
    report = output.Report(tmp_path, ["test"], {})
    report.add(Outcome("test", "done"))
    assert report.failed == ["b"]


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


@pytest.mark.parametrize("fails, status", [(False, 0), (True, 1)])
def test_a_run_ends_with_a_report(tmp_path: Path, monkeypatch, capsys, fails: bool, status: int) -> None:
    second = Measurement("b", partial(fail, AssertionError("wrong"))) if fails else Measurement("b", two)
    stage = stage_of(Measurement("a", two), second)

    def in_process(out: Path) -> supervise.Launch:
        def launch(stage: Stage, limit_s: float) -> Outcome:
            run_here(stage, CPU, out)
            return Outcome(stage.name, "done", 1.0)

        return launch

    monkeypatch.setattr(bench, "what_is_missing", str)
    monkeypatch.setattr(bench, "STAGES", (stage,))
    monkeypatch.setattr(bench, "launcher", in_process)
    assert bench.main(["--out", str(tmp_path / "out")]) == status
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "test: done in 1 s"
    assert printed[1].startswith(f"{int(fails)} cases failed")
    assert "| a | pagedkv | 2e+06 |" in (tmp_path / "out" / "results.md").read_text()


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
