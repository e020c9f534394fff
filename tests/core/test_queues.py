"""A queue that is kept sorted stands, at any time, as one that is sorted all over."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest

from engine.core.policies.order import Fcfs, Order, Priority, QueueName
from engine.core.queues import Queue, SortedQueue, VisitedQueue
from engine.core.request import Request
from engine.core.scheduler import Scheduler
from engine.core.spec import Capacity, Limits, RequestSpec
from engine.core.view import View
from tests.core.build import policies, request_of

NS_PER_S = 1_000_000_000
ORDERS: list[Order] = [Priority(), Priority(ageing_per_s=0.3), Fcfs(sorts=("waiting",))]


def queues(order: Order) -> tuple[Queue, Queue, Queue]:
    """Those of a scheduler under this order: waiting, running, swapped."""
    state = Scheduler(Capacity(4, 4, 4), Limits(4, 8, 8), policies(order=order)).state
    return state.waiting, state.running, state.swapped


def arrivals(rng: random.Random, number: int) -> list[Request]:
    """Few priorities and times, so that there are ties of every kind."""
    return [
        Request(RequestSpec(f"r{index}", rng.randrange(4) * NS_PER_S, 1, 1, priority=rng.randint(-1, 1)))
        for index in rng.sample(range(1000), number)
    ]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("order", ORDERS)
def test_kept_sorted_equals_sorted_anew(order: Order, seed: int) -> None:
    rng = random.Random(seed)
    kept, _, _ = queues(order)
    assert isinstance(kept, SortedQueue)
    anew = VisitedQueue(kept._key)
    for request in arrivals(rng, 200):
        join = rng.choice(["join", "rejoin"])
        getattr(kept, join)(request)
        getattr(anew, join)(request)
        anew.arrange()
        if rng.random() < 0.3:
            assert kept.popleft() is anew.popleft()
        if kept and rng.random() < 0.2:
            gone = rng.choice(kept)
            kept.remove(gone)
            anew.remove(gone)
        assert kept == anew


def test_a_queue_is_sorted_only_if_the_order_says_so() -> None:
    waiting, running, _ = queues(Fcfs(sorts=("running",)))
    first, second = request_of("a", 4, arrival_ns=1), request_of("b", 4, arrival_ns=2)
    for queue in (waiting, running):
        queue.join(second)
        queue.join(first)
        queue.arrange()
    assert [one.id for one in waiting] == ["b", "a"]
    assert [one.id for one in running] == ["a", "b"]
    waiting.rejoin(third := request_of("c", 4, arrival_ns=9))
    waiting.arrange()
    assert waiting[0] is third, "a victim is the first again"


def test_a_laid_out_queue_stays_so_until_it_is_visited() -> None:
    _, running, swapped = queues(Fcfs(sorts=("running",)))
    first, second = request_of("a", 4, arrival_ns=1), request_of("b", 4, arrival_ns=2)
    for queue in (running, swapped):
        queue.join(first)
        queue.join(second)
    assert running.rearrange([second, first]) and list(running) == [second, first]
    running.arrange()
    assert list(running) == [first, second]
    assert not swapped.rearrange([second, first]) and list(swapped) == [first, second]


@dataclass(frozen=True, slots=True)
class FewestLeft(Fcfs):
    """Shortest remaining first: keys change while requests stand in the queue."""

    sorts: tuple[QueueName, ...] = ("waiting",)

    def key(self, request: Request, view: View) -> tuple[float | str, ...]:
        return (request.max_num_tokens - request.num_tokens, request.id)

    def has_changed(self, view: View) -> bool:
        return True


def test_an_order_whose_keys_change_is_asked_at_each_visit() -> None:
    waiting, _, _ = queues(FewestLeft())
    one, other = request_of("a", 4, 3), request_of("b", 4, 4)
    waiting.join(one)
    waiting.join(other)
    waiting.arrange()
    assert list(waiting) == [one, other]
    other.num_tokens += 2
    waiting.arrange()
    assert list(waiting) == [other, one]
