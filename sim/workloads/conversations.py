"""ShareGPT's conversations: a JSON list of {id, conversations: [{from, value}]}, counted here."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TextIO

import numpy as np

from engine.core.fields import Natural, Positive
from sim.workloads.base import Rows, WorkloadError
from sim.workloads.table import not_json, open_trace
from sim.workloads.text import Tokenizer
from sim.workloads.timeless import Timeless

SOURCE = (
    "https://huggingface.co/datasets/anon8231489123/ShareGPT_Vicuna_unfiltered, "
    "ShareGPT_V3_unfiltered_cleaned_split.json"
)
TOO_FEW = "of fewer than two turns"


@dataclass(frozen=True, slots=True)
class ShareGptJson(Timeless):
    """Lengths of first turns and first answers, as `vllm bench serve` takes them from this file.

    Turn 0 is the prompt and turn 1 the output, whoever speaks. Conversations of fewer turns are left out,
    and so are those with a prompt or an output below `min_tokens`, a prompt above `max_prompt_tokens`, or
    more than `max_total_tokens` together; 0 or None: no such limit. Unlike there, the order is that of the
    file, and "r00042" is conversation 42 of it, counted from 0.

    `tokenizer` counts, unless `chars_per_token` says that characters divided by it, rounded up, will do.
    """

    tokenizer: Tokenizer | None = None
    chars_per_token: Positive | None = None
    min_tokens: Natural = 4
    max_prompt_tokens: Natural | None = 1024
    max_total_tokens: Natural | None = 2048

    def read(self) -> Rows:
        """The conversations that are kept, at time 0 so far."""
        dropped: Counter[str] = Counter()
        kept: list[tuple[int, int, int]] = []
        with open_trace(self.path, "sharegpt_json", SOURCE) as file:
            conversations = _conversations(file)
            for number, turns in enumerate(_turns(file.name, conversations)):
                if len(turns) < 2:
                    dropped[TOO_FEW] += 1
                    continue
                lengths = self._count(turns[0]), self._count(turns[1])
                fault = self._fault(*lengths)
                if fault is None:
                    kept.append((number, *lengths))
                else:
                    dropped[fault] += 1
            if not kept:
                raise WorkloadError(f"{file.name}: no conversation is left: {_told(dropped)}")
        numbers, prompts, outputs = np.array(kept, np.int64).T
        notes = [f"lengths: {self._how()}, of the first turn and of the answer to it"]
        if dropped:
            notes.append(
                f"conversations: {dropped.total():,} of {len(conversations):,} left out: {_told(dropped)}"
            )
        return Rows(numbers, np.zeros(len(kept), np.int64), prompts, outputs, tuple(notes))

    def _how(self) -> str:
        if self.chars_per_token is not None:
            return f"estimated at {self.chars_per_token:g} characters a token (workload.chars_per_token)"
        assert self.tokenizer is not None
        return f"counted by the tokenizer of {self.tokenizer.name}"

    def _count(self, text: str) -> int:
        if self.chars_per_token is not None:
            return math.ceil(len(text) / self.chars_per_token)
        if self.tokenizer is None:
            raise WorkloadError(
                "workload.tokenizer is null and so is workload.chars_per_token: set one of them, such as "
                "workload.chars_per_token=4, an estimate for English"
            )
        return len(self.tokenizer.encode(text))

    def _fault(self, num_prompt_tokens: int, num_output_tokens: int) -> str | None:
        """Why a conversation of these lengths is left out; None if it is kept."""
        if min(num_prompt_tokens, num_output_tokens) < max(self.min_tokens, 1):
            return f"below {max(self.min_tokens, 1)} tokens (workload.min_tokens)"
        if self.max_prompt_tokens is not None and num_prompt_tokens > self.max_prompt_tokens:
            return f"with prompts above {self.max_prompt_tokens:,} tokens (workload.max_prompt_tokens)"
        num_tokens = num_prompt_tokens + num_output_tokens
        if self.max_total_tokens is not None and num_tokens > self.max_total_tokens:
            return f"above {self.max_total_tokens:,} tokens together (workload.max_total_tokens)"
        return None


def _told(dropped: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {why}" for why, count in dropped.items()) or "the file holds none"


def _conversations(file: TextIO) -> Sequence[object]:
    try:
        everything = json.load(file)
    except json.JSONDecodeError as error:
        raise not_json(file.name, error.lineno, error) from None
    if not isinstance(everything, list):
        raise WorkloadError(f"{file.name}: not a JSON list of conversations")
    return everything


def _turns(path: str, conversations: Sequence[object]) -> Iterator[list[str]]:
    """The texts of the first two turns of each conversation, or of as many as it has."""
    for number, conversation in enumerate(conversations):
        place = f"{path}, conversation {number} (counted from 0)"
        if not isinstance(conversation, dict) or not isinstance(conversation.get("conversations"), list):
            found = ", ".join(conversation) if isinstance(conversation, dict) else "no object"
            raise WorkloadError(f"{place}: no list `conversations`; fields found: {found}")
        turns = conversation["conversations"][:2]
        if not all(isinstance(turn, dict) and isinstance(turn.get("value"), str) for turn in turns):
            raise WorkloadError(f"{place}: a turn has no text `value`")
        yield [turn["value"] for turn in turns]
