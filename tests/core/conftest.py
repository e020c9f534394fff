from __future__ import annotations

import time

import pytest

from tests.core.worlds import Working, World


@pytest.fixture(params=["simulation", "engine"])
def world(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(time, "perf_counter_ns", lambda: Working.work_ns)
    return World(request.param)
