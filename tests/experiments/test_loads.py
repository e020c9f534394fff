"""The load of a validation is told by what every contender can serve."""

from __future__ import annotations

from engine.core.spec import Capacity, Limits
from experiments.compose import build, contenders_from_config, policies_maker
from experiments.loads import slowest_per_s, workloads_at_loads
from experiments.twins import simulated_stage
from tests.experiments.costs import PerStep
from tests.test_configs import composed

LIMITS = Limits(32, 2048, 512)


def test_the_slowest_contender_sets_the_rate() -> None:
    """A batch that is filled once and then served to its end takes more steps than one that is refilled."""
    config = composed("validate", "max_requests=40", "limits=window_512")
    specs = build(config.workload).requests(LIMITS.max_model_len)
    twin = simulated_stage(Capacity(96, 96, 16), PerStep(), LIMITS.max_model_len, in_flight=1)
    continuous = contenders_from_config(config)["swap"]
    static = policies_maker(composed("validate", "preset=static", "limits=window_512"))
    capacities = {
        name: slowest_per_s(twin, specs, LIMITS, makers)
        for name, makers in {"fast": [continuous], "slow": [static], "both": [continuous, static]}.items()
    }
    assert capacities["slow"] < 0.8 * capacities["fast"]
    assert capacities["both"] == capacities["slow"]
    loads = workloads_at_loads(config, twin, LIMITS, [continuous, static])
    for load in (0.7, 1.5):
        assert loads[load][0].workload.rate_per_s == round(load * capacities["slow"], 3)
        assert loads[load][1].figures["offered_rate_per_s"] > 0
    assert loads[0.7][0] is not loads[1.5][0] and config.workload.rate_per_s == 5.83, (
        "the original is as it was"
    )
