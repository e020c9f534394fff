"""The driver of the real engine: reads the clock, lets requests arrive, runs one step after another."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from engine.core.serving import Serving
from engine.core.spec import RequestSpec
from engine.runtime.clock import Clock


def serve(serving: Serving, specs: Iterable[RequestSpec], clock: Clock) -> int:
    """Serve a trace to its end; the time at which the last step's period ended, in nanoseconds of the clock.

    Tokens are dated by the reading at which their step is committed. The reading after that, when commit and
    observers have done their work, ends the period of the step and begins that of the next. So a period holds
    the planning, execution and bookkeeping of its own step, and busy periods leave no gap. Who has arrived by
    the beginning of a period can be in its step, in the simulation as here.

    A request that cannot be served is refused: the observers are told why, and the others go on.

    Raises:
        RuntimeError: requests are outstanding, none can run, and none is to come (law 6).
    """
    pending = deque(sorted(specs, key=lambda spec: (spec.arrival_ns, spec.request_id)))
    while True:
        now_ns = clock.now_ns()
        while pending and pending[0].arrival_ns <= now_ns:
            serving.try_arrive(pending.popleft(), now_ns)
        flight = serving.begin(now_ns)
        if flight is not None:
            result = serving.collect(flight)
            serving.finish(flight, result, clock.now_ns())
        elif pending:
            clock.wait_until(pending[0].arrival_ns)
        elif serving.scheduler.is_idle:
            return now_ns
        else:
            num_left = len(serving.scheduler.state.requests)
            raise RuntimeError(
                f"no progress: {num_left} requests are outstanding at {now_ns} ns, "
                "no plan computes any of them, and no arrival can change that"
            )
