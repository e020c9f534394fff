"""A cost model from measured steps: a non-negative weighted sum of the features of a plan."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from engine.core.errors import UserError
from sim.cost.base import StepFeatures
from sim.cost.terms import Coefficients, FitReport

FORMAT = "pagetwin-fitted-cost/1"


@dataclass(frozen=True, slots=True)
class Fitted:
    """Step time = sum of coefficient x term (sim.cost.terms). Made by `sim.cost.fit.fit`, kept as JSON."""

    coefficients: Coefficients
    knee_tokens: int
    report: FitReport
    provenance: Mapping[str, str]
    """Where the steps were measured: host, date, versions, model."""

    def parts_ns(self, step: StepFeatures) -> dict[str, float]:
        """The duration of the step as a named sum; ValueError if it moves blocks as no measured step did."""
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

    def recompute_ns(self, num_tokens: int) -> int:
        """A step that prefills `num_tokens` tokens of one sequence, less what every step costs."""
        num_pairs = num_tokens * (num_tokens + 1) // 2
        parts_ns = self.parts_ns(StepFeatures(num_tokens, 1, 1, 0, 0, num_tokens, num_pairs, 0, 0, 0, 0))
        return round(sum(parts_ns.values()) - parts_ns["overhead"])

    def transfer_ns(self, num_blocks: int) -> int:
        """Moving blocks between device and host in one transfer, one way: the mean of both directions."""
        out_ns = self._transfers_ns(StepFeatures(0, 0, 0, 0, 0, 0, 0, num_blocks, 0, 0, 1))
        in_ns = self._transfers_ns(StepFeatures(0, 0, 0, 0, 0, 0, 0, 0, num_blocks, 0, 1))
        return round((out_ns + in_ns) / 2)

    def _transfers_ns(self, step: StepFeatures) -> float:
        ns = self.coefficients
        total_ns = step.num_transfers * ns.ns_per_transfer
        for num_blocks, name in (
            (step.num_blocks_swapped_out, "ns_per_block_swapped_out"),
            (step.num_blocks_swapped_in, "ns_per_block_swapped_in"),
            (step.num_blocks_copied, "ns_per_block_copied"),
        ):
            if num_blocks and name in self.report.unmeasured:
                raise UserError(
                    f"the cost model has no {name}: no step that it was fitted to did that, "
                    "so calibrate with steps that do"
                )
            total_ns += num_blocks * getattr(ns, name)
        return total_ns

    def save(self, path: str | Path) -> None:
        """Write the model as JSON, floats to the last digit."""
        document = {"format": FORMAT, **asdict(self)}
        Path(path).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Fitted:
        """Read what `save` wrote; UserError, naming file and key, otherwise."""
        path = Path(path)
        if not path.is_file():
            raise UserError(f"no fitted cost model at {path}: run `python -m experiments.calibrate` first")
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise UserError(f"{path}: not JSON ({error}): calibrate again") from None
        if not isinstance(document, dict) or document.pop("format", None) != FORMAT:
            raise UserError(f"{path}: not a cost model of format {FORMAT}: calibrate again")
        model = _record(cls, document, str(path))
        coefficients = _record(Coefficients, model.coefficients, f"{path}, coefficients")
        for name, value in asdict(coefficients).items():
            if not isinstance(value, int | float) or not value >= 0:
                raise UserError(f"{path}, coefficients: {name} is {value!r}, must be a number of at least 0")
        report = _record(FitReport, model.report, f"{path}, report")
        report = replace(report, unmeasured=tuple(report.unmeasured))
        return replace(model, coefficients=coefficients, report=report)


T = TypeVar("T")


def _record(kind: type[T], values: Any, where: str) -> T:
    """A dataclass from a JSON object that has exactly its fields, inner objects as they are."""
    names = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    if not isinstance(values, dict) or values.keys() != names:
        given = set(values) if isinstance(values, dict) else set()
        missing, unknown = sorted(names - given), sorted(given - names)
        raise UserError(f"{where}: missing keys {missing}, unknown keys {unknown}: calibrate again")
    return kind(**values)
