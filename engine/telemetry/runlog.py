"""The run log on disk: steps.parquet, requests.parquet, summary.json and config.yaml in one directory.

Equal runs give equal bytes: explicit schemas, no time of writing, no host names, and no pandas metadata.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from engine.core.errors import UserError
from engine.core.spec import Capacity
from engine.telemetry.columns import Column, request_column, step_column
from engine.telemetry.frames import frames
from engine.telemetry.recorder import Recorder
from engine.telemetry.schema import NULLABLE, REQUEST_COLUMNS, STEP_COLUMNS, World

ARROW_TYPES = {
    "string": pa.string(),
    "int64": pa.int64(),
    "Int64": pa.int64(),
    "list<int64>": pa.list_(pa.int64()),
    "list<string>": pa.list_(pa.string()),
}


@dataclass(frozen=True, slots=True)
class RunLog:
    """A run as data: what happened in each step and to each request, in which world, with how much memory."""

    world: World
    capacity: Capacity
    steps: pd.DataFrame
    """The columns are explained in `engine.telemetry.schema`."""
    requests: pd.DataFrame

    @classmethod
    def of(cls, recorder: Recorder, world: World, capacity: Capacity) -> RunLog:
        """The log of a run that is over."""
        return cls(world, capacity, *frames(recorder, world, capacity.block_size))


def create_run_directory(root: Path, name: str) -> Path:
    """Make a new directory `root`/`name`; if it exists, `name`-2, `name`-3 and so on."""
    root.mkdir(parents=True, exist_ok=True)
    attempt, path = 1, root / name
    while True:
        try:
            path.mkdir()
        except FileExistsError:
            attempt += 1
            path = root / f"{name}-{attempt}"
        else:
            return path


def write_run(
    log: RunLog, directory: Path, summary: Mapping[str, float], config_text: str | None = None
) -> list[Path]:
    """Write a run into an existing directory and return the files, in the order of writing.

    `config_text` is the resolved configuration, written as config.yaml.
    """
    steps, requests, results = (
        directory / name for name in ("steps.parquet", "requests.parquet", "summary.json")
    )
    _write_parquet(log.steps, _steps_schema(log), steps)
    _write_parquet(log.requests, _requests_schema(), requests)
    _write_summary(log, summary, results)
    if config_text is None:
        return [steps, requests, results]
    config = directory / "config.yaml"
    config.write_text(config_text, encoding="utf-8")
    return [steps, requests, results, config]


def read_run(directory: Path) -> RunLog:
    """Read back what `write_run` wrote.

    Raises:
        ValueError: a file is missing or does not hold a run log.
    """
    steps = _read_parquet(directory / "steps.parquet")
    requests = _read_parquet(directory / "requests.parquet")
    metadata = steps.schema.metadata or {}
    if b"pagetwin" not in metadata:
        raise UserError(f"{directory / 'steps.parquet'} is not a run log: its metadata has no key 'pagetwin'")
    run = json.loads(metadata[b"pagetwin"])
    return RunLog(World(run["world"]), Capacity(**run["capacity"]), _to_frame(steps), _to_frame(requests))


def read_summary(directory: Path) -> dict[str, float]:
    """The metrics of summary.json; null, which stands for undefined, is read as NaN."""
    path = directory / "summary.json"
    if not path.is_file():
        raise UserError(f"{path} does not exist: {directory} is not the directory of a finished run")
    values = json.loads(path.read_text(encoding="utf-8"))
    return {
        name: math.nan if value is None else value
        for name, value in values.items()
        if not isinstance(value, (str, dict))
    }


def _write_summary(log: RunLog, summary: Mapping[str, float], path: Path) -> None:
    values = {name: value if math.isfinite(value) else None for name, value in summary.items()}
    run = {"world": log.world.value, "capacity": asdict(log.capacity)}
    path.write_text(json.dumps(run | values, indent=2) + "\n", encoding="utf-8")


def _steps_schema(log: RunLog) -> pa.Schema:
    parts = [name for name in log.steps.columns if name.startswith("part_")]
    types = {
        "world": pa.string(),
        **dict.fromkeys(STEP_COLUMNS, pa.int64()),
        **dict.fromkeys(parts, pa.float64()),
    }
    fields = [_field(name, dtype, step_column(name)) for name, dtype in types.items()]
    run = {"world": log.world.value, "capacity": asdict(log.capacity)}
    return pa.schema(fields, metadata={"pagetwin": json.dumps(run, sort_keys=True)})


def _requests_schema() -> pa.Schema:
    types = {"world": "string", **REQUEST_COLUMNS}
    return pa.schema(
        _field(name, ARROW_TYPES[dtype], request_column(name), nullable=name in NULLABLE)
        for name, dtype in types.items()
    )


def _field(name: str, dtype: pa.DataType, column: Column, *, nullable: bool = False) -> pa.Field:
    """With what the column means as metadata."""
    return pa.field(name, dtype, nullable, {"unit": column.unit, "description": column.description})


def _write_parquet(frame: pd.DataFrame, schema: pa.Schema, path: Path) -> None:
    # from_pandas adds the versions of pandas and pyarrow to the metadata: bytes that would differ for equal
    # runs.
    table = pa.Table.from_pandas(frame, schema=schema, preserve_index=False)
    pq.write_table(table.replace_schema_metadata(schema.metadata), path, compression="zstd")


def _read_parquet(path: Path) -> pa.Table:
    if not path.is_file():
        raise UserError(f"{path} does not exist: {path.parent} is not the directory of a finished run")
    return pq.read_table(path)


def _to_frame(table: pa.Table) -> pd.DataFrame:
    """Integers stay integers: a column with gaps becomes Int64, never float, which would round times."""
    types = {pa.int64(): pd.Int64Dtype(), pa.string(): pd.StringDtype()}
    frame: pd.DataFrame = table.to_pandas(types_mapper=types.get)
    solid = {field.name: "int64" for field in table.schema if field.type == pa.int64() and not field.nullable}
    return frame.astype(solid)
