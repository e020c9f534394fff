"""Benchmark of the engine on a fixed workload, against transformers' continuous batching in one process.

    python -m experiments.bench_engine --dtype float32 --peer
    python -m experiments.bench_engine --requests 16 --in-flight 1 2 --repeats 3

The workload is mixed64 (64 requests, drawn from a seed), or JSON, `{"requests": [{"id", "prompt_token_ids",
"max_new_tokens"}, ...]}`; all requests arrive at once and are decoded greedily to their length. The
model is a Llama of 100 M parameters, random weights. With several numbers of plans in flight the workload is
served with each by turns, to the same tokens.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from rich.console import Console
from rich.table import Table

from engine.core.drive import drive
from engine.core.errors import UserError
from engine.core.events import Event
from engine.core.fields import Count, check_value
from engine.core.plan import StepPlan, StepResult
from engine.core.policies.admission import FullPrompt
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
from engine.runtime.clock import VirtualClock
from engine.runtime.model import DTYPES, load_dummy
from experiments.errors import plain_errors

LLAMA_100M: dict[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
}
LIMITS = Limits(max_num_seqs=64, max_num_batched_tokens=512, max_model_len=2048)
BLOCK_SIZE = 16
VLLM_TOKENS_PER_S = {"float32": 505.0, "bfloat16": 771.0}
"""vLLM 0.32, CPU backend, mixed64, 2 threads of another CPU, which has AVX-512 and bfloat16 instructions."""

COMPUTING = ("model", "sampling")
"""The parts of a step in which the model is at work."""

Outputs = dict[str, list[int]]


class Measurement(NamedTuple):
    """One engine on one workload."""

    name: str
    num_requests: int
    num_output_tokens: int
    wall_s: float
    cpu_s: float
    outputs: Outputs
    parts_ns: Mapping[str, float] = {}
    """Where the time of the steps went; empty for other engines."""
    num_steps: int = 0

    @property
    def model_share(self) -> float | None:
        """The share of wall time in which the model computed or sampled; None if that was not measured."""
        return sum(self.parts_ns[name] for name in COMPUTING) / (self.wall_s * 1e9) if self.parts_ns else None

    @property
    def tokens_per_s(self) -> float:
        """Output tokens a second of wall time, prefill included."""
        return self.num_output_tokens / self.wall_s


@dataclass(slots=True)
class Recorder:
    """Collects the tokens of each request, and where the time of the steps went.

    With plans in flight, planning and bookkeeping are what of them did not hide behind another step.
    """

    outputs: Outputs = field(default_factory=dict)
    parts_ns: dict[str, float] = field(default_factory=dict)
    num_steps: int = 0
    committed_ns: int = 0

    def arrived(self, spec: RequestSpec, now_ns: int) -> None:
        """Make room for its tokens."""
        self.outputs[spec.request_id] = []

    def refused(self, spec: RequestSpec, reason: str, now_ns: int) -> None:
        """A benchmark that leaves requests out is none."""
        raise UserError(reason)

    def stepped(
        self, plan: StepPlan, result: StepResult, start_ns: int, end_ns: int, events: Sequence[Event]
    ) -> None:
        """Take the sampled tokens."""
        self.num_steps += 1
        self.committed_ns = end_ns
        for (request_id, _), token_id in (result.token_ids or {}).items():
            self.outputs[request_id].append(token_id)
        self._add({**result.parts_ns, "planning": end_ns - start_ns - result.duration_ns})

    def closed(self, now_ns: int) -> None:
        """Commit and observers are done."""
        self._add({"bookkeeping": now_ns - self.committed_ns})

    def _add(self, parts_ns: Mapping[str, float]) -> None:
        for name, part_ns in parts_ns.items():
            self.parts_ns[name] = self.parts_ns.get(name, 0.0) + part_ns


def mixed64(num_requests: int = 64) -> list[RequestSpec]:
    """The fixed workload, or its first requests: prompts of 32 to 512 tokens, 16 to 256 tokens to generate.

    64 requests have 18,178 prompt and 8,837 output tokens. Engines are compared on these very tokens, so the
    draws must not change: `random.Random` gives the same ones in every version of Python.
    """
    rng = random.Random(20260)
    specs = []
    for i in range(num_requests):
        num_prompt_tokens, length = rng.randint(32, 512), rng.randint(16, 256)
        prompt = tuple(rng.randrange(3, LLAMA_100M["vocab_size"]) for _ in range(num_prompt_tokens))
        specs.append(RequestSpec(str(i), 0, num_prompt_tokens, length, length, prompt_token_ids=prompt))
    return specs


def read_workload(path: Path) -> list[RequestSpec]:
    """The requests of a workload file.

    Raises:
        UserError: there is no such file, it is no such workload, or a request lacks a field; file and request
            are named.
    """
    specs = []
    for i, request in enumerate(_requests(path)):
        try:
            prompt, length = tuple(request["prompt_token_ids"]), request["max_new_tokens"]
            specs.append(
                RequestSpec(str(request["id"]), 0, len(prompt), length, length, prompt_token_ids=prompt)
            )
        except KeyError as missing:
            raise UserError(f"{path}: request {i} has no {missing}") from None
    return specs


def _requests(path: Path) -> list[dict[str, Any]]:
    """The rows of a workload file."""
    try:
        workload = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--workload {path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"--workload {path}: not JSON: {error}") from None
    requests = workload.get("requests") if isinstance(workload, dict) else None
    if not isinstance(requests, list) or not all(isinstance(request, dict) for request in requests):
        raise UserError(f'--workload {path}: not an object with a list "requests" of objects')
    return requests


def measure(name: str, specs: Sequence[RequestSpec], run: Callable[[], Outputs]) -> Measurement:
    """Wall and CPU seconds of a run."""
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    outputs = run()
    wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
    num_output_tokens = sum(map(len, outputs.values()))
    expected = sum(spec.max_tokens for spec in specs)
    if num_output_tokens != expected:
        raise RuntimeError(f"{name} gave {num_output_tokens} tokens instead of {expected}")
    return Measurement(name, len(specs), num_output_tokens, wall_s, cpu_s, outputs)


class Engine:
    """An engine of ours for one workload, with a pool that has room for all requests."""

    def __init__(self, specs: Sequence[RequestSpec], dtype: str) -> None:
        model = load_dummy("LlamaConfig", LLAMA_100M, dtype=dtype)
        num_blocks = sum(-(-spec.length_limit(LIMITS.max_model_len) // BLOCK_SIZE) for spec in specs)
        self._specs = specs
        self._name = f"this engine, {model.packing.compute_dtype or dtype} products"
        self._backend = TorchBackend(model, LIMITS, block_size=BLOCK_SIZE, num_blocks=num_blocks)
        self._serve([RequestSpec("warm-up", 0, 64, 4)], 1)

    def _serve(self, specs: Sequence[RequestSpec], in_flight: int) -> Recorder:
        policies = Policies(Fcfs(), FullPrompt(), DecodeFirst(), LastAdmitted(), Recompute(), OnDemand())
        recorder = Recorder()
        serving = Serving(Scheduler(self._backend.capacity, LIMITS, policies), self._backend, [recorder])
        drive(serving, Listed(specs), VirtualClock(), in_flight)
        return recorder

    def measure(self, in_flight: int) -> Measurement:
        """Serve the workload with so many plans out at once."""
        recorders: list[Recorder] = []

        def timed() -> Outputs:
            recorders.append(self._serve(self._specs, in_flight))
            return recorders[0].outputs

        name = self._name if in_flight == 1 else f"{self._name}, {in_flight} in flight"
        measured = measure(name, self._specs, timed)
        return measured._replace(parts_ns=recorders[0].parts_ns, num_steps=recorders[0].num_steps)


def measure_by_turns(engine: Engine, in_flight: Sequence[int], num_repeats: int) -> list[Measurement]:
    """For each number of plans in flight the measurement whose wall time is the (lower) median.

    A shared machine is faster at one moment and slower at the next: each repeat measures with every number.

    Raises:
        RuntimeError: two of the runs gave different tokens.
    """
    repeats = [[engine.measure(number) for number in in_flight] for _ in range(num_repeats)]
    first = repeats[0][0]
    for other in (measured for repeat in repeats for measured in repeat):
        if other.outputs != first.outputs:
            raise RuntimeError(f"{other.name} gave other tokens than {first.name}")
    return [
        sorted(column, key=lambda measured: measured.wall_s)[(num_repeats - 1) // 2]
        for column in zip(*repeats, strict=True)
    ]


def measure_peer(specs: Sequence[RequestSpec], dtype: str) -> Measurement:
    """Transformers' continuous batching, with the same token budget and a pool as roomy."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = transformers.LlamaConfig(**LLAMA_100M)
        model: Any = transformers.AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            config, dtype=DTYPES[dtype]
        )
    num_tokens = sum(spec.length_limit(LIMITS.max_model_len) for spec in specs)
    batching = transformers.ContinuousBatchingConfig(
        page_size=32,
        num_blocks=num_tokens // 32 + 2 * len(specs),
        max_batch_tokens=LIMITS.max_num_batched_tokens,
        max_requests_per_batch=LIMITS.max_num_seqs,
    )
    generation = transformers.GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=False, eos_token_id=-1, pad_token_id=0
    )
    with model.eval().continuous_batching_context_manager(
        generation_config=generation, continuous_batching_config=batching, block=True
    ) as manager:
        _generate(manager, [RequestSpec("warm-up", 0, 64, 4, prompt_token_ids=(7,) * 64)])
        return measure("transformers continuous batching", specs, lambda: _generate(manager, specs))


