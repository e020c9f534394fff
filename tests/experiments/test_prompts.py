"""Prompts through a checkpoint's own tokenizer and chat template, in both worlds."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from engine.core.errors import UserError
from engine.runtime.tokenizer import CheckpointTokenizer
from engine.telemetry.runlog import read_run
from experiments import run
from sim.workloads.prompts import PromptFile
from sim.workloads.shape import Shape
from tests.experiments.cli import QUICK, Cli
from tests.runtime.support import build

TEXTS = ["the pages of a book are turned one by one", "a block table maps blocks", "who swaps the page?"]
TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
MESSAGES = [{"role": "user", "content": "the book"}]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of random weights, and a byte-level BPE tokenizer trained on three sentences."""
    folder = tmp_path_factory.mktemp("checkpoint")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["</s>", "<|user|>", "<|assistant|>"]
    trainer = trainers.BpeTrainer(vocab_size=100, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)
    model: Any = build("llama")
    model.save_pretrained(folder)
    return folder


def lines(folder: Path, *requests: dict[str, Any]) -> str:
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps(request) + "\n" for request in requests))
    return str(path)


def file_of(folder: Path, checkpoint: Path, *requests: dict[str, Any], **options: Any) -> PromptFile:
    return PromptFile(lines(folder, *requests), tokenizer=CheckpointTokenizer(str(checkpoint)), **options)


def test_the_engine_serves_those_very_tokens_and_writes_what_it_answered(
    cli: Cli, tmp_path: Path, checkpoint: Path
) -> None:
    path = lines(
        tmp_path,
        {"prompt": TEXTS[0], "max_tokens": 5},
        {"messages": MESSAGES, "user": "ann", "custom_id": "chat"},
        {"custom_id": "batch", "body": {"prompt": [5, 6, 7], "max_completion_tokens": 3, "temperature": 1}},
        {"prompt": TEXTS[0] * 40, "custom_id": "long"},
    )
    finished = cli(
        run.main, *QUICK, "backend=torch", "model=checkpoint", f"model.path='{checkpoint}'",
        "workload=prompts", f"workload.path='{path}'", "workload.default_max_tokens=7", "pool.num_blocks=40",
        "limits.max_model_len=100", "limits.max_num_batched_tokens=100",
    )  # fmt: skip
    assert finished.code == 0, finished.err
    assert "fields not read: temperature; workload.shape says" in finished.out
    assert "outputs.jsonl" in finished.out
    outputs = {
        line["request_id"]: line
        for line in map(json.loads, (cli.directory / "outputs.jsonl").read_text().splitlines())
    }
    assert list(outputs) == ["batch", "chat", "long", "r00000"]

    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint)
    prompts = {
        "r00000": (tokenizer(TEXTS[0])["input_ids"], 5),
        "chat": (tokenizer("<|user|>the book<|assistant|>")["input_ids"], 7),
        "batch": ([5, 6, 7], 3),
    }
    for request_id, (token_ids, limit) in prompts.items():
        output = outputs[request_id]
        assert output["prompt_token_ids"] == token_ids
        ids = transformers.BatchEncoding({"input_ids": [token_ids]}, tensor_type="pt")
        answer = model.generate(
            **ids, max_new_tokens=limit, do_sample=False, eos_token_id=tokenizer.eos_token_id, pad_token_id=0
        )[0, len(token_ids) :].tolist()
        assert output["token_ids"] == answer
        assert output["text"] == tokenizer.decode(answer, skip_special_tokens=True) != ""
        assert output["finish_reason"] == ("stop" if answer[-1] == tokenizer.eos_token_id else "length")
    assert outputs["chat"]["prompt"] == MESSAGES
    assert outputs["long"]["status"] == "rejected" and outputs["long"]["token_ids"] == []
    assert "window" in outputs["long"]["finish_reason"] or "max_model_len" in outputs["long"]["finish_reason"]
    requests = read_run(cli.directory).requests.set_index("request_id")
    assert requests.loc["chat", "client"] == "ann"


