"""Closed loops: the next turn of a session arrives when the last one has ended."""

from __future__ import annotations

import pytest

from engine.core.errors import UserError
from engine.core.events import EventKind
from engine.core.sources import Sessions, Turn
from tests.core.worlds import Recorder, World, spec


def arrivals(recorder: Recorder) -> dict[str, int]:
    """When each request entered, by the event that says so."""
    return {event.request_id: event.time_ns for event in recorder.events if event.kind is EventKind.ADDED}


def ends(recorder: Recorder) -> dict[str, int]:
    """When each request ended."""
    kinds = (EventKind.FINISHED, EventKind.REJECTED)
    return {event.request_id: event.time_ns for event in recorder.events if event.kind in kinds}


def test_the_next_turn_arrives_its_delay_after_the_last_one_has_ended(world: World) -> None:
    talk = [Turn(spec("a1", 7)), Turn(spec("a2", 0), delay_ns=1000), Turn(spec("a3", 0))]
    end_ns, recorder = world.drive(Sessions([talk]))
    assert arrivals(recorder) == {"a1": 7, "a2": 218 + 1000, "a3": 1218 + 211}
    assert ends(recorder) == {"a1": 218, "a2": 1429, "a3": 1429 + 211}
    assert end_ns == 1640


def test_sessions_go_on_independently_and_latencies_count_from_the_arrival(world: World) -> None:
    sessions = [
        [Turn(spec(f"{name}{number}", 50 * index), 30 * number) for number in range(3)]
        for index, name in enumerate("abc")
    ]
    _, recorder = world.drive(Sessions(sessions))
    came, ended = arrivals(recorder), ends(recorder)
    assert [came[f"{name}0"] for name in "abc"] == [0, 50, 100]
    for name in "abc":
        for number in (1, 2):
            assert came[f"{name}{number}"] == ended[f"{name}{number - 1}"] + 30 * number
    assert recorder.arrival_ns == came


def test_a_turn_that_cannot_be_served_is_followed_by_the_next_one(world: World) -> None:
    talk = [Turn(spec("long", 5, num_prompt=250)), Turn(spec("next", 0), delay_ns=10)]
    _, recorder = world.drive(Sessions([talk]))
    assert arrivals(recorder)["next"] == 15
    assert list(ends(recorder)) == ["long", "next"]


def test_a_turn_that_the_backend_refuses_is_followed_by_the_next_one(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_backend = World.backend

    def picky(self: World, *args: object) -> object:
        backend = make_backend(self, *args)  # type: ignore[arg-type]
        add = backend.add

        def refuse(one: object) -> None:
            if one.request_id == "bad":  # type: ignore[attr-defined]
                raise UserError("request bad: not here")
            add(one)  # type: ignore[arg-type]

        monkeypatch.setattr(backend, "add", refuse)
        return backend

    monkeypatch.setattr(World, "backend", picky)
    _, recorder = world.drive(Sessions([[Turn(spec("bad", 5)), Turn(spec("next", 0), delay_ns=10)]]))
    assert ("bad", 5, "request bad: not here") in recorder.heard
    assert arrivals(recorder) == {"next": 15}


def test_sessions_that_cannot_be_told_apart_are_refused() -> None:
    with pytest.raises(UserError, match="request a: the sessions have this id twice"):
        Sessions([[Turn(spec("a", 0))], [Turn(spec("b", 0)), Turn(spec("a", 0))]])


def test_a_delay_is_not_negative() -> None:
    with pytest.raises(UserError, match="request b: delay_ns is -1, must not be negative"):
        Sessions([[Turn(spec("a", 0)), Turn(spec("b", 0), delay_ns=-1)]])


def test_no_sessions_and_a_session_without_turns(world: World) -> None:
    assert world.drive(Sessions([]))[0] == world.drive(Sessions([[]]))[0] == 0
