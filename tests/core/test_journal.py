"""A journal holds all that the core was told, so a replay decides the same, byte for byte."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from typing import Any

import pytest

from engine.core.journal import Divergence, JournaledScheduler, JournalError, replay
from engine.core.policies.admission import Watermark
from engine.core.policies.base import Policies
from engine.core.policies.batching import PrefillFirst
from engine.core.policies.restore import Recompute, Swap
from engine.core.spec import Capacity, Limits
from experiments.soak import run_episode
from experiments.trial import Trial, every_combination
from tests.core.build import DEFAULT, drain, spec


def journal(policies: Policies = DEFAULT, *, with_plans: bool = True) -> list[str]:
    """Two requests in a pool for one, so that there is something to decide."""
    sink = io.StringIO()
    limits = Limits(4, 16, 16)
    trial = Trial(JournaledScheduler(Capacity(3, 3, 4), limits, policies, sink, with_plans=with_plans))
    trial.arrive(spec("a", 4, max_tokens=6))
    trial.arrive(spec("b", 4, max_tokens=6, n=2))
    trial.begin()
    trial.abort("a")
    trial.end()
    trial.arrive(spec("c", 5, max_tokens=4))
    drain(trial)
    return sink.getvalue().splitlines()


def test_replay_gives_the_same_plans() -> None:
    lines = journal()
    verbs = [json.loads(line)[0] for line in lines[1:]]
    assert {verb: verbs.count(verb) > 0 for verb in ("add", "abort", "schedule", "commit")}
    assert verbs.count("add") == 3
    assert replay(lines, DEFAULT) is None


@pytest.mark.parametrize("in_flight", [2, 3])
def test_replay_with_plans_in_flight_and_aborts_between_them(in_flight: int) -> None:
    """Plans are committed in order, whatever was planned, added or aborted since."""
    sink, policies = io.StringIO(), replace(DEFAULT, restore=Swap())
    trial = Trial(JournaledScheduler(Capacity(4, 2, 4), Limits(4, 16, 16), policies, sink), in_flight)
    for name, num_prompt_tokens in (("a", 7), ("b", 4), ("c", 3), ("d", 2)):
        trial.arrive(spec(name, num_prompt_tokens, max_tokens=6))
    for aborted in (None, "b", None, "a"):
        while len(trial.flights) < in_flight and trial.begin() is not None:
            pass
        if aborted is not None:
            trial.abort(aborted)
        trial.begin()
        trial.end()
        if aborted is None:
            trial.backend.stop("c", 0)
    trial.drain()
    lines = sink.getvalue().splitlines()
    assert _most_in_flight(lines) == in_flight + 1
    assert replay(lines, policies) is None
    stop = next(index for index, line in enumerate(lines) if '"stop"' in line)
    lines[stop] = json.dumps(["commit", json.loads(lines[stop])[1], []])
    assert replay(lines, policies) is not None, "that it ended is"


def _most_in_flight(lines: list[str]) -> int:
    depth = most = 0
    for verb, _, what in map(json.loads, lines[1:]):
        depth += (verb == "schedule" and what is not None) - (verb == "commit")
        most = max(most, depth)
    return most


@pytest.mark.parametrize("index", range(0, len(every_combination()), 19))
def test_replay_of_random_episodes(index: int) -> None:
    """Aborts, refusals, rejections, ends in any order, under every 19th combination of policies."""
    policies, sink = every_combination()[index], io.StringIO()

    def make(capacity: Capacity, limits: Limits, policies: Policies) -> JournaledScheduler:
        return JournaledScheduler(capacity, limits, policies, sink)

    run_episode(5, index, policies, make)
    assert replay(sink.getvalue().splitlines(), policies) is None


@pytest.mark.parametrize(
    "change", [{"restore": Swap()}, {"batching": PrefillFirst()}, {"admission": Watermark(fraction=0.4)}]
)
def test_a_changed_policy_is_caught_and_the_line_named(change: dict[str, Any]) -> None:
    lines = journal(replace(DEFAULT, restore=Recompute()))
    divergence = replay(lines, replace(DEFAULT, **change))
    assert isinstance(divergence, Divergence)
    verb, _, plan = json.loads(lines[divergence.line - 1])
    assert verb == "schedule"
    assert json.loads(divergence.recorded) == plan
    assert divergence.recorded != divergence.replayed


def test_a_changed_plan_is_caught() -> None:
    lines = journal()
    index = next(i for i, line in enumerate(lines) if '"schedule"' in line and '"b"' in line)
    lines[index] = lines[index].replace('"b"', '"x"', 1)
    divergence = replay(lines, DEFAULT)
    assert divergence is not None and divergence.line == index + 1


def test_a_journal_without_plans_has_nothing_to_compare() -> None:
    lines = journal(with_plans=False)
    assert len(lines) == len(journal())
    with pytest.raises(JournalError, match=r"line 1: .*without plans"):
        replay(lines, DEFAULT)


@pytest.mark.parametrize(
    "header", ["", "{}", "[]", "5", '{"journal": 2}', '{"journal": 2, "with_plans": true}']
)
def test_a_wrong_header(header: str) -> None:
    with pytest.raises(JournalError, match="line 1"):
        replay([header, *journal()[1:]], DEFAULT)


@pytest.mark.parametrize("version", [1, 99])
def test_a_journal_of_another_version_is_refused_in_words(version: int) -> None:
    lines = journal()
    header = json.dumps({**json.loads(lines[0]), "journal": version})
    with pytest.raises(JournalError, match=rf"line 1: a journal of version {version}, .*make the run again"):
        replay([header, *lines[1:]], DEFAULT)


def test_an_empty_journal() -> None:
    with pytest.raises(JournalError, match="line 1"):
        replay([], DEFAULT)


@pytest.mark.parametrize(
    "line",
    [
        '["add", 0, ["z", 0',
        "",
        "5",
        "{}",
        '["add", 0]',
        '["add", 0, ["z"]]',
        '["add", 0, ["z", 0, -4, 4, 1, 0]]',
        '["wait", 0, 0]',
        '["commit", 0, []]',
        '["add", -1, ["z", 0, 4, 4, 1, 0]]',
    ],
)
def test_a_broken_line_is_named(line: str) -> None:
    lines = journal()
    lines.insert(1, line)
    with pytest.raises(JournalError, match="line 2: "):
        replay(lines, DEFAULT)


@pytest.mark.parametrize("finished", ['[["a", 0, "bored"]]', '[["nobody", 0, "stop"]]', "[5]"])
def test_a_result_that_cannot_be_is_named(finished: str) -> None:
    lines = journal()
    index = next(i for i, line in enumerate(lines) if line.startswith('["commit"'))
    _, now_ns, _ = json.loads(lines[index])
    lines[index] = f'["commit", {now_ns}, {finished}]'
    with pytest.raises(JournalError, match=f"line {index + 1}: "):
        replay(lines, DEFAULT)
