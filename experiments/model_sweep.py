"""Every decoder of the installed transformers, tiny: are its tokens those of `generate`, or is it refused?

`python -m experiments.model_sweep --out engine/runtime/MODELS.md` writes the table and exits with 1 if any
served model gives other tokens. Each model has a process of its own, with a time limit.
"""

from __future__ import annotations

import argparse
import copy
import multiprocessing
import random
import sys
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from pagedkv.markdown import table

from engine.core.drive import drive
from engine.core.events import Event
from engine.core.plan import StepPlan, StepResult
from engine.core.policies.admission import FirstChunk
from engine.core.policies.base import Policies
from engine.core.policies.batching import DecodeFirst
from engine.core.policies.order import Fcfs
from engine.core.policies.reservation import OnDemand
from engine.core.policies.restore import Recompute
from engine.core.policies.victim import LastAdmitted
from engine.core.scheduler import Scheduler
from engine.core.serving import Serving
from engine.core.sources import Listed
from engine.core.spec import Limits, RequestSpec
from engine.runtime.backend import TorchBackend
from engine.runtime.checkpoint import in_one_line
from engine.runtime.clock import VirtualClock
from engine.runtime.model import prepare
from engine.runtime.reach import UnsupportedModelError
from experiments import tiny_models
from experiments.errors import plain_errors

PROMPT_TOKENS = (5, 19, 40)
NUM_TOKENS = 16
LIMITS = Limits(max_num_seqs=8, max_num_batched_tokens=13, max_model_len=64)
NUM_BLOCKS = 30
"""Of 4 tokens: less than the three sequences need, so that they are preempted and recomputed."""
WEIGHT_STDS = (0.3, 0.1, 0.6, 0.03)
"""Tried until the longest answer has `MIN_DISTINCT` different tokens: a constant answer shows little."""
MIN_DISTINCT = 6
TIME_LIMIT_S = 120.0


class Verdict(NamedTuple):
    """What became of one model."""

    model_type: str
    result: str
    """equal, refused, wrong, or not built."""
    words: str


@dataclass
class Tokens:
    """An observer that keeps the tokens of each request."""

    of: dict[str, list[int]] = field(default_factory=dict)

    def arrived(self, spec: RequestSpec, now_ns: int) -> None:
        """A request is there."""
        self.of[spec.request_id] = []

    def refused(self, spec: RequestSpec, reason: str, now_ns: int) -> None:
        """Requests that fit are not refused."""
        raise AssertionError(reason)

    def stepped(
        self, plan: StepPlan, result: StepResult, start_ns: int, end_ns: int, events: Sequence[Event]
    ) -> None:
        """A step is done."""
        for (request_id, _), token_id in (result.token_ids or {}).items():
            self.of[request_id].append(token_id)

    def closed(self, now_ns: int) -> None:
        """Nothing more to come."""


def prompts() -> list[tuple[int, ...]]:
    """A prompt of each length; token ids 0 to 2 are left to padding, beginning and end."""
    rng = random.Random(5)
    return [tuple(rng.randrange(3, tiny_models.VOCAB_SIZE) for _ in range(n)) for n in PROMPT_TOKENS]


def generated(model: Any) -> list[list[int]]:
    """The greedy answers of transformers, one prompt at a time."""
    model.generation_config.eos_token_id = None
    answers = []
    for prompt in prompts():
        ids = torch.tensor([prompt])
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=NUM_TOKENS,
            min_new_tokens=NUM_TOKENS,
            do_sample=False,
            pad_token_id=0,
        )
        answers.append(out[0, ids.shape[1] :].tolist())
    return answers


def served(model: Any) -> list[list[int]]:
    """The answers of the engine, all prompts together, in chunks between decodes, in a pool that is tight.

    Raises:
        UnsupportedModelError: the model is refused.
    """
    backend = TorchBackend(prepare(model), LIMITS, block_size=4, num_blocks=NUM_BLOCKS)
    policies = Policies(Fcfs(), FirstChunk(), DecodeFirst(), LastAdmitted(), Recompute(), OnDemand())
    tokens = Tokens()
    specs = [
        RequestSpec(f"r{i}", 0, len(prompt), NUM_TOKENS, NUM_TOKENS, prompt_token_ids=prompt)
        for i, prompt in enumerate(prompts())
    ]
    scheduler = Scheduler(backend.capacity, LIMITS, policies)
    drive(Serving(scheduler, backend, [tokens]), Listed(specs), VirtualClock())
    return [tokens.of[spec.request_id] for spec in specs]


