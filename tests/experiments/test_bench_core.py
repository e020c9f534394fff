"""The benchmark of the core measures what it says that it measures."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
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
            state = plan.num_tokens, len(self.running), len(self.waiting), self.kv.num_free
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


def test_figures_of_two_checkouts_come_by_turns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A checkout whose benchmark prints what it was asked, in its own folder, and with its own modules."""
    there, here = tmp_path / "there", tmp_path / "here"
    for tree, values in ((there, [4.0, 2.0, 6.0]), (here, [1.0, 3.0, 2.0])):
        (tree / "experiments").mkdir(parents=True)
        (tree / "experiments" / "__init__.py").touch()
        turns = tmp_path / "turns"
        script = f"""import json, sys; from pathlib import Path
assert sys.argv[1:] == ["--steps=7", "--blocks=2", "--json"]
with Path({str(turns)!r}).open("a") as file:
    print(Path.cwd().name, file=file)
print("something else")
print(json.dumps({{"decode": {values}, {tree.name!r}: [1.0]}}))"""
        (tree / "experiments" / "bench_core.py").write_text(script)
    monkeypatch.setattr(by_turns, "HERE", here)
    bench_core.main(["--against", str(there), "--steps", "7", "--blocks", "2", "--rounds", "2"])
    assert turns.read_text().split() == ["there", "here"] * 2
    rows = capsys.readouterr().out.splitlines()
    assert [row.split() for row in rows if "decode" in row] == [
        ["decode", "4.0", "2.0", "0.500", "2.0", "1.0", "0.500"]
    ]


def test_a_folder_that_is_no_checkout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench_core.main(["--against", str(tmp_path)])
    assert f"{tmp_path} has no experiments.bench_core" in capsys.readouterr().err


def test_a_benchmark_that_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "__init__.py").touch()
    (tmp_path / "experiments" / "bench_core.py").write_text("raise SystemExit('no such thing')")
    with pytest.raises(SystemExit):
        bench_core.main(["--against", str(tmp_path)])
    assert "failed: no such thing" in capsys.readouterr().err


def test_one_line_of_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(bench_core, "NUM_WAITING", 20)
    bench_core.main(["--steps", "2", "--blocks", "3", "--json"])
    (line,) = capsys.readouterr().out.splitlines()
    figures = json.loads(line)
    assert len(figures) == len(REGIMES) * len(bench_core.NUM_RUNNING) + len(bench_core.ORDERS)
    assert all(len(values) == 3 and min(values) > 0 for values in figures.values())
