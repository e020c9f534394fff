"""Rows as tables: with rates, floors, shares of the ceilings that were measured, and what the targets say."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

import pandas as pd

from pagedkv import roofline
from pagedkv.bench.rows import OURS, Row
from pagedkv.bench.targets import COPY, PINNED, TORCH, Measured, Verdict
from pagedkv.markdown import table
from pagedkv.roofline import H200, Accelerator, Work

RATES = {"bytes_per_s": 1e-9, "link_bytes_per_s": 1e-9, "flops_per_s": 1e-12}
"""Factors for reading."""
OF_RESOURCE = {"memory": "bytes_per_s", "link": "link_bytes_per_s", "arithmetic": "flops_per_s"}
CEILINGS = {"memory": [COPY], "link": list(PINNED.values()), "arithmetic": ["bf16 matmul"]}
"""Cases that measure what a resource can do; the largest rate counts."""
COLUMNS = [
    *(f.name for f in fields(Row) if f.name != "work"),
    *Work._fields,
    "floor_seconds",
    *RATES,
    "limit",
    "share_of_ceiling",
    "target",
    "met",
]


def ceilings(rows: Iterable[Row]) -> dict[str, float]:
    """What each resource can do, a second, as far as that was measured."""
    measured = Measured(rows)
    result = {}
    for resource, cases in CEILINGS.items():
        try:
            result[resource] = max(getattr(measured(case, TORCH), OF_RESOURCE[resource]) for case in cases)
        except ValueError:
            continue
    return result


def frame(
    rows: Iterable[Row],
    accelerator: Accelerator,
    measured_ceilings: Mapping[str, float],
    verdicts: Sequence[Verdict] = (),
) -> pd.DataFrame:
    """The rows as a table; None or NaN where there is nothing to tell."""
    records = [_record(row, accelerator, measured_ceilings, verdicts) for row in rows]
    return pd.DataFrame(records, columns=COLUMNS)


def _record(
    row: Row, accelerator: Accelerator, ceilings: Mapping[str, float], verdicts: Sequence[Verdict]
) -> dict[str, Any]:
    record = {**asdict(row), **row.work._asdict()}
    del record["work"]
    record["floor_seconds"] = roofline.floor_s(row.work, accelerator) or None
    if row.seconds and any(row.work):
        limit = roofline.limit(row.work, H200)  # what limits here limits on the others too
        record |= {name: getattr(row, name) or None for name in RATES} | {"limit": limit}
        if limit in ceilings:
            record["share_of_ceiling"] = getattr(row, OF_RESOURCE[limit]) / ceilings[limit]
    mine = [v for v in verdicts if v.case == row.case and row.provider == OURS]
    if mine:
        record["target"] = "; ".join(f"{v.what} {v.target}" for v in mine)
        met = {v.met for v in mine}
        record["met"] = False if False in met else None if None in met else True
    return record


def markdown(data: pd.DataFrame) -> str:
    """Rows for reading: microseconds, GB/s, TFLOP/s."""
    names = ["case", "of", "us", "floor, us", "GB/s", "GB/s to the host", "TFLOP/s", "of ceiling", "status"]
    scales = {"seconds": 1e6, "floor_seconds": 1e6, **RATES, "share_of_ceiling": 1.0}
    rows = [
        [
            r["case"],
            r["provider"],
            *(_cell(r[name], scale) for name, scale in scales.items()),
            f"{r['status']} {r['note']}".strip(),
        ]
        for r in data.to_dict("records")
    ]
    return table(names, rows)


def _cell(value: float | None, scale: float) -> str:
    return "" if value is None or pd.isna(value) else f"{value * scale:,.4g}"
