"""The volume: every combination of policies, 200,000 random steps, every law and slot checked."""

from __future__ import annotations

from collections import Counter

from engine.core.events import ENDINGS
from engine.core.plan import PreemptionKind
from experiments.soak import STEPS_PER_EPISODE, soak, summary
from experiments.trial import every_combination

NUM_STEPS = 200_000
SEED = 2026


def test_laws_hold_over_many_steps() -> None:
    total: Counter[str] = Counter()
    num_episodes = 0
    for counts in soak(SEED, NUM_STEPS):
        assert counts["steps"] > 0
        num_episodes += 1
        total += counts
    assert total["steps"] >= NUM_STEPS, summary(total, 0.0)
    assert num_episodes >= len(every_combination()), "a combination of policies was not tried"
    # A law that was never put to the test has not been kept.
    for name in (*PreemptionKind, "fallbacks", "forks", "blocks copy", *ENDINGS):
        assert total[name] > 1_000, f"{name}: {total[name]}"
    # Whoever enters ends: exactly once, or the trial would have said so.
    endings = sum(total[kind] for kind in ENDINGS)
    assert endings == total["requests"]


def test_an_episode_can_be_run_again() -> None:
    first, again = list(soak(7, 3 * STEPS_PER_EPISODE)), list(soak(7, 3 * STEPS_PER_EPISODE))
    assert first == again
    assert first != list(soak(8, 3 * STEPS_PER_EPISODE))
