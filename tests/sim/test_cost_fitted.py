from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import pytest

from engine.core.errors import UserError
from sim.cost.base import StepFeatures
from sim.cost.fit import fit
from sim.cost.fitted import Fitted
from sim.cost.terms import Coefficients, terms

TRUE = Coefficients(
    ns_per_step=3e6,
    ns_per_token_below_knee=60e3,
    ns_per_token_above_knee=40e3,
    ns_per_seq=50e3,
    ns_per_prefill_chunk=300e3,
    ns_per_sampled_token=30e3,
    ns_per_decode_context_token=300.0,
    ns_per_prefill_context_token=0.0,
    ns_per_prefill_attention_pair=60.0,
    ns_per_block_swapped_out=50e3,
    ns_per_block_swapped_in=70e3,
    ns_per_block_copied=90e3,
    ns_per_transfer=200e3,
)
KNEE_TOKENS = 32


def random_step(stream: random.Random, with_swaps: bool = True) -> StepFeatures:
    """A mixed step: up to 30 decodes, up to 2 prefill chunks, seldom a transfer."""
    contexts = [stream.randint(20, 500) for _ in range(stream.randint(1, 30))]
    chunks = [
        (stream.choice((0, 0, 100)), stream.randint(2, 200)) for _ in range(stream.choice((0, 0, 0, 1, 2)))
    ]
    num_out, num_in = ((stream.random() < 0.15) * with_swaps * stream.randint(1, 20) for _ in range(2))
    num_copied = (stream.random() < 0.1) * stream.randint(1, 4)
    return StepFeatures(
        num_tokens=len(contexts) + sum(num for _, num in chunks),
        num_seqs=len(contexts) + len(chunks),
        num_prefill_chunks=len(chunks),
        num_sampled=len(contexts) + stream.randint(0, len(chunks)),
        decode_context_tokens=sum(contexts),
        prefill_context_tokens=sum(start + num for start, num in chunks),
        prefill_attention_pairs=sum(num * start + num * (num + 1) // 2 for start, num in chunks),
        num_blocks_swapped_out=num_out,
        num_blocks_swapped_in=num_in,
        num_blocks_copied=num_copied,
        num_transfers=bool(num_out) + bool(num_in) + bool(num_copied),
    )


def random_steps(name: str, num_steps: int, with_swaps: bool = True) -> list[StepFeatures]:
    stream = random.Random(name)
    return [random_step(stream, with_swaps) for _ in range(num_steps)]


def true_ns(step: StepFeatures, coefficients: Coefficients = TRUE, knee_tokens: int = KNEE_TOKENS) -> float:
    counts = terms(step, knee_tokens)
    return math.fsum(count * ns for count, ns in zip(counts, astuple(coefficients), strict=True))


def noisy_ns(steps: list[StepFeatures], spread: float, outliers: float) -> list[int]:
    """Each duration off by `spread`, some of them slowed down 3 to 15 times by a neighbour."""
    stream = random.Random("noise")
    return [
        round(
            true_ns(step)
            * stream.lognormvariate(0, spread)
            * (stream.uniform(3, 15) if stream.random() < outliers else 1)
        )
        for step in steps
    ]


def total_ns(model: Fitted, step: StepFeatures) -> float:
    return sum(model.parts_ns(step).values())


def test_exact_measurements_give_the_coefficients_back() -> None:
    steps = random_steps("exact", 400)
    model = fit(steps, noisy_ns(steps, spread=0, outliers=0))
    assert model.knee_tokens == KNEE_TOKENS
    assert astuple(model.coefficients) == pytest.approx(astuple(TRUE), rel=1e-3, abs=1)
    assert model.report.median_abs_error < 1e-6
    assert model.report.r2 > 0.999999
    assert model.report.unmeasured == ()


def test_noise_and_outliers_hardly_move_the_fit() -> None:
    steps = random_steps("noise", 2000)
    model = fit(steps, noisy_ns(steps, spread=0.05, outliers=0.05))
    assert 60 <= model.report.num_outliers <= 200
    assert model.report.num_steps == 2000
    fresh = random_steps("fresh", 500)
    errors = sorted(abs(total_ns(model, step) / true_ns(step) - 1) for step in fresh)
    assert errors[len(errors) // 2] < 0.01
    assert errors[-1] < 0.06
    total_error = sum(total_ns(model, step) for step in fresh) / sum(true_ns(step) for step in fresh) - 1
    assert abs(total_error) < 0.01


def test_ordinary_slowness_is_in_the_total() -> None:
    """Slow steps outnumber fast ones; what the reweighting leaves out of them, the scale puts back."""
    steps = random_steps("skew", 2000)
    stream = random.Random("skewed noise")
    model = fit(steps, [round(true_ns(step) * (1 + stream.expovariate(20))) for step in steps])
    assert abs(model.report.total_error) < 0.005


def test_report_speaks_of_the_steps_fitted() -> None:
    steps = random_steps("report", 500)
    measured_ns = noisy_ns(steps, spread=0.05, outliers=0.1)
    model = fit(steps, measured_ns)
    errors = sorted(abs(total_ns(model, step) / ns - 1) for step, ns in zip(steps, measured_ns, strict=True))
    report = model.report
    assert errors[249] <= report.median_abs_error <= errors[250]
    assert errors[448] <= report.p90_abs_error <= errors[450]
    fitted_total_ns = sum(total_ns(model, step) for step in steps)
    assert report.total_error == pytest.approx(fitted_total_ns / sum(measured_ns) - 1)
    assert sum(report.share_of_term.values()) == pytest.approx(1)
    overhead_ns = len(steps) * model.coefficients.ns_per_step
    assert report.share_of_term["ns_per_step"] == pytest.approx(overhead_ns / fitted_total_ns)


@pytest.mark.parametrize("seed", range(5))
def test_coefficients_are_never_negative(seed: int) -> None:
    """Durations that have nothing to do with the steps, and some that fall as the work grows."""
    stream = random.Random(f"negative/{seed}")
    steps = random_steps(f"negative/{seed}", 200)
    for durations_ns in (
        [stream.randint(1, 10**7) for _ in steps],
        [round(1e9 / (1 + step.num_tokens)) for step in steps],
    ):
        model = fit(steps, durations_ns)
        assert all(value >= 0 for value in astuple(model.coefficients))


@pytest.mark.parametrize(("below", "above"), [(5e3, 80e3), (80e3, 5e3)], ids=["convex", "concave"])
def test_linear_layers_may_bend_either_way(below: float, above: float) -> None:
    bent = replace(TRUE, ns_per_token_below_knee=below, ns_per_token_above_knee=above)
    steps = random_steps("bent", 400)
    model = fit(steps, [round(true_ns(step, bent, 64)) for step in steps])
    assert model.knee_tokens == 64
    assert model.coefficients.ns_per_token_below_knee == pytest.approx(below, rel=0.01)
    assert model.coefficients.ns_per_token_above_knee == pytest.approx(above, rel=0.01)


def test_batches_of_one_size_need_no_knee() -> None:
    stream = random.Random("decodes")
    steps = [StepFeatures(4, 4, 0, 4, stream.randint(4, 900), 0, 0, 0, 0, 0, 0) for _ in range(100)]
    model = fit(steps, [round(true_ns(step)) for step in steps])
    assert total_ns(model, steps[0]) == pytest.approx(true_ns(steps[0]), rel=1e-6)


def test_named_parts_are_the_terms() -> None:
    steps = random_steps("parts", 300)
    model = fit(steps, noisy_ns(steps, spread=0.02, outliers=0))
    for step in steps:
        assert total_ns(model, step) == pytest.approx(true_ns(step, model.coefficients, model.knee_tokens))
    decode = StepFeatures(2, 2, 0, 2, 30, 0, 0, 0, 0, 0, 0)
    idle_parts = {"attention_prefill", "transfers"}
    assert {name for name, part_ns in model.parts_ns(decode).items() if part_ns == 0} == idle_parts


def true_model() -> Fitted:
    steps = random_steps("exact", 400)
    return replace(
        fit(steps, noisy_ns(steps, 0, 0)), coefficients=TRUE, provenance={"host": "here", "torch": "2.13"}
    )


def test_estimates_for_policies() -> None:
    model = true_model()
    expected_ns = 32 * 60e3 + 68 * 40e3 + 50e3 + 300e3 + 60.0 * 5050
    assert model.recompute_ns(100) == expected_ns
    assert model.transfer_ns(4) == 4 * (50e3 + 70e3) / 2 + 200e3


def test_moves_that_were_never_measured_are_not_free() -> None:
    steps = random_steps("no swaps", 300, with_swaps=False)
    model = fit(steps, noisy_ns(steps, 0, 0))
    assert model.report.unmeasured == ("ns_per_block_swapped_out", "ns_per_block_swapped_in")
    swap_out = StepFeatures(1, 1, 0, 1, 5, 0, 0, 3, 0, 0, 1)
    with pytest.raises(ValueError, match=r"no ns_per_block_swapped_out: .* calibrate with steps that do"):
        model.parts_ns(swap_out)
    with pytest.raises(ValueError, match="no ns_per_block_swapped_out"):
        model.transfer_ns(3)


def test_save_and_load_round_trip(tmp_path: Path) -> None:
    steps = random_steps("save", 300, with_swaps=False)
    model = fit(steps, noisy_ns(steps, 0.05, 0.05), {"host": "here", "date": "2024-01-01"})
    model.save(tmp_path / "cost.json")
    assert Fitted.load(tmp_path / "cost.json") == model
    assert Fitted.load(str(tmp_path / "cost.json")).provenance == {"host": "here", "date": "2024-01-01"}


def damaged(edit: Callable[[dict[str, Any]], object]) -> Callable[[str], str]:
    def damage(text: str) -> str:
        document = json.loads(text)
        edit(document)
        return json.dumps(document)

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text[:50], "not JSON"),
        (lambda text: "[1]", "not a cost model of format pagetwin-fitted-cost/1"),
        (damaged(lambda doc: doc.update(format="other")), "not a cost model of format"),
        (damaged(lambda doc: doc.pop("knee_tokens")), r"missing keys \['knee_tokens'\], unknown keys \[\]"),
        (
            damaged(lambda doc: doc["coefficients"].pop("ns_per_step")),
            r"coefficients: missing keys \['ns_per_step'\]",
        ),
        (
            damaged(lambda doc: doc["coefficients"].update(ns_per_mile=1)),
            r"coefficients: .* unknown keys \['ns_per_mile'\]",
        ),
        (
            damaged(lambda doc: doc["coefficients"].update(ns_per_seq=-1)),
            "ns_per_seq is -1, must be a number",
        ),
        (
            damaged(lambda doc: doc["coefficients"].update(ns_per_seq="x")),
            "ns_per_seq is 'x', must be a number",
        ),
        (damaged(lambda doc: doc.update(report=None)), "report: missing keys"),
    ],
)
def test_damaged_file_is_named(tmp_path: Path, damage: Callable[[str], str], message: str) -> None:
    path = tmp_path / "cost.json"
    true_model().save(path)
    path.write_text(damage(path.read_text()))
    with pytest.raises(ValueError, match=message) as caught:
        Fitted.load(path)
    assert str(path) in str(caught.value)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no fitted cost model at .*nowhere.json: run `python -m"):
        Fitted.load(tmp_path / "nowhere.json")


def test_bad_measurements_are_named() -> None:
    steps = random_steps("few", 20)
    with pytest.raises(ValueError, match="no steps"):
        fit([], [])
    with pytest.raises(ValueError, match=r"20 measured steps are too few for the \d+ terms .* at least \d+"):
        fit(steps, [1000] * 20)
    with pytest.raises(ValueError, match="20 steps, but 19 durations"):
        fit(steps, [1000] * 19)
    with pytest.raises(ValueError, match="a duration is not positive"):
        fit(steps, [1000] * 19 + [0])