def _generate(manager: transformers.ContinuousBatchingManager, specs: Sequence[RequestSpec]) -> Outputs:
    for spec in specs:
        manager.add_request(
            list(spec.prompt_token_ids or ()), request_id=spec.request_id, max_new_tokens=spec.max_tokens
        )
    outputs: Outputs = {}
    while len(outputs) < len(specs):
        result = manager.get_result(timeout=1)
        if result is not None and result.is_finished():
            outputs[result.request_id] = list(result.generated_tokens)
        elif result is None and not manager.is_running():
            raise RuntimeError("transformers' continuous batching stopped before all requests were done")
    return outputs


def report(measurements: Sequence[Measurement], dtype: str, console: Console) -> None:
    """Print rates, what they are relative to the first, and where the time of this engine's steps went."""
    table = Table(
        title=f"{dtype}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
    )
    for column in (
        "engine",
        "requests",
        "output tokens",
        "wall s",
        "CPU s",
        "tokens/s",
        "model",
        "this engine is",
    ):
        table.add_column(column, justify="left" if column == "engine" else "right")
    ours = measurements[0].tokens_per_s
    for m in measurements:
        row = (
            m.num_requests,
            m.num_output_tokens,
            f"{m.wall_s:.1f}",
            f"{m.cpu_s:.1f}",
            f"{m.tokens_per_s:.1f}",
            "" if m.model_share is None else f"{m.model_share:.1%}",
        )
        table.add_row(m.name, *map(str, row), f"{ours / m.tokens_per_s:.2f}x")
    vllm = VLLM_TOKENS_PER_S.get(dtype)
    if vllm is not None:
        table.add_row(
            "vLLM, on a CPU with AVX-512", "64", "8837", "", "", f"{vllm:.0f}", "", f"{ours / vllm:.2f}x"
        )
    console.print(table)
    for m in (m for m in measurements if m.parts_ns):
        parts = ", ".join(f"{name} {ns / 1e9:.2f} s" for name, ns in m.parts_ns.items())
        console.print(f"{m.name}: {m.num_requests} requests, {m.num_steps} steps: {parts}")


