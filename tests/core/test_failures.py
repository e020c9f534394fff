"""A request of which the logits are not finite ends at once, gains no token, and leaves the others alone."""

from __future__ import annotations

import pytest

from engine.core.events import EventKind
from engine.core.plan import FinishReason
from experiments.trial import Trial
from tests.core.build import drain, kinds, on_trial, spec, step

REASON = FinishReason.NOT_FINITE


def failing(n: int, *, decodes: int) -> Trial:
    """`a` fails in its last prompt chunk, or after so many decodes; `b` runs beside it."""
    trial = on_trial()
    trial.arrive(spec("a", 6, n=n))
    trial.arrive(spec("b", 6, max_tokens=9))
    for _ in range(decodes):
        step(trial)
    assert trial.begin() is not None
    trial.backend.stop("a", n - 1, REASON)
    return trial


@pytest.mark.parametrize(("n", "decodes"), [(1, 0), (3, 0), (1, 2), (3, 2)])
def test_the_request_fails_with_all_its_sequences_and_the_others_go_on(n: int, decodes: int) -> None:
    trial = failing(n, decodes=decodes)
    events = [event for event in trial.end() if event.request_id == "a"]
    assert (events[-1].kind, events[-1].detail) == (EventKind.FAILED, REASON.value)
    assert (EventKind.FIRST_TOKEN in {event.kind for event in events}) is False
    assert "a" not in trial.scheduler.state.requests and "a" not in trial.backend.requests
    _, events = drain(trial)
    assert kinds(events, "b")[-1] is EventKind.FINISHED and not kinds(events, "a")
    assert trial.scheduler.state.kv.device.num_free == trial.scheduler.state.kv.device.num_blocks


def test_who_was_aborted_while_it_failed_was_aborted() -> None:
    trial = failing(1, decodes=2)
    trial.abort("a")
    assert kinds(trial.end(), "a") == [EventKind.ABORTED]


def test_a_failure_of_somebody_who_did_not_run_is_a_bug() -> None:
    trial = failing(1, decodes=0)
    [flight] = trial.flights
    result = trial.serving.collect(flight)
    stranger = result.finished[0]._replace(request_id="nobody")
    with pytest.raises(ValueError, match="'nobody', which did not run"):
        trial.scheduler.commit(flight.plan, result._replace(finished=(stranger,)), trial.now_ns)
