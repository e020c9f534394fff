"""PASS, FAIL, or too noisy: what each needs, and that noise never helps."""

from __future__ import annotations

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.campaign import Cell
from experiments.compare import METRICS, Repeat, compare
from experiments.verdict import Answer, Tolerance, judge

CELLS = [Cell(load, policy) for load in (0.7, 1.5) for policy in ("swap", "recompute")]
NOISE = ((-1.0, 0.0, 1.0), (1.0, 0.0, -1.0), (0.0, 1.0, -1.0), (-1.0, 1.0, 0.0))
"""Of each cell and repeat; the sums are 0, so noise widens intervals and moves no mean."""


def repeats(error: float, noise: float, as_it_is: float = 0.0) -> list[Repeat]:
    """Three repeats a cell, in which the simulation is off by `error`, more or less by `noise`."""
    measured = dict.fromkeys(METRICS, 100.0)
    return [
        Repeat(
            cell,
            measured,
            dict.fromkeys(METRICS, 100.0 * (1 + as_it_is)),
            dict.fromkeys(METRICS, 100.0 * (1 + error + noise * z)),
            measured,
            measured,
        )
        for cell, zs in zip(CELLS, NOISE, strict=True)
        for z in zs
    ]


def compared(error: float, noise: float) -> pd.DataFrame:
    ensembles = {cell: [dict.fromkeys(METRICS, value) for value in (99.0, 101.0)] for cell in CELLS}
    return compare(repeats(error, noise), ensembles, Tolerance())


def answer(error: float, noise: float, bias: tuple[float, ...] = (0.0, 0.01, -0.01)) -> Answer:
    return judge(compared(error, noise), bias, Tolerance()).answer


def test_the_table_has_every_error_with_its_interval() -> None:
    table = compared(0.02, 0.01)
    assert table["metric"].tolist() == list(METRICS) * 4
    row = table.iloc[0]
    assert (row["load"], row["policy"], row["measured"]) == (0.7, "swap", 100.0)
    assert row["error"] == 0.0 and row["undrifted"] == 0.0
    assert row["unbiased"] == pytest.approx(0.02)
    # std 0.01 in each of four cells, 8 degrees of freedom: t = 1.860 at 90 %, and 1.860 x 0.01 / sqrt(3)
    assert row["half"] == pytest.approx(0.01074, abs=1e-5)
    assert row["ensemble"] == pytest.approx(0.02)
    counts = table[table["metric"].isin(["num_preemptions", "recompute_tax"])]
    assert (counts["answer"] == "").all() and counts["limit"].isna().all()


def test_a_right_simulator_on_a_quiet_machine_passes() -> None:
    assert answer(0.0, 0.005) is Answer.PASS
    assert answer(0.02, 0.005) is Answer.PASS


def test_an_error_beyond_the_limit_fails_and_is_named() -> None:
    verdict = judge(compared(0.08, 0.005), (0.0, 0.0, 0.0), Tolerance())
    assert verdict.answer is Answer.FAIL
    assert "52 of 52 figures are beyond their limits" in str(verdict)
    assert "at load 0.7 +8.0 ± 0.5 %" in str(verdict)


def test_means_and_percentiles_have_their_own_limits() -> None:
    table = compared(0.04, 0.001)
    assert set(table.loc[table["answer"] == "off", "metric"]) == {
        "output_throughput", "mean_ttft_ms", "mean_tpot_ms", "mean_e2el_ms",
    }  # fmt: skip
    assert (table["answer"] == "holds").sum() == 4 * 9


def test_noise_is_told_from_error() -> None:
    assert answer(0.0, 0.10) is Answer.TOO_NOISY
    assert answer(0.04, 0.10) is Answer.TOO_NOISY


@settings(max_examples=25, deadline=None)
@given(
    error=st.floats(-0.2, 0.2),
    noise=st.floats(0, 0.3),
    more=st.floats(1, 10),
    bias=st.floats(-0.1, 0.1),
)
def test_a_noisier_machine_never_makes_a_pass_easier(
    error: float, noise: float, more: float, bias: float
) -> None:
    """The same errors with more noise around them: what did not pass does not pass."""

    def at(scale: float) -> Answer:
        return answer(error, noise * scale, tuple(bias + noise * scale * z for z in (-1, 0, 1)))

    if at(1.0) is not Answer.PASS:
        assert at(more) is not Answer.PASS


def test_the_step_bias_is_judged_by_itself() -> None:
    assert answer(0.0, 0.001, (2.0, 2.1, 1.9)) is Answer.FAIL, "a cost model three times too slow"
    assert answer(0.0, 0.001, (0.04, 0.10, -0.02)) is Answer.TOO_NOISY
    assert answer(0.0, 0.001, (0.02, 0.021, 0.019)) is Answer.PASS


def test_one_repeat_tells_nothing() -> None:
    single = [repeat for repeat in repeats(0.0, 0.0) if repeat.cell == CELLS[0]][:1]
    table = compare(single, {CELLS[0]: [single[0].measured] * 2}, Tolerance())
    assert judge(table, (0.0,), Tolerance()).answer is Answer.TOO_NOISY


def test_objections_fail_and_doubts_keep_from_passing() -> None:
    table, bias = compared(0.0, 0.001), (0.0, 0.0, 0.0)
    objected = judge(table, bias, Tolerance(), objections=["3 of 24 requests were not served"])
    assert objected.answer is Answer.FAIL and "3 of 24" in str(objected)
    doubted = judge(table, bias, Tolerance(), doubts=["a bad calibration"])
    assert doubted.answer is Answer.TOO_NOISY and "a bad calibration" in str(doubted)
