"""From what the recorder appended to data frames, when the run is over."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from engine.telemetry.record import RequestRecord
from engine.telemetry.recorder import Recorder
from engine.telemetry.schema import MOVED, PLANNED, REQUEST_COLUMNS, STEP_COLUMNS, UNFINISHED, World
from engine.telemetry.tokens import Ints, TokenTimes, token_times


def frames(recorder: Recorder, world: World, block_size: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The steps and the requests of a run that is over.

    Steps: one row a step; world, STEP_COLUMNS, and a float64 column `part_<name>_ns` for each part. A step
    whose backend did not name a part spent nothing on it.

    Requests: one row a request, in order of arrival, those that were refused last; world and REQUEST_COLUMNS.
    Lists are numpy arrays.
    """
    columns = _logged(recorder)
    tokens = token_times(recorder, columns["end_ns"])
    columns["num_decode_tokens"] = columns["num_seqs"] - columns["num_prefill_chunks"]
    columns["num_prefill_tokens"] = columns["num_tokens"] - columns["num_decode_tokens"]
    columns["num_table_blocks"], columns["num_unused_slots"] = _tables(recorder, tokens, block_size)
    steps = pd.DataFrame(columns, columns=list(STEP_COLUMNS), dtype="int64")
    parts = _parts(recorder)
    steps = steps.assign(**{f"part_{name}_ns": parts[name] for name in sorted(parts)})
    return _in_world(world, steps), _in_world(world, _requests(recorder, tokens))


def _in_world(world: World, frame: pd.DataFrame) -> pd.DataFrame:
    frame.insert(0, "world", pd.Series([world.value] * len(frame), dtype="string"))
    return frame


def _logged(recorder: Recorder) -> dict[str, Ints]:
    planned = np.array(recorder.steps, dtype=np.int64).reshape(recorder.num_steps, len(PLANNED))
    moves = np.array(recorder.moves, dtype=np.int64).reshape(-1, 1 + len(MOVED))
    moved = np.zeros((recorder.num_steps, len(MOVED)), dtype=np.int64)
    moved[moves[:, 0]] = moves[:, 1:]
    return dict(zip((*PLANNED, *MOVED), np.hstack([planned, moved]).T, strict=True))


def _parts(recorder: Recorder) -> dict[str, NDArray[np.float64]]:
    parts: dict[str, NDArray[np.float64]] = {}
    for names, (steps, values) in recorder.parts_ns.items():
        matrix = np.array(values).reshape(len(steps), len(names))
        for i, name in enumerate(names):
            parts.setdefault(name, np.zeros(recorder.num_steps))[np.array(steps)] = matrix[:, i]
    return parts


def _requests(recorder: Recorder, tokens: TokenTimes) -> pd.DataFrame:
    rows = [
        _request(record, tokens.of_request(record.row), tokens.num_of_request(record.row))
        for record in recorder.records.values()
    ]
    none = np.empty(0, dtype=np.int64)
    rows += [_request(record, none, np.zeros(record.spec.n, np.int64)) for record in recorder.refused_records]
    columns = {name: _column([row[name] for row in rows], kind) for name, kind in REQUEST_COLUMNS.items()}
    return pd.DataFrame(columns, columns=list(REQUEST_COLUMNS))


def _column(values: list[object], kind: str) -> pd.Series:
    return pd.Series(values, dtype="object" if kind.startswith("list") else kind)


def _request(record: RequestRecord, times_ns: Ints, num_tokens: Ints) -> dict[str, object]:
    """The row of a request, from the times of its tokens and their number for each sequence."""
    spec = record.spec
    counts = {name: getattr(record, name) for name in REQUEST_COLUMNS if name in RequestRecord.__slots__}
    return counts | {
        "request_id": spec.request_id,
        "arrival_ns": spec.arrival_ns,
        "first_token_ns": int(times_ns.min()) if len(times_ns) else None,
        "last_token_ns": int(times_ns.max()) if len(times_ns) else None,
        "status": UNFINISHED if record.ending is None else record.ending.value,
        "reason": str(record.reason),
        "num_prompt_tokens": spec.num_prompt_tokens,
        "num_output_tokens": len(times_ns),
        "max_tokens": spec.max_tokens,
        "n": spec.n,
        "priority": spec.priority,
        "client": spec.client,
        "seq_num_output_tokens": num_tokens,
        "token_times_ns": times_ns,
        "phases": np.array([phase.value for phase, _ in record.phases], dtype=object),
        "phase_times_ns": np.array([time_ns for _, time_ns in record.phases], dtype=np.int64),
    }


def _tables(recorder: Recorder, tokens: TokenTimes, block_size: int) -> tuple[Ints, Ints]:
    """The lengths of all device block tables summed, and their slots that never get KV, for each step.

    Final lengths are known by now, so a table of a blocks over a sequence that ends with the KV of f tokens
    has max(0, a * block_size - f) slots that nobody will ever write to.
    """
    steps, rows, seqs, num_blocks = np.array(recorder.tables, dtype=np.int64).reshape(-1, 4).T
    numbers = tokens.first_seq[rows] + seqs
    unused = np.maximum(0, num_blocks * block_size - _final_lengths(recorder, tokens)[numbers])
    return (
        _sum_over_tables(steps, numbers, num_blocks, recorder.num_steps),
        _sum_over_tables(steps, numbers, unused, recorder.num_steps),
    )


def _final_lengths(recorder: Recorder, tokens: TokenTimes) -> Ints:
    """Tokens of each sequence that ever had KV; of those sampled, the newest has none."""
    records = list(recorder.records.values())
    num_seqs = np.diff(tokens.first_seq)
    num_prompt_tokens = np.repeat([record.spec.num_prompt_tokens for record in records], num_seqs)
    without_output = np.repeat([record.max_computed_tokens for record in records], num_seqs)
    sampled = tokens.num_sampled
    return np.where(sampled > 0, num_prompt_tokens + sampled - 1, without_output)


def _sum_over_tables(steps: Ints, tables: Ints, values: Ints, num_steps: int) -> Ints:
    """The sum over all tables at each step, of values that are 0 at first and change at given steps."""
    order = np.argsort(tables, kind="stable")
    tables, values = tables[order], values[order]
    before = np.zeros_like(values)
    before[1:] = np.where(tables[1:] == tables[:-1], values[:-1], 0)
    changes = np.zeros(num_steps + 1, dtype=np.int64)
    np.add.at(changes, steps[order], values - before)
    return np.cumsum(changes)[:num_steps]
