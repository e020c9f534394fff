"""Generated workloads: distributions, arrivals, shipped configurations, the same in every process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from hypothesis import given
from hypothesis import strategies as st

from engine.core.errors import UserError
from sim.streams import stream
from sim.workloads.arrivals import AllAtOnce, GammaArrivals
from sim.workloads.base import WorkloadError
from sim.workloads.lengths import Fixed, Lengths, LogNormal, Uniform
from sim.workloads.quantiles import ByPromptLength, EmpiricalQuantiles
from sim.workloads.shape import Shape
from sim.workloads.summary import describe
from sim.workloads.synthetic import Synthetic

ROOT = Path(__file__).resolve().parents[2]
WORKLOADS = sorted(path.stem for path in (ROOT / "conf/workload").glob("*.yaml"))
N = 50_000


def configured(*overrides: str) -> Any:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose(overrides=list(overrides))
    return instantiate(config.workload, _convert_="all")


def sampled(lengths: Lengths) -> np.ndarray:
    return lengths.sample(stream(0, "test"), N)


def test_streams_differ_by_name_and_by_seed_and_are_fixed_for_ever() -> None:
    draws = [stream(seed, name).bit_generator.random_raw() for seed in (0, 1) for name in ("a", "b")]
    assert len(set(draws)) == 4
    assert stream(0, "a").bit_generator.random_raw() == draws[0] == 3130346900169536942


def test_fixed_and_uniform() -> None:
    assert set(sampled(Fixed(7)).tolist()) == {7}
    counts = np.bincount(sampled(Uniform(3, 6)))
    assert counts[:3].sum() == 0
    assert counts[3:] == pytest.approx(N / 4, rel=0.05)


def test_lognormal_moments_and_bounds() -> None:
    lengths = sampled(LogNormal(median_tokens=500, sigma=0.5))
    assert np.median(lengths) == pytest.approx(500, rel=0.02)
    assert lengths.mean() == pytest.approx(500 * np.exp(0.125), rel=0.02)
    narrow = sampled(LogNormal(median_tokens=2, sigma=3.0, max_tokens=50))
    assert (narrow.min(), narrow.max()) == (1, 50)
    assert LogNormal(10, 1.0).at(np.zeros(1)).tolist() == [1]


def test_empirical_quantiles_come_back() -> None:
    lengths = sampled(EmpiricalQuantiles([0, 0.5, 0.9, 1], [1, 101, 301, 1001]))
    assert np.quantile(lengths, [0.25, 0.5, 0.9]) == pytest.approx([51, 101, 301], rel=0.03)
    assert (lengths.min(), lengths.max()) == (1, pytest.approx(1001, abs=2))


def test_outputs_by_band_of_prompts() -> None:
    lengths = ByPromptLength(upper_bounds=[10, 20], bands=[Fixed(1), Fixed(2), Fixed(3)])
    prompts = np.array([1, 10, 11, 20, 21, 500])
    assert lengths.given(stream(0, "test"), prompts).tolist() == [1, 1, 2, 2, 3, 3]


BAD = {
    "length 0": (lambda: Fixed(0), "Fixed.num_tokens is 0"),
    "low above high": (lambda: Uniform(5, 4), "low is 5, which is above high"),
    "low 0": (lambda: Uniform(0, 4), "Uniform.low is 0"),
    "median 0": (lambda: LogNormal(0, 1.0), "LogNormal.median_tokens is 0"),
    "sigma negative": (lambda: LogNormal(10, -1.0), "LogNormal.sigma is -1.0"),
    "one quantile": (lambda: EmpiricalQuantiles([0], [1]), "1 probabilities and 1 tokens"),
    "uneven": (lambda: EmpiricalQuantiles([0, 0.5, 1], [1, 2]), "3 probabilities and 2 tokens"),
    "not from 0": (lambda: EmpiricalQuantiles([0.1, 1], [1, 2]), "must ascend from 0 to 1"),
    "not to 1": (lambda: EmpiricalQuantiles([0, 0.9], [1, 2]), "must ascend from 0 to 1"),
    "not ascending": (lambda: EmpiricalQuantiles([0, 0.5, 0.5, 1], [1, 2, 3, 4]), "must ascend from 0 to 1"),
    "tokens descend": (lambda: EmpiricalQuantiles([0, 0.5, 1], [1, 3, 2]), "tokens must not descend"),
    "tokens NaN": (lambda: EmpiricalQuantiles([0, 0.5, 1], [1, float("nan"), 2]), r"tokens\[1\] is nan"),
    "quantile 0": (lambda: EmpiricalQuantiles([0, 1], [0, 2]), r"tokens\[0\] is 0: .* at least 1"),
    "band missing": (lambda: ByPromptLength([10], [Fixed(1)]), "make 2 bands, but 1 are given"),
    "bounds descend": (lambda: ByPromptLength([9, 8], [Fixed(1)] * 3), "upper_bounds must ascend"),
    "burstiness 0": (lambda: GammaArrivals(0.0), "burstiness is 0.0"),
    "no requests": (lambda: synthetic(num_requests=0), "num_requests is 0"),
}  # fmt: skip


@pytest.mark.parametrize(("make", "message"), BAD.values(), ids=BAD)
def test_bad_parameters_are_refused(make: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()


def synthetic(**options: Any) -> Synthetic:
    defaults: dict[str, Any] = {
        "num_requests": 200,
        "prompt_lengths": Uniform(1, 300),
        "output_lengths": LogNormal(50, 1.0),
        "rate_per_s": 5.0,
        "shape": Shape(fit_lengths="none"),
    }
    return Synthetic(**{**defaults, **options})


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
def test_gamma_arrivals_have_the_rate_and_the_variation_asked_for(burstiness: float) -> None:
    times_ns = GammaArrivals(burstiness).times_ns(stream(0, "test"), N, 8.0)
    gaps_s = np.diff(times_ns) / 1e9
    assert times_ns[0] == 0
    assert len(times_ns) == N
    assert gaps_s.mean() == pytest.approx(1 / 8.0, rel=0.03)
    assert gaps_s.std() / gaps_s.mean() == pytest.approx(1 / np.sqrt(burstiness), rel=0.03)


@pytest.mark.parametrize("rate", [0, -2.0, float("nan"), float("inf")])
def test_rates_that_are_none(rate: float) -> None:
    with pytest.raises(UserError, match=r"rate_per_s is .*: must be a number, above 0"):
        synthetic(rate_per_s=rate).requests(512)


def test_all_at_once_has_no_rate() -> None:
    specs = synthetic(arrivals=AllAtOnce(), rate_per_s=None).requests(512)
    assert {spec.arrival_ns for spec in specs} == {0}
    assert [spec.request_id for spec in specs] == [f"r{i:05d}" for i in range(200)]
    with pytest.raises(WorkloadError, match="arrive all at once"):
        synthetic(arrivals=AllAtOnce()).requests(512)


@given(st.integers(1, 150), st.integers(0, 2**32))
def test_the_first_requests_are_the_same_however_many_follow(num_requests: int, seed: int) -> None:
    outputs = ByPromptLength([100], [Fixed(5), LogNormal(50, 1.0)])
    some = synthetic(num_requests=num_requests, output_lengths=outputs, seed=seed).requests(1000)
    more = synthetic(num_requests=num_requests + 50, output_lengths=outputs, seed=seed).requests(1000)
    assert more[:num_requests] == some


def test_another_rate_leaves_the_lengths_as_they_were() -> None:
    slow, fast = synthetic(rate_per_s=1.0).requests(512), synthetic(rate_per_s=4.0).requests(512)
    assert [s.num_prompt_tokens for s in slow] == [f.num_prompt_tokens for f in fast]
    assert [s.arrival_ns for s in slow] == pytest.approx([4 * f.arrival_ns for f in fast], rel=1e-6)


NEED_A_FILE = ("csv", "mooncake", "prompts", "sharegpt", "sharegpt_json")


def test_every_shipped_workload_is_here() -> None:
    assert {"azure", "azure_like", "burst", "synthetic", *NEED_A_FILE} <= set(WORKLOADS)


@pytest.mark.parametrize("name", WORKLOADS)
@pytest.mark.parametrize("window", [128, 512, 4096])
def test_shipped_workloads_work_offline_or_say_which_file_they_need(name: str, window: int) -> None:
    workload = configured(f"+workload={name}")
    if name in NEED_A_FILE:
        with pytest.raises(WorkloadError, match=r"workload\.path must name the trace"):
            workload.requests(window)
        return
    specs = workload.requests(window)
    assert len(specs) == (workload.num_requests or 2000), "of Azure's trace, the rows that come with it"
    assert specs == sorted(specs, key=lambda spec: (spec.arrival_ns, spec.request_id))
    assert specs[0].arrival_ns == 0
    assert max(spec.length_limit(window) for spec in specs) <= window
    assert len({spec.request_id for spec in specs}) == len(specs)


def test_choices_by_config_group() -> None:
    workload = configured(
        "+workload=synthetic",
        "workload/arrivals=bursty",
        "workload/lengths@workload.prompt_lengths=fixed",
        "workload.prompt_lengths.num_tokens=33",
        "workload.shape.priorities={0:0.9,1:0.1}",
    )
    assert workload.arrivals == GammaArrivals(0.25)
    assert workload.prompt_lengths == Fixed(33)
    assert {spec.priority for spec in workload.requests(512)} == {0, 1}


def test_azure_like_follows_the_published_statistics() -> None:
    """The table in conf/workload/azure_like.yaml; medians of the whole trace as in Splitwise, section III."""
    workload = configured(
        "+workload=azure_like", f"workload.num_requests={N}", "workload.shape.fit_lengths=none"
    )
    specs = workload.requests(32_768)
    row = describe(specs).loc["workload"]
    assert row["rate_per_s"] == pytest.approx(5.83, rel=0.02)
    assert row["interarrival_cv"] == pytest.approx(1.080, rel=0.02)
    assert row["mean_prompt_tokens"] == pytest.approx(1263.5, rel=0.02)
    assert row["p50_prompt_tokens"] == pytest.approx(1027, rel=0.01)
    assert row["p50_prompt_tokens"] == pytest.approx(1020, rel=0.02)
    assert row["p90_prompt_tokens"] == pytest.approx(4077, rel=0.02)
    assert row["p99_prompt_tokens"] == pytest.approx(4125, rel=0.01)
    assert row["mean_output_tokens"] == pytest.approx(206.4, rel=0.03)
    assert row["p50_output_tokens"] == pytest.approx(117, rel=0.06)
    assert row["p50_output_tokens"] == pytest.approx(129, rel=0.10)
    assert row["p90_output_tokens"] == pytest.approx(425, rel=0.02)
    assert row["p99_output_tokens"] == pytest.approx(605, rel=0.07)
    prompts = np.array([spec.num_prompt_tokens for spec in specs])
    outputs = np.array([spec.num_output_tokens for spec in specs])
    # Measured: 225.0e3 tokens squared, and a correlation of -0.177.
    assert (prompts * outputs).mean() == pytest.approx(225.0e3, rel=0.05)
    assert np.corrcoef(prompts, outputs)[0, 1] == pytest.approx(-0.177, abs=0.03)


PROGRAM = """
from tests.sim.test_workloads_synthetic import configured
print(configured("+workload=azure_like", "workload.shape.priorities={0:1,1:1}").requests(512))
"""


def test_same_seed_in_two_processes_gives_the_same_requests() -> None:
    texts = []
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", PROGRAM]
        run = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True)
        texts.append(run.stdout)
    assert texts[0] == texts[1]
    assert texts[0].count("RequestSpec(") == 160


def test_workloads_need_no_torch() -> None:
    program = "import sys, sim.workloads.summary, sim.workloads.synthetic, sim.workloads.mooncake"
    program += ", sim.workloads.prompts, sim.workloads.conversations, engine.runtime.tokenizer"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", program + "; print({'torch', 'transformers'} & set(sys.modules))"]
    run = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"
