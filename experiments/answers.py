"""outputs.jsonl: what the engine answered to prompts, a line a sequence."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd

from engine.core.events import Event
from engine.core.plan import StepPlan, StepResult
from engine.core.spec import RequestSpec
from sim.workloads.base import Prompts

ANSWERS = "outputs.jsonl"


class Answers:
    """An observer that keeps the tokens of each sequence and why it ended (engine.core.serving.Observer)."""

    def __init__(self) -> None:
        self._specs: dict[str, RequestSpec] = {}
        self._tokens: defaultdict[tuple[str, int], list[int]] = defaultdict(list)
        self._reasons: dict[tuple[str, int], str] = {}

    def arrived(self, spec: RequestSpec, now_ns: int) -> None:
        """Keep the request."""
        self._specs[spec.request_id] = spec

    def refused(self, spec: RequestSpec, reason: str, now_ns: int) -> None:
        """Keep the request; the run log has the reason."""
        self._specs.setdefault(spec.request_id, spec)

    def stepped(
        self, plan: StepPlan, result: StepResult, start_ns: int, end_ns: int, events: Sequence[Event]
    ) -> None:
        """Keep the tokens of a step. A recomputed token is not sampled again, so each comes once."""
        for key, token_id in (result.token_ids or {}).items():
            self._tokens[key].append(token_id)
        for finish in result.finished:
            self._reasons[finish.request_id, finish.seq] = finish.reason.value

    def closed(self, now_ns: int) -> None:
        """Nothing to note."""

    def write(self, path: Path, prompts: Prompts, requests: pd.DataFrame) -> Path:
        """Write a line for each sequence, in the order of the run log `requests`; the path."""
        lines = (json.dumps(line, ensure_ascii=False) for line in self._lines(prompts, requests))
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return path

    def _lines(self, prompts: Prompts, requests: pd.DataFrame) -> Iterator[dict[str, object]]:
        for row in requests[["request_id", "status", "reason"]].to_dict("records"):
            spec = self._specs[row["request_id"]]
            for seq in range(spec.n):
                key = spec.request_id, seq
                token_ids = self._tokens.get(key, [])
                finished = row["status"] == "finished"
                yield {
                    "request_id": spec.request_id,
                    "sequence": seq,
                    "prompt": prompts.by_request_id[spec.request_id],
                    "prompt_token_ids": list(spec.prompt_token_ids or ()),
                    "token_ids": token_ids,
                    "text": prompts.decode(token_ids),
                    "status": row["status"],
                    "finish_reason": self._reasons[key] if finished else row["reason"],
                }
