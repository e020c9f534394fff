"""The inputs of the core, written down; replay must give the same plans, byte for byte (law 9).

A journal is a text file of JSON lines: a header, then one line for each call of the four verbs, in order.
Lengths that only the oracle knows are not in it, so a replay decides from what the scheduler could know.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TextIO

from engine.core.errors import UserError
from engine.core.events import Event
from engine.core.plan import Finish, FinishReason, StepPlan, StepResult
from engine.core.policies.base import Policies
from engine.core.request import Request
from engine.core.scheduler import Scheduler
from engine.core.spec import Capacity, Limits, RequestSpec

VERSION = 2


class JournalError(UserError):
    """A journal that cannot be read; the message names the line."""


def plan_text(plan: StepPlan | None) -> str:
    """A plan as one line of JSON: equal plans, and only those, give equal text."""
    if plan is None:
        return "null"
    return json.dumps({**plan._asdict(), "chunks": plan.chunks.columns}, separators=(",", ":"))


class JournaledScheduler(Scheduler):
    """A scheduler that writes each of its inputs, and if wanted each plan, to `sink` as it goes."""

    def __init__(
        self, capacity: Capacity, limits: Limits, policies: Policies, sink: TextIO, *, with_plans: bool = True
    ) -> None:
        super().__init__(capacity, limits, policies)
        self._sink = sink
        self._with_plans = with_plans
        header = {
            "journal": VERSION,
            "capacity": [capacity.num_blocks, capacity.num_host_blocks, capacity.block_size],
            "limits": [limits.max_num_seqs, limits.max_num_batched_tokens, limits.max_model_len],
            "policies": repr(policies),
            "with_plans": with_plans,
        }
        sink.write(json.dumps(header) + "\n")

    def add(self, request: Request, now_ns: int) -> None:
        """Add a request."""
        known = [
            request.id,
            request.arrival_ns,
            request.num_prompt_tokens,
            request.max_tokens,
            request.n,
            request.priority,
        ]
        super().add(request, now_ns)  # first, so that a request that was refused leaves no line
        self._sink.write(json.dumps(["add", now_ns, known]) + "\n")

    def abort(self, request_id: str, now_ns: int) -> bool:
        """Abort a request."""
        self._sink.write(json.dumps(["abort", now_ns, request_id]) + "\n")
        return super().abort(request_id, now_ns)

    def schedule(self, now_ns: int) -> StepPlan | None:
        """Plan a step."""
        plan = super().schedule(now_ns)
        text = plan_text(plan) if self._with_plans else "0"
        self._sink.write(f'["schedule",{now_ns},{text}]\n')
        return plan

    def commit(self, plan: StepPlan, result: StepResult, now_ns: int) -> list[Event]:
        """Commit a step."""
        if result.finished:
            finished = [[finish.request_id, finish.seq, finish.reason] for finish in result.finished]
            self._sink.write(json.dumps(["commit", now_ns, finished]) + "\n")
        else:
            self._sink.write(f'["commit",{now_ns},[]]\n')
        return super().commit(plan, result, now_ns)


@dataclass(frozen=True, slots=True)
class Divergence:
    """The first plan of a replay that is not the recorded one."""

    line: int
    recorded: str
    replayed: str


def replay(lines: Iterable[str], policies: Policies) -> Divergence | None:
    """Feed a journal's inputs to a fresh core under `policies`; None if every plan is byte-equal to the
    recorded one.

    Raises:
        JournalError: a line is not of a journal, or the journal was written without plans.
    """
    rows = _parse(lines)
    player = _Player(_fresh_core(rows, policies))
    for number, row in rows:
        with _blaming(number):
            divergence = player.play(number, row)
        if divergence is not None:
            return divergence
    return None


def _fresh_core(rows: Iterator[tuple[int, Any]], policies: Policies) -> Scheduler:
    """A scheduler of the size that the header tells."""
    _, header = next(rows, (0, None))
    if not isinstance(header, dict) or "journal" not in header:
        raise JournalError("line 1: not the header of a journal")
    if header["journal"] != VERSION:
        raise JournalError(
            f"line 1: a journal of version {header['journal']}, and only version {VERSION} can be replayed "
            "here: make the run again, with journal=plans"
        )
    with _blaming(1):
        if header["with_plans"]:
            return Scheduler(Capacity(*header["capacity"]), Limits(*header["limits"]), policies)
    raise JournalError("line 1: this journal was written without plans, so there is nothing to compare")


@contextmanager
def _blaming(number: int) -> Iterator[None]:
    """Name the line that an error comes from."""
    try:
        yield
    except JournalError:
        raise
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise JournalError(f"line {number}: {error!r}") from error


class _Player:
    """Feeds lines to a scheduler."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._plans: deque[StepPlan] = deque()

    def play(self, number: int, row: Any) -> Divergence | None:
        """One line; the divergence, if its plan comes out otherwise."""
        verb, now_ns, what = row
        if verb == "add":
            self._scheduler.add(_request(what), now_ns)
        elif verb == "abort":
            self._scheduler.abort(what, now_ns)
        elif verb == "schedule":
            plan = self._scheduler.schedule(now_ns)
            recorded, replayed = json.dumps(what, separators=(",", ":")), plan_text(plan)
            if recorded != replayed:
                return Divergence(number, recorded, replayed)
            if plan is not None:
                self._plans.append(plan)
        elif verb == "commit" and self._plans:
            finished = tuple(
                Finish(request_id, seq, FinishReason(reason)) for request_id, seq, reason in what
            )
            self._scheduler.commit(self._plans.popleft(), StepResult(0, finished), now_ns)
        else:
            raise JournalError(
                f"line {number}: {verb!r} is not a verb of the scheduler, or has no plan to commit"
            )
        return None


def _parse(lines: Iterable[str]) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(lines, start=1):
        try:
            yield number, json.loads(line)
        except json.JSONDecodeError as error:
            raise JournalError(f"line {number}: {error}") from error


def _request(known: list[Any]) -> Request:
    request_id, arrival_ns, num_prompt_tokens, max_tokens, n, priority = known
    spec = RequestSpec(request_id, arrival_ns, num_prompt_tokens, max_tokens, n=n, priority=priority)
    return Request(spec)
