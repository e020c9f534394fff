"""How long queued work takes."""

from itertools import count

import torch

from engine.runtime.timing import timed


def test_on_a_cpu_it_is_the_time_of_the_call():
    done = []
    took_ns = timed(torch.device("cpu"), lambda: done.append(1))
    assert done == [1]
    assert type(took_ns()) is int and took_ns() == took_ns() > 0


def test_on_a_gpu_two_events_in_the_current_stream_enclose_the_work(monkeypatch):
    """The calls and their order; there is no device here."""
    heard, numbers = [], count()

    class Event:
        def __init__(self, *, enable_timing):
            assert enable_timing
            self.number = next(numbers)

        def record(self, stream):
            heard.append((self.number, stream))

        def elapsed_time(self, end):
            heard.append((self.number, end.number))
            return 0.25

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"stream of {device}")
    took_ns = timed(torch.device("cuda", 1), lambda: heard.append("work"))
    assert heard == [(0, "stream of cuda:1"), "work", (1, "stream of cuda:1")]
    assert took_ns() == 250_000
    assert heard[3:] == [(0, 1)]
