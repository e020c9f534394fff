"""What a cost model sees of a plan, and what it answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from engine.core.errors import UserError
from engine.core.plan import StepPlan, Transfer, TransferKind
from engine.core.policies.base import CostEstimator


class StepFeatures(NamedTuple):
    """The work of one step as counts, from which any cost model is computed.

    A sequence that computes one token is a decode here, whatever the token is for; one that computes more is
    a prefill chunk.
    """

    num_tokens: int
    """Tokens computed, over all sequences."""
    num_seqs: int
    """Sequences that compute: rows of the batch."""
    num_prefill_chunks: int
    """Those among them that compute more than one token."""
    num_sampled: int
    """Sequences whose next token is drawn: rows of the output projection."""
    decode_context_tokens: int
    """KV positions that decodes read, their own included."""
    prefill_context_tokens: int
    """KV positions that prefill chunks read, their own included."""
    prefill_attention_pairs: int
    """Pairs of a query position and a KV position that it attends to, over the prefill chunks."""
    num_blocks_swapped_out: int
    num_blocks_swapped_in: int
    num_blocks_copied: int
    """Device to device: copy-on-write."""
    num_transfers: int


def features(plan: StepPlan) -> StepFeatures:
    """Count the work of a plan.

    A chunk of n tokens from position s attends to n * s + n (n + 1) / 2 pairs and reads s + n positions; a
    decode is n = 1. Each live sequence of a request does the same work.

    This runs once for each simulated step, and most steps only decode, one sequence a request. As every chunk
    computes at least one token, their token count gives them away, and they are summed without a Python loop.
    """
    batch = plan.chunks
    if plan.num_tokens == len(batch):
        num_seqs = len(batch)
        num_sampled = sum(map(len, batch.samples))
        decode_context = sum(batch.starts) + num_seqs
        num_prefill_chunks = prefill_context = pairs = 0
    else:
        num_seqs = num_sampled = decode_context = num_prefill_chunks = prefill_context = pairs = 0
        columns = zip(batch.starts, batch.num_tokens, batch.seqs, batch.samples, strict=True)
        for start, num_tokens, seqs, samples in columns:
            width = len(seqs)
            num_seqs += width
            num_sampled += len(samples)
            if num_tokens == 1:
                decode_context += (start + 1) * width
            else:
                num_prefill_chunks += width
                prefill_context += (start + num_tokens) * width
                pairs += (num_tokens * start + num_tokens * (num_tokens + 1) // 2) * width
    moved = _blocks_moved(plan.transfers) if plan.transfers else (0, 0, 0, 0)
    return StepFeatures(
        plan.num_tokens,
        num_seqs,
        num_prefill_chunks,
        num_sampled,
        decode_context,
        prefill_context,
        pairs,
        *moved,
    )


def _blocks_moved(transfers: Sequence[Transfer]) -> tuple[int, int, int, int]:
    """Blocks swapped out, swapped in and copied, and the number of transfers."""
    blocks = dict.fromkeys(TransferKind, 0)
    for transfer in transfers:
        blocks[transfer.kind] += len(transfer.src)
    return (
        blocks[TransferKind.SWAP_OUT],
        blocks[TransferKind.SWAP_IN],
        blocks[TransferKind.COPY],
        len(transfers),
    )


class Beyond(NamedTuple):
    """A feature that a cost model has to extrapolate far."""

    value: int
    calibrated: int
    """The largest value in the steps that the model was fitted to."""


class CostModel(CostEstimator, Protocol):
    """Prices a step, and answers what a policy asks that weighs swapping against recomputation."""

    def parts_ns(self, step: StepFeatures) -> dict[str, float]:
        """The duration of the step as a named sum, so that an error can be traced to a part."""
        ...


@runtime_checkable
class MeasuredCostModel(CostModel, Protocol):
    """A cost model that was fitted to measured steps, and so knows how far they went."""

    def beyond(self, step: StepFeatures) -> Mapping[str, Beyond]:
        """The features of the step of which the model knows too little to be believed, by name."""
        ...

    @property
    def caveat(self) -> str | None:
        """Why none of its prices should be trusted much, in one line; None if the measurement was good."""
        ...


class Extrapolation:
    """Counts the steps that a cost model priced beyond what it was calibrated for."""

    def __init__(self) -> None:
        self.num_steps = 0
        self.num_beyond = 0
        self.farthest: dict[str, Beyond] = {}

    def note(self, beyond: Mapping[str, Beyond]) -> None:
        """Count a step; `beyond` as the cost model tells."""
        self.num_steps += 1
        if beyond:
            self.num_beyond += 1
            for name, at in beyond.items():
                self.farthest[name] = max(at, self.farthest.get(name, at))

    def remark(self) -> str | None:
        """One line for whoever reads the figures of the run; None if all steps were in range."""
        if not self.num_beyond:
            return None
        share = self.num_beyond / self.num_steps
        features = ", ".join(
            f"{name} up to {at.value:,} (calibrated up to {at.calibrated:,})"
            for name, at in sorted(self.farthest.items())
        )
        return (
            f"{share:.0%} of the steps ({self.num_beyond:,} of {self.num_steps:,}) lie beyond twice the "
            f"calibrated range of the cost model: {features}"
        )


def unmeasured() -> CostModel:
    """The cost model of an engine that nobody has calibrated: whoever asks for it is told so."""
    raise UserError(
        "no costs are known here. Measure this engine with `python -m experiments.calibrate`, then give "
        "cost=fitted cost.path=.../cost_model.json"
    )
