"""What the kernels should reach on an H200 (shared/reference/kernels.md), and whether they did."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import pandas as pd

from pagedkv.bench.grids import decode_batches, prefill_grid
from pagedkv.bench.rows import OURS, Row
from pagedkv.markdown import table

TORCH = "torch"
COPY = "device copy"
SHARE = "share of the copy rate"
SDPA = "SDPA on contiguous KV"
CUDNN = "cuDNN SDPA on contiguous KV"
FLASHINFER = "FlashInfer"
FLEX = "flex_attention, paged"
PINNED = {"out": "pinned copy to the host", "in": "pinned copy to the device"}


class Measured:
    """Rows of all stages, by case and provider."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self._rows = {(row.case, row.provider): row for row in rows}

    def __call__(self, case: str, provider: str = OURS) -> Row:
        """One row. Raises ValueError where it was not measured."""
        if (case, provider) not in self._rows:
            raise ValueError(f"{case} of {provider} was not measured")
        row = self._rows[case, provider]
        if row.seconds is None:
            raise ValueError(f"{case} of {provider}: {row.status} {row.note}".strip())
        return row

    def seconds(self, case: str, provider: str = OURS) -> float:
        """Time of one row. Raises ValueError where it was not measured."""
        seconds = self(case, provider).seconds
        assert seconds is not None
        return seconds


@dataclass(frozen=True, slots=True)
class Target:
    """A bound on something that follows from the rows."""

    case: str
    what: str
    bound: float
    value: Callable[[Measured], float]
    at_most: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """A target and what was measured; `value` and `met` are None where it was not, and `note` says why."""

    case: str
    what: str
    target: str
    value: float | None = None
    met: bool | None = None
    note: str = ""


def judge(rows: Iterable[Row]) -> list[Verdict]:
    """Every target against the rows."""
    measured = Measured(rows)
    return [_judge(target, measured) for target in targets()]


def _judge(target: Target, measured: Measured) -> Verdict:
    sign = "<=" if target.at_most else ">="
    verdict = Verdict(target.case, target.what, f"{sign} {target.bound:g}")
    try:
        value = target.value(measured)
    except ValueError as missing:
        return replace(verdict, note=str(missing))
    return replace(
        verdict, value=value, met=value <= target.bound if target.at_most else value >= target.bound
    )


def targets() -> list[Target]:
    """All targets, in the order of kernels.md."""
    return [*_decode(), *_decode_against_others(), *_prefill(), *_memory(), *_swap()]


def _decode() -> list[Target]:
    sixteen, sixty_four = "decode {}, pages of 16".format, "decode {}, pages of 64".format
    bounds = {"64 x 4k": 0.85, "32 x 2k": 0.8, "1 x 32k": 0.7}
    return [
        *(Target(sixteen(b), SHARE, bound, _share_of_copy(sixteen(b))) for b, bound in bounds.items()),
        Target(sixteen("1 x 1k"), "us", 10, _microseconds(sixteen("1 x 1k")), at_most=True),
        Target(sixteen("Zipf-64"), "rate, of uniform", 0.7, _rate_of(sixteen("Zipf-64"), sixteen("64 x 4k"))),
        *(
            Target(sixteen(b), "rate, of pages of 64", 0.93, _rate_of(sixteen(b), sixty_four(b)))
            for b in decode_batches()
        ),
    ]


def _decode_against_others() -> list[Target]:
    cases = [f"decode {batch}, pages of 16" for batch in decode_batches()]
    even = [case for case in cases if "Zipf" not in case]  # contiguous KV of uneven lengths would be padded
    return [
        Target(of, f"time, of {other}", bound, _mean_time_of(some, other), at_most=True)
        for of, some, other, bound in [
            ("decode, all batches", cases, FLASHINFER, 1.0),
            ("decode, even batches", even, SDPA, 1.15),
        ]
    ]


def _prefill() -> list[Target]:
    fresh = [point.name for point in prefill_grid() if not any(cached for cached, _ in point.chunks)]
    return [Target(case, f"rate, of {CUDNN}", 0.6, _speed_of(case, CUDNN)) for case in fresh]


def _memory() -> list[Target]:
    names = ("KV store", "KV store with RoPE", "add + RMSNorm", "SiLU and mul")
    cases = [*(f"{name}, 8192 tokens" for name in names), "block copy, 512 blocks"]
    return [Target(case, SHARE, 0.85, _share_of_copy(case)) for case in cases]


def _swap() -> list[Target]:
    cases = {f"swap {direction}, 64 blocks of 2 MB": pinned for direction, pinned in PINNED.items()}
    return [
        Target(case, f"rate, of {pinned}", 0.9, _link_rate_of(case, pinned)) for case, pinned in cases.items()
    ]


def _microseconds(case: str) -> Callable[[Measured], float]:
    return lambda m: m.seconds(case) * 1e6


def _share_of_copy(case: str) -> Callable[[Measured], float]:
    return lambda m: m(case).bytes_per_s / m(COPY, TORCH).bytes_per_s


def _link_rate_of(case: str, pinned: str) -> Callable[[Measured], float]:
    return lambda m: m(case).link_bytes_per_s / m(pinned, TORCH).link_bytes_per_s


def _rate_of(case: str, other: str) -> Callable[[Measured], float]:
    return lambda m: m(case).bytes_per_s / m(other).bytes_per_s


def _speed_of(case: str, provider: str) -> Callable[[Measured], float]:
    return lambda m: m.seconds(case, provider) / m.seconds(case)


def _mean_time_of(cases: Sequence[str], provider: str) -> Callable[[Measured], float]:
    """Geometric mean."""

    def value(m: Measured) -> float:
        logarithms = [math.log(m.seconds(case) / m.seconds(case, provider)) for case in cases]
        return math.exp(math.fsum(logarithms) / len(logarithms))

    return value


def frame(verdicts: Iterable[Verdict]) -> pd.DataFrame:
    """The verdicts as a table."""
    names = ["case", "what", "target", "value", "met", "note"]
    return pd.DataFrame([[getattr(v, name) for name in names] for v in verdicts], columns=names)


def markdown(verdicts: Iterable[Verdict]) -> str:
    """The verdicts for reading."""
    names = {True: "yes", False: "no", None: "not measured"}
    rows = [
        [v.case, v.what, v.target, "" if v.value is None else f"{v.value:.3g}", names[v.met], v.note]
        for v in verdicts
    ]
    return table(["case", "what", "target", "measured", "met", "note"], rows)
