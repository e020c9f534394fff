"""The run log as Arrow tables: explicit schemas with what each column means, and the way to data frames."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict

import pandas as pd
import pyarrow as pa

from engine.core.spec import Capacity
from engine.telemetry.columns import Column, request_column, step_column
from engine.telemetry.schema import NULLABLE, REQUEST_COLUMNS, STEP_COLUMNS, World

ARROW_TYPES = {
    "string": pa.string(),
    "int64": pa.int64(),
    "Int64": pa.int64(),
    "list<int64>": pa.list_(pa.int64()),
    "list<string>": pa.list_(pa.string()),
}

MASKED = {pa.int64(): pd.Int64Dtype()}


def steps_schema(parts: Iterable[str], metadata: Mapping[str, str] | None = None) -> pa.Schema:
    """Of steps.parquet, for durations that are sums of these parts."""
    types = {"world": pa.string(), **dict.fromkeys(STEP_COLUMNS, pa.int64())}
    types |= {f"part_{name}_ns": pa.float64() for name in parts}
    fields = [_field(name, dtype, step_column(name)) for name, dtype in types.items()]
    return pa.schema(fields, metadata=metadata)


def requests_schema() -> pa.Schema:
    """Of requests.parquet."""
    types = {"world": "string", **REQUEST_COLUMNS}
    return pa.schema(
        _field(name, ARROW_TYPES[dtype], request_column(name), nullable=name in NULLABLE)
        for name, dtype in types.items()
    )


def run_metadata(world: World, capacity: Capacity) -> dict[str, str]:
    """What steps.parquet says of the run as a whole."""
    return {"pagetwin": json.dumps({"world": world.value, "capacity": asdict(capacity)}, sort_keys=True)}


def to_frame(table: pa.Table) -> pd.DataFrame:
    """Integers stay integers: a column with gaps becomes Int64, never float, which would round times."""
    gaps = [field.name for field in table.schema if field.type == pa.int64() and field.nullable]
    frame: pd.DataFrame = table.to_pandas(types_mapper={pa.string(): pd.StringDtype()}.get)
    return frame.assign(**{name: table[name].to_pandas(types_mapper=MASKED.get) for name in gaps})


def _field(name: str, dtype: pa.DataType, column: Column, *, nullable: bool = False) -> pa.Field:
    return pa.field(name, dtype, nullable, {"unit": column.unit, "description": column.description})
