"""The benchmark of the core measures what it says that it measures."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from textwrap import dedent
from typing import NamedTuple

import pytest

from engine.core.events import Event, EventKind
from engine.core.plan import StepPlan, StepResult
from engine.core.scheduler import Scheduler
from experiments import bench_core, by_turns, core_regimes
from experiments.core_regimes import CHUNK_TOKENS, REGIMES, STEPS_PER_END, queueing

NUM_RUNNING = 16
NUM_STEPS = 300


class Seen(NamedTuple):
    """A scheduler after a step."""

    num_tokens: int
    num_running: int
    num_waiting: int
    num_free_blocks: int
    events: frozenset[EventKind]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Seen]:
    """All steps of the schedulers that the regimes make from now on."""
    steps: list[Seen] = []

    class Watched(Scheduler):
        def commit(self, plan: StepPlan, result: StepResult, now_ns: int) -> list[Event]:
            state = (
                plan.num_tokens,
                len(self.state.running),
                len(self.state.waiting),
                self.state.kv.device.num_free,
            )
            events = super().commit(plan, result, now_ns)
            steps.append(Seen(*state, frozenset(event.kind for event in events)))
            return events

    monkeypatch.setattr(core_regimes, "Scheduler", Watched)
    return steps


def run(regime: str, seen: list[Seen]) -> list[Seen]:
    run_step = REGIMES[regime](NUM_RUNNING, NUM_STEPS)
    seen.clear()
    for _ in range(NUM_STEPS):
        run_step()
    assert len(seen) == NUM_STEPS
    assert not any(EventKind.PREEMPTED in step.events for step in seen)
    assert {step.num_running for step in seen} == {NUM_RUNNING}
    return seen


def test_decode(seen: list[Seen]) -> None:
    steps = run("decode", seen)
    assert all(step.num_tokens == NUM_RUNNING and not step.num_waiting for step in steps)
    assert min(step.num_free_blocks for step in steps) >= NUM_RUNNING
    # They are at different places in their blocks: one of the 16 takes one in every step.
    assert {one.num_free_blocks - other.num_free_blocks for one, other in pairwise(steps)} == {1}


def test_prefill_chunk(seen: list[Seen]) -> None:
    steps = run("prefill chunk", seen)
    assert {step.num_tokens for step in steps} == {NUM_RUNNING - 1 + CHUNK_TOKENS}
    assert sum(EventKind.FINISHED in step.events for step in steps) == NUM_STEPS // 16


def test_tight_pool(seen: list[Seen]) -> None:
    steps = run("tight pool", seen)
    assert all(step.num_free_blocks < NUM_RUNNING for step in steps)
    entries = [index for index, step in enumerate(steps) if EventKind.SCHEDULED in step.events]
    assert len(entries) == pytest.approx(NUM_STEPS / STEPS_PER_END, abs=1)
    others = [step for step in steps if EventKind.SCHEDULED not in step.events]
    assert {step.num_tokens for step in others} == {NUM_RUNNING}
    # In the other steps one of the 16 takes a block, as a rule.
    taken = [one.num_free_blocks - other.num_free_blocks for one, other in pairwise(steps)]
    assert taken.count(1) > 0.7 * NUM_STEPS


def test_arrivals_waiting(seen: list[Seen]) -> None:
    steps = run("arrivals waiting", seen)
    assert [step.num_waiting for step in steps] == list(range(1001, 1001 + NUM_STEPS))
    assert all(step.num_tokens == NUM_RUNNING for step in steps)


def test_every_order_keeps_a_crowd_waiting(seen: list[Seen]) -> None:
    for order in bench_core.ORDERS.values():
        queueing(4, 1, num_waiting=50, order=order)()
        assert seen[-1].num_waiting == 51
        assert seen[-1].num_tokens == 4


def test_two_checkouts_measure_by_turns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Benchmarks that note when they measure; each runs in its own checkout."""
    there, here, turns = tmp_path / "there", tmp_path / "here", tmp_path / "turns"
    for tree, values in ((there, [4.0, 2.0, 8.0]), (here, [1.0, 3.0, 2.0])):
        make_benchmark(
            tree,
            f"""
            import json, sys; from pathlib import Path
            assert sys.argv[1:] == ["--steps=7", "--blocks=3", "--take-turns"]
            values = iter([*(["decode", value] for value in {values}), ["{tree.name} only", 1.0]])
            for _ in sys.stdin:
                with Path({str(turns)!r}).open("a") as file: print(Path.cwd().name, file=file)
                print(json.dumps(next(values, None)), flush=True)
            """,
        )
    monkeypatch.setattr(by_turns, "HERE", here)
    bench_core.main(["--against", str(there), "--steps", "7", "--blocks", "3"])
    assert turns.read_text().split() == ["there", "here"] * 5
    rows = [row.split() for row in capsys.readouterr().out.splitlines()]
    assert [row for row in rows if "decode" in row] == [
        ["decode", "4.0", "2.0", "0.250", "0.250", "to", "0.875"]
    ]
    assert not any("only" in row for row in rows)


def make_benchmark(tree: Path, script: str) -> None:
    (tree / "experiments").mkdir(parents=True)
    (tree / "experiments" / "__init__.py").touch()
    (tree / "experiments" / "bench_core.py").write_text(dedent(script))


def test_a_folder_that_is_no_checkout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench_core.main(["--against", str(tmp_path)])
    assert f"{tmp_path} has no experiments.bench_core" in capsys.readouterr().err


@pytest.mark.parametrize("script", ["raise SystemExit('no such thing')", "input(); 1 / 0"])
def test_a_benchmark_that_fails(script: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_benchmark(tmp_path, script)
    with pytest.raises(SystemExit):
        bench_core.main(["--against", str(tmp_path)])
    assert capsys.readouterr().err.splitlines()[0].startswith(f"error: the benchmark in {tmp_path} failed: ")


def test_a_benchmark_that_fails_while_the_other_measures(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there, here = tmp_path / "there", tmp_path / "here"
    make_benchmark(there, "import time; input(); time.sleep(0.3); print('null')")
    make_benchmark(here, "raise SystemExit('no such thing')")
    monkeypatch.setattr(by_turns, "HERE", here)
    with pytest.raises(SystemExit):
        bench_core.main(["--against", str(there)])
    assert f"error: the benchmark in {here} failed: no such thing" in capsys.readouterr().err


def test_one_measurement_a_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stdin", ["\n"] * 3)
    by_turns.take_turns(iter([("decode", 2.0), ("decode", 3.0)]))
    assert capsys.readouterr().out == '["decode", 2.0]\n["decode", 3.0]\nnull\n'


def test_one_line_of_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(bench_core, "NUM_WAITING", 20)
    bench_core.main(["--steps", "2", "--blocks", "3", "--json"])
    (line,) = capsys.readouterr().out.splitlines()
    figures = json.loads(line)
    assert len(figures) == len(REGIMES) * len(bench_core.NUM_RUNNING) + len(bench_core.ORDERS)
    assert all(len(values) == 3 and min(values) > 0 for values in figures.values())
