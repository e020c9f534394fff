"""Hypothesis looks for a life of the core that breaks a law, and for the shortest one."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

from tests.laws.machine import CoreMachine

TestCore = CoreMachine.TestCase
TestCore.settings = settings(
    max_examples=400,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
