"""A cost model from measured steps: a non-negative weighted sum of what a step does."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from operator import gt
from pathlib import Path
from typing import Any

from engine.core.errors import UserError
from engine.core.work import Work
from sim.cost.base import Beyond
from sim.cost.ranges import Ranges
from sim.cost.records import record
from sim.cost.setup import Setup, described
from sim.cost.terms import Coefficients, FitReport

FORMAT = "pagetwin-fitted-cost/2"


@dataclass(frozen=True, slots=True, repr=False)
class Fitted:
    """Step time = sum of coefficient x term (sim.cost.terms). Made by `sim.cost.fit.fit`, kept as JSON.

    It speaks of one engine (`setup`). What no measured step did has no price: UserError. Beyond twice the
    range of a feature it extrapolates, and says so (`beyond`).
    """

    coefficients: Coefficients
    knee_tokens: int
    setup: Setup
    ranges: Ranges
    report: FitReport = field(hash=False)
    provenance: Mapping[str, str] = field(hash=False)
    """Where the steps were measured: host, date, versions, kernels."""

    def parts_ns(self, step: Work) -> dict[str, float]:
        """The duration of the step as a named sum; UserError if it does what no measured step did."""
        if any(map(gt, step, self.ranges.reach)):
            self._refuse_unmeasured(step)
        ns = self.coefficients
        num_below = min(step.num_tokens, self.knee_tokens)
        num_above = step.num_tokens - num_below
        return {
            "linear": num_below * ns.ns_per_token_below_knee + num_above * ns.ns_per_token_above_knee,
            "attention_decode": step.decode_context_tokens * ns.ns_per_decode_context_token,
            "attention_prefill": step.prefill_context_tokens * ns.ns_per_prefill_context_token
            + step.prefill_attention_pairs * ns.ns_per_prefill_attention_pair,
            "sequences": step.num_seqs * ns.ns_per_seq + step.num_prefill_chunks * ns.ns_per_prefill_chunk,
            "sampling": step.num_sampled * ns.ns_per_sampled_token,
            "transfers": self._transfers_ns(step) if step.num_transfers else 0.0,
            "overhead": ns.ns_per_step,
        }

    def beyond(self, step: Work) -> Mapping[str, Beyond]:
        """The features of the step beyond twice the range of the calibration."""
        return self.ranges.beyond(step)

    @property
    def caveat(self) -> str | None:
        """Whether the measured steps were too noisy, or too unlike the terms, to be believed."""
        return self.report.caveat

    def recompute_ns(self, num_tokens: int) -> int:
        """A step that prefills `num_tokens` tokens of one sequence, less what every step costs."""
        num_pairs = num_tokens * (num_tokens + 1) // 2
        parts_ns = self.parts_ns(Work(num_tokens, 1, 1, 0, 0, num_tokens, num_pairs))
        return round(sum(parts_ns.values()) - parts_ns["overhead"])

    def transfer_ns(self, num_blocks: int) -> int:
        """Moving blocks between device and host in one transfer, one way: the mean of both directions."""
        out_ns = self.parts_ns(Work(num_blocks_swapped_out=num_blocks, num_transfers=1))["transfers"]
        in_ns = self.parts_ns(Work(num_blocks_swapped_in=num_blocks, num_transfers=1))["transfers"]
        return round((out_ns + in_ns) / 2)

    def _transfers_ns(self, step: Work) -> float:
        ns = self.coefficients
        return (
            step.num_transfers * ns.ns_per_transfer
            + step.num_blocks_swapped_out * ns.ns_per_block_swapped_out
            + step.num_blocks_swapped_in * ns.ns_per_block_swapped_in
            + step.num_blocks_copied * ns.ns_per_block_copied
        )

    def _refuse_unmeasured(self, step: Work) -> None:
        asked = [name for name, at in self.beyond(step).items() if not at.calibrated]
        if asked:
            raise UserError(
                f"the cost model has no price for {', '.join(asked)}: no step that it was fitted to had any, "
                "so calibrate with steps that have"
            )

    def __repr__(self) -> str:
        """Short, since the header of a journal names its policies so."""
        date = self.provenance.get("date", "no date")
        return f"Fitted({self.setup.name}, {self.report.num_steps} steps, {date})"

    def save(self, path: str | Path) -> None:
        """Write the model as JSON, floats to the last digit."""
        document = {"format": FORMAT, **asdict(self), "ranges": self.ranges.of}
        Path(path).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Fitted:
        """Read what `save` wrote; UserError, naming file and key, otherwise."""
        path = Path(path)
        if not path.is_file():
            raise UserError(f"no fitted cost model at {path}: run `python -m experiments.calibrate` first")
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:  # not JSON, not UTF-8
            raise UserError(f"{path}: not JSON ({error}): calibrate again") from None
        if not isinstance(document, dict) or document.pop("format", None) != FORMAT:
            raise UserError(f"{path}: not a cost model of format {FORMAT}: calibrate again")
        model = record(cls, document, str(path))
        coefficients = record(Coefficients, model.coefficients, f"{path}, coefficients")
        for name, value in asdict(coefficients).items():
            if not isinstance(value, int | float) or not value >= 0:
                raise UserError(f"{path}, coefficients: {name} is {value!r}, must be a number of at least 0")
        report = record(FitReport, model.report, f"{path}, report")
        return replace(
            model,
            coefficients=coefficients,
            setup=Setup.of_json(model.setup, f"{path}, setup"),
            ranges=Ranges.of_json(model.ranges, f"{path}, ranges"),
            report=replace(report, unmeasured=tuple(report.unmeasured)),
        )

    @classmethod
    def load_for(cls, path: str | Path, block_size: int, model: Mapping[str, Any]) -> Fitted:
        """The cost model at `path`, for a run with blocks of this size and of this model.

        `model` has the arguments of sim.cost.setup.described. Raises UserError, beside what `load` raises, if
        the measurement was of another set-up (Setup.check).
        """
        fitted = cls.load(path)
        fitted.setup.check(path, block_size, described(**model))
        return fitted
