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
from engine.core.spec import Capacity, Limits
from engine.core.work import Work
from sim.cost.base import Beyond, Extrapolation
from sim.cost.fit import fit
from sim.cost.fitted import Fitted
from sim.cost.ranges import Range
from sim.cost.setup import Setup, described
from sim.cost.terms import FEATURES, Coefficients, terms

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
TINY = {"architecture": "LlamaConfig", "config": {"hidden_size": 384}, "path": None, "dtype": "float32"}
SETUP = Setup(described(**TINY), Capacity(96, 96, 16), Limits(32, 128, 512), {"swap": "Swap()"})
PAIRS_PER_TOKEN = 4.9e-4


def random_step(stream: random.Random, with_swaps: bool = True) -> Work:
    """A mixed step: up to 30 decodes, up to 2 prefill chunks, seldom a transfer."""
    contexts = [stream.randint(20, 500) for _ in range(stream.randint(1, 30))]
    chunks = [
        (stream.choice((0, 0, 100)), stream.randint(2, 200)) for _ in range(stream.choice((0, 0, 0, 1, 2)))
    ]
    num_out, num_in = ((stream.random() < 0.15) * with_swaps * stream.randint(1, 20) for _ in range(2))
    num_copied = (stream.random() < 0.1) * stream.randint(1, 4)
    return Work(
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


def random_steps(name: str, num_steps: int, with_swaps: bool = True) -> list[Work]:
    stream = random.Random(name)
    return [random_step(stream, with_swaps) for _ in range(num_steps)]


def true_ns(step: Work, coefficients: Coefficients = TRUE, knee_tokens: int = KNEE_TOKENS) -> float:
    counts = terms(step, knee_tokens)
    return math.fsum(count * ns for count, ns in zip(counts, astuple(coefficients), strict=True))


def noisy_ns(steps: list[Work], spread: float, outliers: float) -> list[int]:
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


def total_ns(model: Fitted, step: Work) -> float:
    return sum(model.parts_ns(step).values())


def test_exact_measurements_give_the_coefficients_back() -> None:
    steps = random_steps("exact", 400)
    model = fit(steps, noisy_ns(steps, spread=0, outliers=0), SETUP, PAIRS_PER_TOKEN)
    assert model.knee_tokens == KNEE_TOKENS
    assert astuple(model.coefficients) == pytest.approx(astuple(TRUE), rel=1e-3, abs=1)
    assert model.report.median_abs_error < 1e-6
    assert model.report.r2 > 0.999999
    assert model.report.unmeasured == ()


def test_noise_and_outliers_hardly_move_the_fit() -> None:
    steps = random_steps("noise", 2000)
    model = fit(steps, noisy_ns(steps, spread=0.05, outliers=0.05), SETUP, PAIRS_PER_TOKEN)
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
    model = fit(
        steps, [round(true_ns(step) * (1 + stream.expovariate(20))) for step in steps], SETUP, PAIRS_PER_TOKEN
    )
    assert abs(model.report.total_error) < 0.005


def test_report_speaks_of_the_steps_fitted() -> None:
    steps = random_steps("report", 500)
    measured_ns = noisy_ns(steps, spread=0.05, outliers=0.1)
    model = fit(steps, measured_ns, SETUP, PAIRS_PER_TOKEN)
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
        model = fit(steps, durations_ns, SETUP, PAIRS_PER_TOKEN)
        assert all(value >= 0 for value in astuple(model.coefficients))


@pytest.mark.parametrize(("below", "above"), [(5e3, 80e3), (80e3, 5e3)], ids=["convex", "concave"])
def test_linear_layers_may_bend_either_way(below: float, above: float) -> None:
    bent = replace(TRUE, ns_per_token_below_knee=below, ns_per_token_above_knee=above)
    steps = random_steps("bent", 400)
    model = fit(steps, [round(true_ns(step, bent, 64)) for step in steps], SETUP, PAIRS_PER_TOKEN)
    assert model.knee_tokens == 64
    assert model.coefficients.ns_per_token_below_knee == pytest.approx(below, rel=0.01)
    assert model.coefficients.ns_per_token_above_knee == pytest.approx(above, rel=0.01)


def test_batches_of_one_size_need_no_knee() -> None:
    stream = random.Random("decodes")
    steps = [Work(4, 4, 0, 4, stream.randint(4, 900), 0, 0, 0, 0, 0, 0) for _ in range(100)]
    model = fit(steps, [round(true_ns(step)) for step in steps], SETUP, PAIRS_PER_TOKEN)
    assert total_ns(model, steps[0]) == pytest.approx(true_ns(steps[0]), rel=1e-6)


def test_named_parts_are_the_terms() -> None:
    steps = random_steps("parts", 300)
    model = fit(steps, noisy_ns(steps, spread=0.02, outliers=0), SETUP, PAIRS_PER_TOKEN)
    for step in steps:
        assert total_ns(model, step) == pytest.approx(true_ns(step, model.coefficients, model.knee_tokens))
    decode = Work(2, 2, 0, 2, 30, 0, 0, 0, 0, 0, 0)
    idle_parts = {"attention_prefill", "transfers"}
    assert {name for name, part_ns in model.parts_ns(decode).items() if part_ns == 0} == idle_parts


def true_model() -> Fitted:
    steps = random_steps("exact", 400)
    return replace(
        fit(steps, noisy_ns(steps, 0, 0), SETUP, PAIRS_PER_TOKEN),
        coefficients=TRUE,
        provenance={"host": "here", "torch": "2.13"},
    )


def test_estimates_for_policies() -> None:
    model = true_model()
    expected_ns = 32 * 60e3 + 68 * 40e3 + 50e3 + 300e3 + 60.0 * 5050
    assert model.recompute_ns(100) == expected_ns
    assert model.transfer_ns(4) == 4 * (50e3 + 70e3) / 2 + 200e3


def test_moves_that_were_never_measured_are_not_free() -> None:
    steps = random_steps("no swaps", 300, with_swaps=False)
    model = fit(steps, noisy_ns(steps, 0, 0), SETUP, PAIRS_PER_TOKEN)
    assert model.report.unmeasured == ("ns_per_block_swapped_out", "ns_per_block_swapped_in")
    swap_out = Work(1, 1, 0, 1, 5, 0, 0, 3, 0, 0, 1)
    with pytest.raises(UserError, match=r"no price for num_blocks_swapped_out: .* with steps that have"):
        model.parts_ns(swap_out)
    with pytest.raises(UserError, match="no price for num_blocks_swapped_out"):
        model.transfer_ns(3)


def test_prompts_that_were_never_measured_are_not_free() -> None:
    """Any feature, not only transfers: a calibration of decodes says nothing of a prompt."""
    stream = random.Random("decodes only")
    steps = [Work(n, n, 0, n, n * 50, 0, 0, 0, 0, 0, 0) for n in (stream.randint(1, 30),) * 60]
    model = fit(steps, [round(true_ns(step)) for step in steps], SETUP, PAIRS_PER_TOKEN)
    prompt = Work(20, 1, 1, 1, 0, 20, 210, 0, 0, 0, 0)
    with pytest.raises(UserError, match="no price for num_prefill_chunks, prefill_context_tokens, pref"):
        model.parts_ns(prompt)
    with pytest.raises(UserError, match="no price for num_prefill_chunks"):
        model.recompute_ns(20)


def short_prompts() -> list[Work]:
    """Chunks from position 0, of 2 to 128 tokens, each a step of its own."""
    return [Work(n, 1, 1, 1, 0, n, n * (n + 1) // 2, 0, 0, 0, 0) for _ in range(3) for n in range(2, 129)]


def second_chunks() -> list[Work]:
    """Chunks from position 60 on."""
    return [Work(n, 1, 1, 1, 0, 60 + n, n * 60 + n * (n + 1) // 2, 0, 0, 0, 0) for n in range(2, 129)]


LONG_PROMPT = Work(4000, 1, 1, 1, 0, 4000, 8_002_000, 0, 0, 0, 0)


def test_attention_of_a_long_prompt_is_not_free_where_short_ones_hid_it() -> None:
    """Steps that go with the tokens alone: the fit gave the pairs nothing, and a long prompt's were free."""
    steps = [*short_prompts(), *second_chunks()]
    model = fit(steps, [round(3e6 + 40e3 * step.num_tokens) for step in steps], SETUP, PAIRS_PER_TOKEN)
    assert abs(model.report.total_error) < 0.01
    assert model.report.p90_abs_error < 0.05
    ns = model.coefficients
    assert ns.ns_per_prefill_attention_pair >= PAIRS_PER_TOKEN * ns.ns_per_token_above_knee > 0
    attention_ns = model.parts_ns(LONG_PROMPT)["attention_prefill"]
    assert attention_ns == pytest.approx(8_002_000 * PAIRS_PER_TOKEN * 40e3, rel=0.15)


def test_what_is_dearer_than_the_floor_is_fitted() -> None:
    steps = short_prompts()
    model = fit(steps, [round(true_ns(step)) for step in steps], SETUP, PAIRS_PER_TOKEN)
    pair_ns = model.coefficients.ns_per_prefill_attention_pair
    assert pair_ns == pytest.approx(TRUE.ns_per_prefill_attention_pair, rel=0.02)


def test_ranges_are_those_of_the_steps() -> None:
    steps = random_steps("ranges", 300)
    ranges = fit(steps, noisy_ns(steps, 0, 0), SETUP, PAIRS_PER_TOKEN).ranges
    for name in FEATURES:
        values = [getattr(step, name) for step in steps]
        assert ranges.of[name] == Range(min(values), max(values))


def test_a_step_beyond_twice_the_range_is_told() -> None:
    steps = short_prompts()
    model = fit(steps, [round(true_ns(step)) for step in steps], SETUP, PAIRS_PER_TOKEN)
    assert model.beyond(LONG_PROMPT) == {
        "num_tokens": Beyond(4000, 128),
        "prefill_context_tokens": Beyond(4000, 128),
        "prefill_attention_pairs": Beyond(8_002_000, 8256),
    }
    just_in = Work(256, 1, 1, 1, 0, 256, 2 * 8256, 0, 0, 0, 0)
    assert model.beyond(just_in) == {}
    assert set(model.beyond(just_in._replace(num_tokens=257))) == {"num_tokens"}


def test_the_remark_counts_steps_and_names_the_farthest() -> None:
    tally = Extrapolation()
    assert tally.remark() is None
    tally.note({})
    assert tally.remark() is None
    for value in (300, 700, 500):
        tally.note({"num_tokens": Beyond(value, 128)})
    assert tally.remark() == (
        "75% of the steps (3 of 4) lie beyond twice the calibrated range of the cost model: "
        "num_tokens up to 700 (calibrated up to 128)"
    )


def test_another_block_size_is_refused(tmp_path: Path) -> None:
    """A swap of equal bytes was priced by its number of blocks: 8,788 us with 16 tokens, 2,197 with 64."""
    true_model().save(tmp_path / "cost.json")
    assert Fitted.load_for(tmp_path / "cost.json", 16, TINY).setup == SETUP
    with pytest.raises(UserError, match=r"cost.json was measured with blocks of 16 .* has blocks of 64"):
        Fitted.load_for(tmp_path / "cost.json", 64, TINY)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"config": {"hidden_size": 4096}}, r"model.config.hidden_size 4096 \(measured: 384\)"),
        ({"config": {"hidden_size": 384, "head_dim": 8}}, r"model.config.head_dim 8 \(measured: None\)"),
        ({"architecture": "OPTConfig"}, r"model.architecture OPTConfig \(measured: LlamaConfig\)"),
        ({"dtype": "bfloat16"}, r"model.dtype bfloat16 \(measured: float32\)"),
    ],
)
def test_another_model_is_refused(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    true_model().save(tmp_path / "cost.json")
    with pytest.raises(UserError, match=rf"cost.json was measured with another model: .*{message}"):
        Fitted.load_for(tmp_path / "cost.json", 16, {**TINY, **changed})


def test_a_checkpoint_is_known_by_its_config_and_not_by_its_folder(tmp_path: Path) -> None:
    found = []
    for folder, version in (("here", "5.14"), ("there", "5.24")):
        (tmp_path / folder).mkdir()
        text = json.dumps({"model_type": "llama", "hidden_size": 64, "transformers_version": version})
        (tmp_path / folder / "config.json").write_text(text)
        found.append(described(None, None, str(tmp_path / folder), "float32"))
    assert found[0] == found[1]
    assert found[0]["config"] == {"model_type": "llama", "hidden_size": 64}
    with pytest.raises(UserError, match=r"model.path: cannot read .*nowhere.config.json"):
        described(None, None, str(tmp_path / "nowhere"), "float32")


def test_a_cost_model_is_a_value_with_a_short_name(tmp_path: Path) -> None:
    """A policy holds it, is hashed, compared and named in the header of a journal."""
    true_model().save(tmp_path / "cost.json")
    one, two = Fitted.load(tmp_path / "cost.json"), Fitted.load(tmp_path / "cost.json")
    assert one == two
    assert hash(one) == hash(two)
    assert repr(one) == "Fitted(LlamaConfig, 400 steps, no date)"


def test_save_and_load_round_trip(tmp_path: Path) -> None:
    steps = random_steps("save", 300, with_swaps=False)
    model = fit(
        steps, noisy_ns(steps, 0.05, 0.05), SETUP, PAIRS_PER_TOKEN, {"host": "here", "date": "2024-01-01"}
    )
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
        (lambda text: "[1]", "not a cost model of format pagetwin-fitted-cost/2"),
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
        (damaged(lambda doc: doc.update(format="pagetwin-fitted-cost/1")), "format .*: calibrate again"),
        (damaged(lambda doc: doc["setup"].pop("limits")), r"setup: missing keys \['limits'\]"),
        (damaged(lambda doc: doc["setup"]["pool"].pop("block_size")), "setup, pool: missing keys"),
        (damaged(lambda doc: doc["setup"].update(policies=3)), "setup, policies: not an object"),
        (damaged(lambda doc: doc["ranges"].pop("num_tokens")), "ranges: the keys must be"),
        (damaged(lambda doc: doc["ranges"].update(num_tokens=[1])), r"ranges: num_tokens is \[1\]"),
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
        fit([], [], SETUP, PAIRS_PER_TOKEN)
    with pytest.raises(ValueError, match=r"20 measured steps are too few for the \d+ terms .* at least \d+"):
        fit(steps, [1000] * 20, SETUP, PAIRS_PER_TOKEN)
    with pytest.raises(ValueError, match="20 steps, but 19 durations"):
        fit(steps, [1000] * 19, SETUP, PAIRS_PER_TOKEN)
    with pytest.raises(ValueError, match="a duration is not positive"):
        fit(steps, [1000] * 19 + [0], SETUP, PAIRS_PER_TOKEN)