@plain_errors
def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workload", type=Path, help="a JSON file; without it mixed64")
    parser.add_argument("--requests", type=int, default=64, help="serve only the first so many of mixed64")
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="float32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--in-flight", type=int, nargs="+", default=[1], help="plans out at once")
    parser.add_argument("--repeats", type=int, default=1, help="by turns; medians are shown")
    parser.add_argument(
        "--peer", action="store_true", help="measure transformers' continuous batching as well"
    )
    parser.add_argument(
        "--peer-requests", type=int, default=16, help="the peer serves only the first so many"
    )
    options = parser.parse_args(arguments)
    check_value("--in-flight", options.in_flight, tuple[Count, ...])
    check_value("--repeats", options.repeats, Count)
    torch.set_num_threads(options.threads)
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    console = Console()
    specs = mixed64(options.requests) if options.workload is None else read_workload(options.workload)
    measurements = measure_by_turns(Engine(specs, options.dtype), options.in_flight, options.repeats)
    if options.peer:
        few = specs[: options.peer_requests]
        if len(few) < len(specs):
            measurements.append(Engine(few, options.dtype).measure(options.in_flight[0]))
        measurements.append(measure_peer(few, options.dtype))
    report(measurements, options.dtype, console)


if __name__ == "__main__":
    main()
