"""PASS, FAIL, or too noisy to tell: what a validation may say of the simulator.

Each figure is judged by an interval from the repeats, the step bias taken out. It `holds` if the interval
(90 %, so two one-sided tests at 5 %: Schuirmann 1987) lies within its limit. It is `off` if a wider one,
whose level is shared among all figures (Bonferroni), lies outside. Otherwise it is `unclear`. So noise makes
an interval wider and a pass harder, and no figure among fifty is off by chance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import fmean

import pandas as pd

from engine.core.fields import Positive, check_fields
from engine.telemetry.agreement import half_width, pooled_std
from experiments.tables import label, percent

HOLDS_CONFIDENCE = 0.90
OFF_LEVEL = 0.05
"""The chance that any figure of a right simulator is called off."""
NUM_NAMED = 3
"""So many figures are named in a reason; the table has all."""


class Answer(StrEnum):
    """Of a validation."""

    PASS = "PASS"
    FAIL = "FAIL"
    TOO_NOISY = "MACHINE TOO NOISY TO TELL"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerance:
    """The largest errors that pass, as shares of the measured value."""

    mean: Positive = 0.03
    """Means, and the throughput, with the step bias taken out."""
    percentile: Positive = 0.05
    """Percentiles, with the step bias taken out."""
    step_bias: Positive = 0.05
    """The error that all step times have in common."""

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer and why."""

    answer: Answer
    reasons: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.answer}: {'; '.join(self.reasons)}"


def told(error: float, limit: float, holds_half: float, off_half: float) -> str:
    """`holds`, `off` or `unclear`, from the half-widths of the two intervals around the error."""
    if abs(error) + holds_half <= limit:
        return "holds"
    return "off" if abs(error) - off_half > limit else "unclear"


def judge(
    comparison: pd.DataFrame,
    bias: Sequence[float],
    tolerance: Tolerance,
    *,
    objections: Sequence[str] = (),
    doubts: Sequence[str] = (),
) -> Verdict:
    """The verdict over all figures.

    `comparison` is that of experiments.compare, `bias` has the step bias of each repeat. An objection is a
    reason to fail whatever the figures say, a doubt one not to pass.
    """
    failures, unclear = list(objections), list(doubts)
    mean_bias, noise = fmean(bias), pooled_std([bias])
    halves = [half_width(*noise, len(bias), confidence) for confidence in (HOLDS_CONFIDENCE, 1 - OFF_LEVEL)]
    text = f"the step bias is {percent(mean_bias, signed=True)} ± {percent(halves[0])} %"
    text += f" (limit {percent(tolerance.step_bias)} %)"
    answer = told(mean_bias, tolerance.step_bias, *halves)
    if answer != "holds":
        (failures if answer == "off" else unclear).append(text)
    judged = comparison[comparison["answer"] != ""]
    for found, reasons, words in (
        ("off", failures, "beyond their limits"),
        ("unclear", unclear, "not told apart from their limits"),
    ):
        rows = judged[judged["answer"] == found]
        if len(rows):
            reasons.append(f"{len(rows)} of {len(judged)} figures are {words}: {_named(rows)}")
    if failures:
        return Verdict(Answer.FAIL, tuple(failures))
    if unclear:
        return Verdict(Answer.TOO_NOISY, tuple(unclear))
    limits = f"means {percent(tolerance.mean)} %, percentiles {percent(tolerance.percentile)} %"
    all_hold = f"all {len(judged)} figures are within their limits ({limits}), the step bias taken out"
    return Verdict(Answer.PASS, (all_hold, text))


def _named(rows: pd.DataFrame) -> str:
    """The worst figures by how far they may lie beyond their limits, each with its interval."""
    beyond = rows["unbiased"].abs() + rows["half"] - rows["limit"]
    worst = rows.loc[beyond.sort_values(ascending=False, kind="stable").index]
    texts = []
    for row in worst.head(NUM_NAMED).to_dict("records"):
        place = f" of {row['policy']}" + ("" if pd.isna(row["load"]) else f" at load {row['load']:g}")
        error = f"{percent(row['unbiased'], signed=True)} ± {percent(row['half'])} %"
        texts.append(f"{label(row['metric'])}{place} {error}")
    return ", ".join(texts) + (", ..." if len(rows) > NUM_NAMED else "")
