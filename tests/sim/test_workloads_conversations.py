"""ShareGPT's JSON: the lengths of first turns and answers, what is left out, and what is said of it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from sim.workloads.base import WorkloadError
from sim.workloads.conversations import ShareGptJson
from sim.workloads.shape import Shape


class Words:
    """A tokenizer that counts words."""

    name = "words"

    def stop_token_ids(self) -> tuple[int, ...]:
        return ()

    def encode(self, text: str) -> list[int]:
        return [len(word) for word in text.split()]

    def chat(self, messages: Sequence[Mapping[str, object]]) -> list[int]:
        return []

    def decode(self, token_ids: Sequence[int]) -> str:
        return ""


def conversation(*lengths: int) -> dict[str, Any]:
    return {
        "id": "x_0",
        "conversations": [{"from": "human", "value": " ".join(["word"] * length)} for length in lengths],
    }


FILE = [
    conversation(10, 20, 99),
    conversation(10),
    conversation(3, 20),
    conversation(20, 3),
    conversation(1025, 4),
    conversation(1000, 1049),
    conversation(1024, 1024),
    conversation(),
]


def workload(folder: Path, content: object, **options: Any) -> ShareGptJson:
    path = folder / "sharegpt.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return ShareGptJson(str(path), rate_per_s=1.0, shape=Shape(fit_lengths="none"), **options)


def test_first_turn_and_answer_under_the_limits_of_vllm(tmp_path: Path) -> None:
    prepared = workload(tmp_path, FILE, tokenizer=Words()).prepare(4096)
    assert [(s.request_id, s.num_prompt_tokens, s.num_output_tokens) for s in prepared.specs] == [
        ("r00000", 10, 20),
        ("r00006", 1024, 1024),
    ]
    assert prepared.notes[1:3] == (
        "lengths: counted by the tokenizer of words, of the first turn and of the answer to it",
        "conversations: 6 of 8 left out: 2 of fewer than two turns, 2 below 4 tokens (workload.min_tokens), "
        "1 with prompts above 1,024 tokens (workload.max_prompt_tokens), "
        "1 above 2,048 tokens together (workload.max_total_tokens)",
    )


def test_without_limits_nothing_but_half_conversations_is_left_out(tmp_path: Path) -> None:
    everything = workload(
        tmp_path, FILE, tokenizer=Words(), min_tokens=0, max_prompt_tokens=None, max_total_tokens=None
    )
    assert [spec.request_id for spec in everything.requests(4096)] == [
        "r00000", "r00002", "r00003", "r00004", "r00005", "r00006",
    ]  # fmt: skip


def test_an_estimate_is_said_to_be_one(tmp_path: Path) -> None:
    prepared = workload(tmp_path, FILE[:1], chars_per_token=4, tokenizer=Words()).prepare(4096)
    (spec,) = prepared.specs  # 10 words of 4 letters and 9 spaces: 49 characters
    assert (spec.num_prompt_tokens, spec.num_output_tokens) == (13, 25)
    assert prepared.notes[1].startswith(
        "lengths: estimated at 4 characters a token (workload.chars_per_token)"
    )


ERRORS: dict[str, tuple[object, str]] = {
    "not JSON": ('[\n{"id": ]', "line 2: not JSON: Expecting value at character 8"),
    "no list": ({"a": 1}, "not a JSON list of conversations"),
    "no conversations": (
        [{"id": 1, "items": []}],
        "conversation 0 (counted from 0): no list `conversations`; fields found: id, items",
    ),
    "no value": (
        [FILE[0], {"conversations": [{"from": "human"}]}],
        "conversation 1 (counted from 0): a turn has no text",
    ),
    "nothing left": ([FILE[1]], "no conversation is left: 1 of fewer than two turns"),
    "empty": ([], "no conversation is left: the file holds none"),
}


@pytest.mark.parametrize(("content", "message"), ERRORS.values(), ids=ERRORS)
def test_errors_name_file_and_conversation(tmp_path: Path, content: object, message: str) -> None:
    with pytest.raises(WorkloadError, match=re.escape(message)) as error:
        workload(tmp_path, content, tokenizer=Words()).requests(4096)
    assert "sharegpt.json" in str(error.value)


def test_neither_tokenizer_nor_estimate(tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match=r"set one of them, such as workload\.chars_per_token=4"):
        workload(tmp_path, FILE).requests(4096)


def test_a_trace_of_another_format_is_told(tmp_path: Path) -> None:
    mooncake = '{"timestamp": 0, "input_length": 67, "output_length": 5}\n'
    with pytest.raises(WorkloadError, match="looks like a Mooncake trace: workload=mooncake"):
        workload(tmp_path, mooncake * 2, tokenizer=Words()).requests(4096)
