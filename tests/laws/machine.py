"""Hypothesis plays client, clock and backend against the core; `Trial` checks each verb."""

from __future__ import annotations

import sys
from dataclasses import replace

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from engine.core.laws import LawfulScheduler
from engine.core.plan import FinishReason
from engine.core.policies.base import Policies
from engine.core.spec import Capacity, Limits, RequestSpec
from experiments.trial import Trial, every_combination

COMBINATIONS = every_combination()
NAMES = [f"r{number}" for number in range(12)]
INDEX = st.integers(0, 1 << 16)
"""Chooses among things that are known only when a rule runs, modulo their number."""


@st.composite
def capacities(draw: st.DrawFn) -> Capacity:
    return Capacity(draw(st.integers(1, 12)), draw(st.integers(0, 8)), draw(st.integers(1, 4)))


@st.composite
def limits(draw: st.DrawFn) -> Limits:
    max_num_seqs = draw(st.integers(1, 6))
    return Limits(max_num_seqs, max(max_num_seqs, draw(st.integers(1, 16))), draw(st.integers(2, 40)))


class CoreMachine(RuleBasedStateMachine):
    """Any order of add, abort, schedule and commit; serves to the end when an example is over."""

    trial: Trial

    @initialize(
        capacity=capacities(),
        limits=limits(),
        policies=st.sampled_from(COMBINATIONS),
        in_flight=st.integers(1, 3),
    )
    def build(self, capacity: Capacity, limits: Limits, policies: Policies, in_flight: int) -> None:
        if not policies.batching.splits_prompts:
            budget = max(limits.max_num_batched_tokens, limits.max_model_len - 1)
            limits = replace(limits, max_num_batched_tokens=budget)
        self.trial = Trial(LawfulScheduler(capacity, limits, policies), in_flight)

    @precondition(lambda self: len(self.trial.backend.requests) < len(NAMES))
    @rule(
        # In blocks and tokens, so that lengths that fill blocks exactly are as likely as others.
        length=st.tuples(st.integers(0, 5), st.integers(0, 8)),
        max_tokens=st.integers(1, 12),
        n=st.integers(1, 3),
        priority=st.integers(-1, 2),
        ago_ns=st.sampled_from((0, 1, 1_000_000_000)),
    )
    def add(self, length: tuple[int, int], max_tokens: int, n: int, priority: int, ago_ns: int) -> None:
        num_blocks, num_tokens = length
        num_prompt_tokens = max(1, num_blocks * self.trial.scheduler.state.kv.block_size + num_tokens)
        request_id = next(name for name in NAMES if name not in self.trial.backend.requests)
        arrival_ns = max(0, self.trial.now_ns - ago_ns)
        self.trial.arrive(
            RequestSpec(request_id, arrival_ns, num_prompt_tokens, max_tokens, n=n, priority=priority)
        )

    @precondition(lambda self: self.trial.outstanding)
    @rule(index=INDEX)
    def abort(self, index: int) -> None:
        """In flight or not; its id is free again only when its end has been told."""
        request_id = self.trial.outstanding[index % len(self.trial.outstanding)]
        self.trial.abort(request_id)
        self.trial.check_refuses_again(RequestSpec(request_id, self.trial.now_ns, 1, 1))

    @precondition(lambda self: len(self.trial.flights) < self.trial.in_flight)
    @rule()
    def schedule(self) -> None:
        self.trial.begin()

    @precondition(lambda self: self.trial.flights)
    @rule()
    def commit(self) -> None:
        self.trial.end()

    @precondition(lambda self: len(self.trial.flights) < self.trial.in_flight)
    @rule(num_steps=st.integers(1, 8))
    def step(self, num_steps: int) -> None:
        """Several whole steps, so that examples get anywhere."""
        for _ in range(num_steps):
            if self.trial.begin() is None and not self.trial.flights:
                break
            self.trial.end()

    @precondition(lambda self: self.trial.flights and self.trial.flights[0].plan.chunks)
    @rule(index=INDEX, reason=st.sampled_from((FinishReason.STOP, FinishReason.NOT_FINITE)))
    def stop(self, index: int, reason: FinishReason) -> None:
        """A sequence in the oldest step in flight ends by itself or fails, if this step samples it."""
        chunks = [chunk for chunk in self.trial.flights[0].plan.chunks if chunk.samples]
        pairs = [(chunk.request_id, seq) for chunk in chunks for seq in chunk.samples]
        if pairs:
            self.trial.backend.stop(*pairs[index % len(pairs)], reason)

    @rule(duration_ns=st.sampled_from((1, 999, 1_000_000_000)))
    def wait(self, duration_ns: int) -> None:
        self.trial.now_ns += duration_ns

    def teardown(self) -> None:
        # Called for broken examples too: what a broken core does on the way out would hide what broke.
        if hasattr(self, "trial") and sys.exc_info()[0] is None:
            self.trial.drain()
