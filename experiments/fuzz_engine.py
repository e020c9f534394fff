"""Bad requests among good ones, on the real engine: `python -m experiments.fuzz_engine --runs 500 --seed 1`.

Each run takes a tiny model, a preset, limits and pools at random, and serves requests of which some cannot be
served: token ids outside the vocabulary, prompts as long as the window and longer, more sequences than there
are seats, ids that are taken, a token whose embedding is NaN or infinite, clients that go away. Free blocks
may hold NaN when a run begins. Every good request must get the tokens of transformers' `generate`, every bad
one must end with a reason, and nothing may be left behind; the laws are checked and the journal is replayed.
"""

from __future__ import annotations

import argparse
import io
import math
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from random import Random

from rich.progress import Progress

from engine.core.events import ENDINGS, Event, EventKind
from engine.core.journal import replay
from engine.core.plan import StepPlan, StepResult
from engine.core.serving import Serving
from engine.core.spec import RequestSpec
from engine.runtime.backend import TorchBackend
from experiments.fuzz_cases import Case, FuzzFailed, Setting, random_cases, random_setting
from experiments.fuzz_models import VOCAB_SIZE
from experiments.worlds import scheduler

MAX_STEPS = 3000


@dataclass(slots=True)
class Outcomes:
    """An observer of endings and tokens (engine.core.serving.Observer)."""

    tokens: dict[tuple[str, int], list[int]] = field(default_factory=dict)
    endings: dict[str, tuple[str, str]] = field(default_factory=dict)
    """How each request ended, and why."""
    refusals: list[tuple[RequestSpec, str]] = field(default_factory=list)
    num_preemptions: int = 0

    def arrived(self, spec: RequestSpec, now_ns: int) -> None:
        """Nothing to note."""

    def refused(self, spec: RequestSpec, reason: str, now_ns: int) -> None:
        """Whom, and why."""
        self.refusals.append((spec, reason))

    def stepped(
        self, plan: StepPlan, result: StepResult, start_ns: int, end_ns: int, events: Sequence[Event]
    ) -> None:
        """Tokens and ends."""
        self.num_preemptions += len(plan.preemptions)
        for key, token_id in (result.token_ids or {}).items():
            self.tokens.setdefault(key, []).append(token_id)
        self.endings |= {e.request_id: (e.kind.value, e.detail) for e in events if e.kind in ENDINGS}

    def closed(self, now_ns: int) -> None:
        """Nothing to note."""


def run(setting: Setting, cases: Sequence[Case], rng: Random) -> Counter[str]:
    """Serve the cases and hold the outcome against what must come; the counts of what happened."""
    backend = TorchBackend(
        setting.model.served,
        setting.limits,
        block_size=setting.block_size,
        num_blocks=setting.num_blocks,
        num_host_blocks=setting.num_host_blocks,
        num_threads=1,
    )
    if setting.stale:
        backend.pools.device.fill_(math.nan)
        backend.pools.host.fill_(math.nan)
    sink, outcomes = io.StringIO(), Outcomes()
    core = scheduler(backend.capacity, setting.limits, setting.policies(), sink, with_plans=True, laws=True)
    serving = Serving(core, backend, [outcomes])
    num_steps = _drive(serving, cases, rng)
    for case in cases:
        _check(case, outcomes)
    pools = (core.state.kv.device, core.state.kv.host)
    if backend.sequences.specs or any(pool.num_free != pool.num_blocks for pool in pools):
        raise FuzzFailed("something is left behind when everybody has gone")
    divergence = replay(sink.getvalue().splitlines(), setting.policies())
    if divergence is not None:
        raise FuzzFailed(f"a replay of the journal plans otherwise: {divergence}")
    counts = Counter(kind for kind, _ in outcomes.endings.values())
    counts.update(refused=len(outcomes.refusals), steps=num_steps, preemptions=outcomes.num_preemptions)
    counts.update(f"{case.kind} requests" for case in cases)
    return counts


def _drive(serving: Serving, cases: Sequence[Case], rng: Random) -> int:
    """Step by step, so that equal seeds give equal runs; the number of steps."""
    to_come = list(cases)
    aborts = {case.spec.request_id: case.abort_step for case in cases if case.abort_step is not None}
    for step in range(MAX_STEPS):
        while to_come and to_come[0].step <= step:
            serving.try_arrive(to_come.pop(0).spec, step)
        going = [request_id for request_id, abort_step in aborts.items() if abort_step <= step]
        in_flight = rng.random() < 0.5
        flight = serving.begin(step) if in_flight else None
        for request_id in going:
            serving.abort(request_id, step)
            del aborts[request_id]
        flight = flight if in_flight else serving.begin(step)
        if flight is not None:
            serving.finish(flight, serving.collect(flight), step)
        elif not to_come and serving.scheduler.is_idle:
            return step
    raise FuzzFailed(f"not at its end after {MAX_STEPS} steps: {serving.scheduler.state.requests}")


def _check(case: Case, outcomes: Outcomes) -> None:
    spec = case.spec
    refusals = [reason for refused, reason in outcomes.refusals if refused is spec]
    if case.endings == ("refused",):
        if not refusals or not refusals[0]:
            raise FuzzFailed(f"{case}: not refused, or without a reason")
        return
    ending, reason = outcomes.endings.get(spec.request_id, ("nothing", ""))
    if refusals or ending not in case.endings or not (reason or ending == EventKind.ABORTED):
        raise FuzzFailed(f"{case}: {ending} ({reason}) {refusals}")
    for seq in range(spec.n):
        tokens = outcomes.tokens.get((spec.request_id, seq), [])
        if not all(0 <= token < VOCAB_SIZE for token in tokens):
            raise FuzzFailed(f"{case}: {tokens} are not all tokens")
        if case.answer is not None and ending != EventKind.REJECTED:
            wanted = list(case.answer.tokens)
            if tokens != (wanted if ending != EventKind.ABORTED else wanted[: len(tokens)]):
                raise FuzzFailed(f"{case}: sequence {seq} got {tokens}")


def fuzz(seed: int, runs: Sequence[int]) -> Iterator[Counter[str]]:
    """One run after another, each from a random stream of its own.

    Raises:
        FuzzFailed, LawBroken: with the number of the run and its setting.
    """
    for number in runs:
        rng = Random(f"{seed}/{number}")
        setting = random_setting(rng)
        try:
            yield run(setting, list(random_cases(rng, setting)), rng)
        except Exception as error:
            error.add_note(f"again: python -m experiments.fuzz_engine --seed {seed} --only {number}")
            error.add_note(str(setting))
            raise


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", type=int, help="the number of one run")
    arguments = parser.parse_args()
    numbers = range(arguments.runs) if arguments.only is None else (arguments.only,)
    start_s = time.monotonic()
    total: Counter[str] = Counter()
    with Progress(transient=True) as progress:
        task = progress.add_task("runs", total=len(numbers))
        for counts in fuzz(arguments.seed, numbers):
            total += counts
            progress.update(task, advance=1)
    counted = ", ".join(f"{name} {count:,}" for name, count in sorted(total.items()))
    print(f"{len(numbers)} runs, all as they must be: {counted}; {time.monotonic() - start_s:.0f} s")


if __name__ == "__main__":
    main()