def judge(model_type: str) -> Verdict:
    """Build one model, serve it, compare."""
    try:
        model, expected = _with_answers(tiny_models.tiny_config(model_type))
    except Exception as error:
        return Verdict(
            model_type, "not built", f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
        )
    try:
        found = served(copy.deepcopy(model))
    except UnsupportedModelError as error:
        return Verdict(model_type, "refused", str(error))
    except Exception as error:
        return Verdict(model_type, "wrong", in_one_line(error))
    same = [sum(a == b for a, b in zip(x, y, strict=True)) for x, y in zip(found, expected, strict=True)]
    told = f"{len(set(expected[-1]))} different tokens in the longest answer"
    if found == expected:
        return Verdict(model_type, "equal", told)
    return Verdict(model_type, "wrong", f"{same} of {NUM_TOKENS} tokens equal; {told}")


def _with_answers(config: Any) -> tuple[Any, list[list[int]]]:
    """A model of this configuration whose answers vary, and these; else the one that varies most."""
    tried = []
    for std in WEIGHT_STDS:
        model = tiny_models.build(copy.deepcopy(config), std)
        tried.append((model, generated(model)))
        if len(set(tried[-1][1][-1])) >= MIN_DISTINCT:
            break
    return max(tried, key=lambda pair: len(set(pair[1][-1])))


def isolated(model_type: str, limit_s: float = TIME_LIMIT_S) -> Verdict:
    """`judge` in a process of its own, so that a model that hangs or crashes takes nothing with it."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(sender, model_type))
    process.start()
    sender.close()
    try:
        if receiver.poll(limit_s):
            verdict: Verdict = receiver.recv()
            return verdict
        return Verdict(model_type, "not built", f"no answer within {limit_s:.0f} s")
    except EOFError:
        return Verdict(model_type, "wrong", "the process died")
    finally:
        process.kill()
        process.join()


def _send(sender: Connection, model_type: str) -> None:
    torch.set_num_threads(1)  # OpenMP's threads do not survive a fork
    sender.send(judge(model_type))


def report(verdicts: Sequence[Verdict], seconds: float) -> str:
    """The table, with counts."""
    counts = Counter(verdict.result for verdict in verdicts)
    words = {
        "equal": "tokens equal those of `generate`",
        "refused": "refused when loaded, with the reason",
        "wrong": "served with other tokens",
        "not built": "no tiny model of it could be built, or transformers cannot run it",
    }
    rows = [[v.model_type, v.result, v.words.replace("|", "/").replace("\n", " ")] for v in verdicts]
    lines = [
        "# Models of transformers that are served",
        "",
        f"Every causal language model that transformers {transformers.__version__} knows, with a tiny",
        f"random configuration, in float32 on a CPU (torch {torch.__version__}); {len(verdicts)} in "
        f"{seconds:.0f} s. Prompts of {', '.join(map(str, PROMPT_TOKENS))} tokens and {NUM_TOKENS} more,",
        "served together in chunks, in a pool so tight that they are preempted; windows and chunks are",
        "shorter than the prompts.",
        "Written by `python -m experiments.model_sweep --out engine/runtime/MODELS.md`.",
        "",
        table(["models", "result"], [[counts[result], told] for result, told in words.items()]),
        "",
        table(["model type", "result", "told"], rows),
    ]
    return "\n".join(lines) + "\n"


@plain_errors
def main(arguments: Sequence[str] | None = None) -> int:
    """Sweep, print, write; 1 if any model was served wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    known = tiny_models.architectures()
    parser.add_argument("--only", nargs="+", help="model types", choices=known, metavar="TYPE")
    parser.add_argument("--out", type=Path, help="file for the table")
    options = parser.parse_args(arguments)
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    start = time.perf_counter()
    verdicts = []
    for model_type in options.only or known:
        verdicts.append(isolated(model_type))
        print(f"{model_type:28} {verdicts[-1].result:10} {verdicts[-1].words[:200]}", flush=True)
    told = report(verdicts, time.perf_counter() - start)
    if options.out is not None:
        options.out.write_text(told, encoding="utf-8")
    counts = Counter(verdict.result for verdict in verdicts)
    print(", ".join(f"{count} {result}" for result, count in sorted(counts.items())))
    return 1 if counts["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
