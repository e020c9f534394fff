"""The run log on disk: steps.parquet, requests.parquet, summary.json and config.yaml in one directory.

Equal runs give equal bytes: explicit schemas, no time of writing, no host names, and no pandas metadata.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from engine.core.errors import UserError
from engine.core.spec import Capacity
from engine.telemetry.arrow import requests_schema, run_metadata, steps_schema, to_frame
from engine.telemetry.frames import Framer
from engine.telemetry.recorder import Recorder
from engine.telemetry.schema import World

STEPS, REQUESTS = "steps.parquet", "requests.parquet"
TOKEN_BY_TOKEN = ("token_times_ns", "phases", "phase_times_ns")
"""Columns of requests that are read only where they are wanted."""


class Log(Protocol):
    """A run as data, in memory or on disk: what metrics and figures are made from.

    A long run is read a chunk at a time; each chunk has the columns that are asked for, or all.
    """

    @property
    def world(self) -> World:
        """Where it took place."""
        ...

    @property
    def capacity(self) -> Capacity:
        """With how much memory."""
        ...

    @property
    def steps(self) -> pd.DataFrame:
        """All steps, whatever memory that takes; the columns are explained in `engine.telemetry.schema`."""
        ...

    @property
    def requests(self) -> pd.DataFrame:
        """All requests, in order of arrival; of a log on disk without TOKEN_BY_TOKEN."""
        ...

    @property
    def num_steps(self) -> int:
        """How many steps there are."""
        ...

    def step_chunks(self, *columns: str) -> Iterator[pd.DataFrame]:
        """The steps, in order."""
        ...

    def request_chunks(self, *columns: str) -> Iterator[pd.DataFrame]:
        """The requests, with TOKEN_BY_TOKEN; within a chunk in order of arrival."""
        ...


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
        """The log of a run that is over, of which nothing was taken before."""
        return cls.of_tables(
            world, capacity, *Framer(world, capacity.block_size).take(recorder, is_over=True)
        )

    @classmethod
    def of_tables(cls, world: World, capacity: Capacity, steps: pa.Table, requests: pa.Table) -> RunLog:
        """The log whose files hold these tables; requests in order of arrival."""
        return cls(world, capacity, to_frame(steps), _by_arrival(to_frame(requests)))

    @property
    def num_steps(self) -> int:
        """How many steps there are."""
        return len(self.steps)

    def step_chunks(self, *columns: str) -> Iterator[pd.DataFrame]:
        """All steps at once."""
        yield self.steps

    def request_chunks(self, *columns: str) -> Iterator[pd.DataFrame]:
        """All requests at once."""
        yield self.requests


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
    return [*write_log(log, directory), *write_results(log, directory, summary, config_text)]


def write_log(log: RunLog, directory: Path) -> list[Path]:
    """Write a run log that was kept in memory (`engine.telemetry.writer` writes one while it grows)."""
    parts = [
        name.removeprefix("part_").removesuffix("_ns")
        for name in map(str, log.steps)
        if name.startswith("part_")
    ]
    _write_parquet(log.steps, steps_schema(parts, run_metadata(log.world, log.capacity)), directory / STEPS)
    _write_parquet(log.requests, requests_schema(), directory / REQUESTS)
    return [directory / STEPS, directory / REQUESTS]


def write_results(
    log: Log, directory: Path, summary: Mapping[str, float], config_text: str | None = None
) -> list[Path]:
    """Write what a run came to, beside its log."""
    results = directory / "summary.json"
    _write_summary(log, summary, results)
    if config_text is None:
        return [results]
    config = directory / "config.yaml"
    config.write_text(config_text, encoding="utf-8")
    return [results, config]


def read_run(directory: Path) -> RunLog:
    """Read back what `write_run` wrote, all of it.

    Raises:
        ValueError: a file is missing or does not hold a run log.
    """
    stored = StoredLog(directory)
    steps, requests = pq.read_table(directory / STEPS), pq.read_table(directory / REQUESTS)
    return RunLog.of_tables(stored.world, stored.capacity, steps, requests)


class StoredLog:
    """The run log in a folder, read as far as it is asked for (`Log`).

    Raises:
        ValueError: a file is missing or does not hold a run log.
    """

    def __init__(self, directory: Path) -> None:
        self._steps, self._requests = directory / STEPS, directory / REQUESTS
        for path in (self._steps, self._requests):
            if not path.is_file():
                raise UserError(f"{path} does not exist: {directory} is not the directory of a finished run")
        metadata = pq.read_schema(self._steps).metadata or {}
        if b"pagetwin" not in metadata:
            raise UserError(f"{self._steps} is not a run log: its metadata has no key 'pagetwin'")
        run = json.loads(metadata[b"pagetwin"])
        self.world, self.capacity = World(run["world"]), Capacity(**run["capacity"])

    @property
    def steps(self) -> pd.DataFrame:
        """All steps."""
        return to_frame(pq.read_table(self._steps))

    @cached_property
    def requests(self) -> pd.DataFrame:
        """All requests, in order of arrival, without TOKEN_BY_TOKEN."""
        names = [name for name in pq.read_schema(self._requests).names if name not in TOKEN_BY_TOKEN]
        frame = pd.concat(map(_with_shared_lists, _chunks(self._requests, names)), ignore_index=True)
        return _by_arrival(frame)

    @property
    def num_steps(self) -> int:
        """How many steps there are."""
        return int(pq.read_metadata(self._steps).num_rows)

    def step_chunks(self, *columns: str) -> Iterator[pd.DataFrame]:
        """The steps, a row group at a time."""
        return _chunks(self._steps, columns)

    def request_chunks(self, *columns: str) -> Iterator[pd.DataFrame]:
        """The requests, a row group at a time."""
        return map(_by_arrival, _chunks(self._requests, columns and (*columns, "arrival_ns")))


def _chunks(path: Path, columns: Sequence[str]) -> Iterator[pd.DataFrame]:
    with pq.ParquetFile(path) as file:
        for index in range(file.num_row_groups):
            yield to_frame(file.read_row_group(index, list(columns) or None))


def _with_shared_lists(requests: pd.DataFrame) -> pd.DataFrame:
    """An array of its own for each request would take more memory than all other columns together."""
    known: dict[bytes, object] = {}
    lists = [known.setdefault(one.tobytes(), one.copy()) for one in requests["seq_num_output_tokens"]]
    return requests.assign(seq_num_output_tokens=pd.Series(lists, requests.index, dtype="object"))


def _by_arrival(requests: pd.DataFrame) -> pd.DataFrame:
    return requests.sort_values("arrival_ns", kind="stable", ignore_index=True)


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


def _write_summary(log: Log, summary: Mapping[str, float], path: Path) -> None:
    values = {name: value if math.isfinite(value) else None for name, value in summary.items()}
    run = {"world": log.world.value, "capacity": asdict(log.capacity)}
    path.write_text(json.dumps(run | values, indent=2) + "\n", encoding="utf-8")


def _write_parquet(frame: pd.DataFrame, schema: pa.Schema, path: Path) -> None:
    # from_pandas adds the versions of pandas and pyarrow to the metadata: bytes that would differ for equal
    # runs.
    table = pa.Table.from_pandas(frame, schema=schema, preserve_index=False)
    pq.write_table(table.replace_schema_metadata(schema.metadata), path, compression="zstd")
