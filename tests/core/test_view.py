"""What a policy sees of the moment."""

from __future__ import annotations

from tests.core.build import on_trial, spec, step


def test_shared_blocks_are_freed_by_the_last_who_holds_them_only() -> None:
    """A prompt of 6 tokens in blocks of 4: two sequences share the first block, and part in the second."""
    trial = on_trial(num_blocks=16)
    trial.arrive(spec("pair", 6, n=2))
    trial.arrive(spec("one", 6))
    for _ in range(2):
        step(trial)
    view = trial.scheduler.view
    pair, one = view.running
    assert [view.blocks_held(pair), view.blocks_held(one)] == [3, 2]
    assert [view.blocks_freed_by(pair), view.blocks_freed_by(one)] == [3, 2], "nobody else holds any"
    shared = pair.tables[0][0]
    trial.scheduler.state.kv.device.hold([shared])  # as a copy in flight would
    assert view.blocks_freed_by(pair) == 2
    trial.scheduler.state.kv.device.drop([shared])


def test_the_view_shows_the_moment_and_not_the_past() -> None:
    trial = on_trial(num_blocks=16)
    view = trial.scheduler.view
    trial.now_ns = 7
    trial.arrive(spec("a", 5))
    assert (view.now_ns, [one.id for one in view.waiting], view.is_busy) == (7, ["a"], False)
    step(trial)
    assert (list(view.waiting), [one.id for one in view.running]) == ([], ["a"])
    assert (view.num_running_seqs, view.num_free_blocks, view.num_blocks) == (1, 14, 16)
