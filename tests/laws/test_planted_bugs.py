"""The checks see what they are there to see: each planted bug breaks the law that forbids it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from engine.core.blocks import BlockPool
from engine.core.events import EventKind
from engine.core.kv_cache import KVCache
from engine.core.laws import LawBroken, LawfulScheduler
from engine.core.plan import Transfer
from engine.core.policies.admission import FullPrompt
from engine.core.policies.batching import DecodeFirst, admit_clipped
from engine.core.policies.verbs import Verbs
from engine.core.request import Request
from engine.core.scheduler import Scheduler
from engine.core.spec import Limits
from engine.core.state import State
from engine.core.step import Step
from engine.core.view import View
from experiments.soak import soak
from tests.laws.machine import CoreMachine

MAX_STEPS = 3_000

Plant = Callable[[pytest.MonkeyPatch], None]


def assert_soak_breaks(law: int, max_steps: int) -> None:
    """Random episodes break this law, and no other, within so many steps."""
    total: Counter[str] = Counter()
    with pytest.raises(LawBroken) as caught:
        for counts in soak(seed=1, num_steps=max_steps, make=LawfulScheduler):
            total += counts
    assert caught.value.number == law, caught.value
    assert total["steps"] < max_steps


def leak_on_abort(patch: pytest.MonkeyPatch) -> None:
    """An aborted request forgets to give its last block back."""
    end = Scheduler._end

    def leaky(self: Scheduler, request: Request, kind: EventKind, detail: str) -> None:
        if kind is EventKind.ABORTED and request.tables:
            next(iter(request.tables.values())).pop()
        end(self, request, kind, detail)

    patch.setattr(Scheduler, "_end", leaky)


def write_shared(patch: pytest.MonkeyPatch) -> None:
    """No copy-on-write."""
    patch.setattr(KVCache, "_unshare", lambda self, request, table: [])


@dataclass(frozen=True, slots=True)
class NeverContinues(DecodeFirst):
    """Admits, and forgets whom it admitted."""

    def fill(self, step: Verbs) -> None:
        admit_clipped(step)


@dataclass(frozen=True, slots=True)
class LetsNobodyIn(FullPrompt):
    def enter(self, request: Request, num_tokens: int, view: View) -> bool:
        return False


def swap_policy(patch: pytest.MonkeyPatch, **choices: Any) -> None:
    """Every scheduler gets these policies, whatever it is given."""
    init = Scheduler.__init__

    def choose(self: Scheduler, capacity: Any, limits: Limits, policies: Any) -> None:
        init(self, capacity, limits, replace(policies, **choices))

    patch.setattr(Scheduler, "__init__", choose)


def never_continue(patch: pytest.MonkeyPatch) -> None:
    swap_policy(patch, batching=NeverContinues())


def admit_nobody(patch: pytest.MonkeyPatch) -> None:
    swap_policy(patch, admission=LetsNobodyIn())


def lose_a_victim(patch: pytest.MonkeyPatch) -> None:
    """A victim joins no queue, so nobody ever thinks of it again."""
    leave = State._leave

    def forgetful(self: State, victim: Request) -> None:
        leave(self, victim)
        self.victims.pop()

    patch.setattr(State, "_leave", forgetful)


def keep_silent(patch: pytest.MonkeyPatch) -> None:
    """A request ends, and nobody is told."""
    tell = Scheduler._tell

    def silent(self: Scheduler, request: Request, kind: EventKind, detail: str) -> None:
        if kind is not EventKind.FINISHED:
            tell(self, request, kind, detail)

    patch.setattr(Scheduler, "_tell", silent)


def keep_a_seat(patch: pytest.MonkeyPatch) -> None:
    """A sequence that ends before the others of its request is still counted as running."""
    end_sequence = State.end_sequence

    def miscounting(self: State, request: Request, seq: int) -> None:
        end_sequence(self, request, seq)
        self.num_running_seqs += 1

    patch.setattr(State, "end_sequence", miscounting)


def release_twice(patch: pytest.MonkeyPatch) -> None:
    """The blocks of a sequence that has ended are given back at once, and again with its request."""
    release = KVCache.release_sequence

    def forgetful(self: KVCache, request: Request, seq: int, pool: BlockPool) -> None:
        table = request.tables.get(seq, [])
        release(self, request, seq, pool)
        request.tables[seq] = table

    patch.setattr(KVCache, "release_sequence", forgetful)


def overspend(patch: pytest.MonkeyPatch) -> None:
    """The token budget is counted per chunk, not per sequence."""
    patch.setattr(Step, "clip", lambda self, request: min(request.num_behind, max(self.budget, 0)))


def copy_nothing(patch: pytest.MonkeyPatch) -> None:
    """Copy-on-write takes a new block, and does not fill it."""
    unshare = KVCache._unshare

    def empty(self: KVCache, request: Request, table: list[int]) -> list[Transfer]:
        unshare(self, request, table)
        return []

    patch.setattr(KVCache, "_unshare", empty)


def mix_up_swap_in(patch: pytest.MonkeyPatch) -> None:
    """Blocks come back in the reverse order; every count is right, and the contents are not."""
    swap_in = KVCache.swap_in

    def mixed(self: KVCache, request: Request) -> Transfer:
        transfer = swap_in(self, request)
        return transfer._replace(dst=transfer.dst[::-1])

    patch.setattr(KVCache, "swap_in", mixed)


def withhold_growth(patch: pytest.MonkeyPatch) -> None:
    """The backend is not told of blocks that a table grows by."""
    prepare = KVCache.prepare

    def secretive(self: KVCache, request: Request, num_tokens: int) -> Any:
        updates, copies = prepare(self, request, num_tokens)
        return [update for update in updates if update.first == 0], copies

    patch.setattr(KVCache, "prepare", secretive)


REQUIRED: list[tuple[Plant, int]] = [
    (leak_on_abort, 1),
    (keep_a_seat, 1),
    (write_shared, 4),
    (never_continue, 6),
    (admit_nobody, 6),
]
OTHERS: list[tuple[Plant, int]] = [
    (lose_a_victim, 6),
    (keep_silent, 2),
    (overspend, 5),
    (copy_nothing, 8),
    (mix_up_swap_in, 8),
    (withhold_growth, 8),
]


@pytest.mark.parametrize(("plant", "law"), REQUIRED + OTHERS)
def test_the_seeded_driver_catches(plant: Plant, law: int, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    assert_soak_breaks(law, MAX_STEPS)


def test_a_double_release_is_an_error_with_the_laws_off(monkeypatch: pytest.MonkeyPatch) -> None:
    release_twice(monkeypatch)
    with pytest.raises(RuntimeError, match="dropped twice"):
        for _ in soak(seed=1, num_steps=MAX_STEPS, make=Scheduler):
            pass


@pytest.mark.parametrize(("plant", "law"), REQUIRED)
def test_hypothesis_catches(plant: Plant, law: int, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    once = settings(
        max_examples=200,
        stateful_step_count=40,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    with pytest.raises(LawBroken) as caught:
        run_state_machine_as_test(CoreMachine, settings=once)
    assert caught.value.number == law, caught.value
