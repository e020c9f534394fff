"""A queue that is kept sorted stands, at any time, as one that is sorted all over."""

from __future__ import annotations

import random

import pytest

from engine.core.policies.base import Order
from engine.core.policies.order import Fcfs, Priority
from engine.core.queues import Queue, SortedQueue, waiting_queue
from engine.core.request import Request
from engine.core.spec import RequestSpec

NS_PER_S = 1_000_000_000
ORDERS: list[Order] = [Priority(), Priority(ageing_per_s=0.3), Fcfs(sorts=("waiting",))]


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
    kept, anew = waiting_queue(order), Queue("waiting", order)
    assert isinstance(kept, SortedQueue)
    for now_ns, request in enumerate(arrivals(rng, 200)):
        join = rng.choice([Queue.join, Queue.rejoin])
        getattr(kept, join.__name__)(request)
        getattr(anew, join.__name__)(request)
        anew.arrange(now_ns)
        if rng.random() < 0.3:
            assert kept.pop(0) is anew.pop(0)
        if kept and rng.random() < 0.2:
            gone = rng.choice(kept)
            kept.remove(gone)
            anew.remove(gone)
        assert kept == anew


def test_an_order_that_ages_or_does_not_sort_is_not_kept_sorted() -> None:
    for order in (Fcfs(), Fcfs(sorts=("waiting",), ages=True), Fcfs(sorts=("running",))):
        assert not isinstance(waiting_queue(order), SortedQueue)