def test_an_answer_ends_with_the_end_token(cli: Cli, tmp_path: Path, checkpoint: Path) -> None:
    tokenizer = CheckpointTokenizer(str(checkpoint))
    assert tokenizer.stop_token_ids() == (0,)
    stopping = file_of(tmp_path, checkpoint, {"prompt": TEXTS[1]}, {"prompt": TEXTS[2], "max_tokens": 9})
    specs = stopping.requests(512)
    assert [spec.sampling.stop_token_ids for spec in specs] == [(0,), (0,)]
    assert [(spec.max_tokens, spec.num_output_tokens) for spec in specs] == [(128, None), (9, None)]
    on = file_of(tmp_path, checkpoint, {"prompt": TEXTS[1]}, stop_at_eos=False).requests(512)
    assert on[0].sampling.stop_token_ids == ()


def test_a_simulation_serves_their_lengths(cli: Cli, tmp_path: Path, checkpoint: Path) -> None:
    path = lines(tmp_path, {"prompt": TEXTS[0], "max_tokens": 5}, {"messages": MESSAGES})
    overrides = ("workload=prompts", f"workload.path='{path}'")
    finished = cli(run.main, *QUICK, *overrides, f"workload.tokenizer.path='{checkpoint}'")
    assert finished.code == 0, finished.err
    assert not (cli.directory / "outputs.jsonl").exists()
    assert read_run(cli.directory).requests["num_output_tokens"].tolist() == [5, 128]
    without = cli(run.main, *QUICK, *overrides)
    assert without.code == 1
    assert "workload.tokenizer.path names no checkpoint directory: set it, or choose model=ch" in without.err


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "neither": ({"text": "x"}, "line 2: give one of prompt and messages; fields found: text"),
    "both": ({"prompt": "x", "messages": []}, "line 2: give one of prompt and messages"),
    "empty": ({"prompt": ""}, "line 2, field prompt: is empty"),
    "kind": ({"prompt": 7}, "line 2: field prompt is 7: must be a text or a list of token ids"),
    "messages": ({"messages": ["x"]}, "must be a list of {role, content}"),
    "limit": (
        {"prompt": "the", "max_tokens": 0},
        "line 2, field max_tokens: 0 is no limit: must be at least",
    ),
    "priority": (
        {"prompt": "the", "priority": "high"},
        "line 2, field priority: 'high' is not a whole number",
    ),
    "body": ({"body": "x"}, "line 2, field body: not a JSON object"),
    "id": (
        {"prompt": "the", "custom_id": "r00000"},
        "line 2, column custom_id: 'r00000' is the id of line 1",
    ),
}


@pytest.mark.parametrize(("request_", "message"), BAD.values(), ids=BAD)
def test_errors_name_the_line_and_the_field(
    tmp_path: Path, checkpoint: Path, request_: dict[str, Any], message: str
) -> None:
    workload = file_of(tmp_path, checkpoint, {"prompt": "the"}, request_)
    with pytest.raises(UserError, match=re.escape(message)):
        workload.requests(512)


def test_what_is_wrong_with_a_tokenizer_is_said(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="there is no directory nowhere"):
        CheckpointTokenizer("nowhere").encode("x")
    with pytest.raises(UserError, match="transformers finds no tokenizer here"):
        CheckpointTokenizer(str(tmp_path)).encode("x")
    with pytest.raises(UserError, match=r"shape\.fit_lengths is scale"):
        PromptFile(shape=Shape(fit_lengths="scale"))
    tokenizer = CheckpointTokenizer(str(checkpoint))
    tokenizer._tokenizer.chat_template = None
    with pytest.raises(UserError, match="the tokenizer has no chat template, which messages need"):
        tokenizer.chat(MESSAGES)
    tokenizer._tokenizer.chat_template = "{{ raise_exception('no system role') }}"
    with pytest.raises(UserError, match="refuses the messages: no system role"):
        tokenizer.chat(MESSAGES)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r"pip install 'pagetwin\[engine\]'"):
        CheckpointTokenizer(str(checkpoint)).encode("x")


def test_a_clipped_prompt_keeps_its_end(tmp_path: Path, checkpoint: Path) -> None:
    tokens = CheckpointTokenizer(str(checkpoint)).encode(TEXTS[0])
    (spec,) = file_of(
        tmp_path, checkpoint, {"prompt": TEXTS[0], "max_tokens": 4}, shape=Shape(fit_lengths="clip")
    ).requests(10)
    assert spec.prompt_token_ids == tuple(tokens[-6:]) and spec.max_tokens == 4
