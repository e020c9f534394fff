"""Prompts as people write them: JSON lines of text, messages or OpenAI batch requests."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeVar

import numpy as np

from engine.core.errors import UserError
from engine.core.fields import Count
from sim.workloads.arrivals import AllAtOnce, Arrivals
from sim.workloads.base import Labels, Prepared, Prompts, Rows, WorkloadError
from sim.workloads.csv_trace import limit, unique, whole
from sim.workloads.table import Columns, Record, json_records, open_trace
from sim.workloads.text import Tokenizer
from sim.workloads.timeless import Timeless

T = TypeVar("T")

READ = {
    "prompt", "messages", "max_tokens", "max_completion_tokens", "priority", "user", "custom_id", "body",
}  # fmt: skip
HARMLESS = {"method", "url", "model", "stream", "stream_options", "metadata"}
"""Fields of OpenAI's requests that change no token."""


class Line(NamedTuple):
    """One request as the file has it, with its tokens."""

    number: int
    """Of the line, as an editor counts."""
    prompt: object
    token_ids: tuple[int, ...]
    max_tokens: int
    request_id: str | None
    client: str | None
    priority: int
    unread: tuple[str, ...]
    """Fields that would change the answer, and are not read."""


@dataclass(frozen=True, slots=True)
class PromptFile(Timeless):
    """A line is {"prompt": text or token ids} or {"messages": [{"role": ..., "content": ...}]}.

    It may have max_tokens (or max_completion_tokens), priority, user (the client) and custom_id (the id of
    the request). An object `body` holds the same fields, as in OpenAI's batch files. `tokenizer` makes tokens
    of text, and of messages by its chat template. An output ends with the checkpoint's end token if
    `stop_at_eos`, or at its limit: that of its line, else `default_max_tokens`.
    """

    arrivals: Arrivals = field(default_factory=AllAtOnce)
    tokenizer: Tokenizer | None = None
    default_max_tokens: Count = 128
    stop_at_eos: bool = True

    def __post_init__(self) -> None:
        Timeless.__post_init__(self)
        if self.shape.fit_lengths == "scale":
            raise WorkloadError(
                "shape.fit_lengths is scale, but prompts are served as they are: choose none, or clip, which "
                "keeps the end of a prompt"
            )

    def read(self) -> Rows:
        """All rows, at time 0 so far."""
        return _rows(str(self.path), self._lines(self._tokenizer()))

    def prepare(self, max_model_len: int) -> Prepared:
        """The requests of this run, with their tokens; the errors name file and line."""
        tokenizer, shape = self._tokenizer(), self.shape
        lines = self._lines(tokenizer)
        rows = _rows(str(self.path), lines)
        ends = f"prompts: tokens by the tokenizer of {tokenizer.name}; outputs end at their max_tokens"
        stops = dict.fromkeys(
            (*shape.stop_token_ids, *(tokenizer.stop_token_ids() if self.stop_at_eos else ()))
        )
        if stops:
            shape = replace(shape, stop_token_ids=tuple(stops))
            ends += (
                f" or with token {', '.join(map(str, stops))} (but in a simulation, which draws no tokens)"
            )
        prepared = self.arriving(replace(rows, notes=(ends, *rows.notes)), shape, max_model_len)
        assert rows.labels.request_id is not None
        told = dict(zip(rows.labels.request_id, (line.prompt for line in lines), strict=True))
        return replace(prepared, prompts=Prompts(told, tokenizer.decode))

    def _tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise WorkloadError("workload.tokenizer is null: prompts need one")
        return self.tokenizer

    def _lines(self, tokenizer: Tokenizer) -> list[Line]:
        with open_trace(self.path, "prompts") as file:
            lines = [self._line(file.name, record, tokenizer) for record in json_records(file, ())]
            if not lines:
                raise WorkloadError(f"{file.name}: the file is empty: it holds no prompt")
        return lines

    def _line(self, path: str, record: Record, tokenizer: Tokenizer) -> Line:
        place = f"{path}, line {record.line}"
        body = record.cells.get("body", {})
        if not isinstance(body, dict):
            raise WorkloadError(f"{place}, field body: not a JSON object")
        cells: dict[str, Any] = {**record.cells, **body}
        told, token_ids = _prompt(place, cells, tokenizer)
        longest = "max_completion_tokens" if "max_completion_tokens" in cells else "max_tokens"
        return Line(
            record.line,
            told,
            token_ids,
            _parsed(place, cells, longest, limit, self.default_max_tokens),
            _parsed(place, cells, "custom_id", str, None),
            _parsed(place, cells, "user", str, None),
            _parsed(place, cells, "priority", whole, 0),
            tuple(name for name in cells if name not in READ | HARMLESS),
        )


def _prompt(place: str, cells: Mapping[str, Any], tokenizer: Tokenizer) -> tuple[object, tuple[int, ...]]:
    """What was written, and its tokens."""
    if ("prompt" in cells) == ("messages" in cells):
        raise WorkloadError(
            f"{place}: give one of prompt and messages; fields found: {', '.join(cells) or 'none'}"
        )
    name = "prompt" if "prompt" in cells else "messages"
    told = cells[name]
    try:
        token_ids = tuple(_tokens(name, told, tokenizer))
    except UserError as error:
        raise WorkloadError(f"{place}: {error}") from error
    if not token_ids:
        raise WorkloadError(f"{place}, field {name}: is empty, there is nothing to compute")
    return told, token_ids


def _tokens(name: str, told: object, tokenizer: Tokenizer) -> Sequence[int]:
    if name == "prompt" and isinstance(told, str):
        return tokenizer.encode(told)
    if isinstance(told, list) and name == "prompt" and all(type(token_id) is int for token_id in told):
        return told
    if isinstance(told, list) and name == "messages" and all(isinstance(turn, dict) for turn in told):
        return tokenizer.chat(told) if told else ()
    wanted = "a text or a list of token ids" if name == "prompt" else "a list of {role, content}"
    raise WorkloadError(f"field {name} is {told!r:.60}: must be {wanted}")


def _parsed(place: str, cells: Mapping[str, Any], name: str, parse: Callable[[object], T], default: T) -> T:
    if cells.get(name) is None:
        return default
    try:
        return parse(cells[name])
    except ValueError as error:
        raise WorkloadError(f"{place}, field {name}: {cells[name]!r} {error}") from None


def _rows(path: str, lines: Sequence[Line]) -> Rows:
    """The requests at time 0; their recorded outputs are as long as they may be."""
    ids = [line.request_id or f"r{row:05d}" for row, line in enumerate(lines)]
    columns = Columns(path, [line.number for line in lines], {}, {"custom_id": ids})
    limits = [line.max_tokens for line in lines]
    has_clients = any(line.client is not None for line in lines)
    labels = Labels(
        request_id=unique(columns, "custom_id"),
        client=[line.client for line in lines] if has_clients else None,
        priority=[line.priority for line in lines],
        max_tokens=limits,
        prompt_token_ids=[line.token_ids for line in lines],
    )
    unread = dict.fromkeys(name for line in lines for name in line.unread)
    note = f"prompts: fields not read: {', '.join(unread)}; workload.shape says how tokens are drawn"
    return Rows(
        np.arange(len(lines), dtype=np.int64),
        np.zeros(len(lines), np.int64),
        np.array([len(line.token_ids) for line in lines], np.int64),
        np.array(limits, np.int64),
        (note,) if unread else (),
        labels,
    )
