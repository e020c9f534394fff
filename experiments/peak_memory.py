"""Drive an engine to its limits and hold its memory against the profile: `python -m experiments.peak_memory`.

The engine measures its largest step at start-up and gives the pool what that leaves. Here it executes steps
as large as the limits allow, of every shape: prompts from the start, prompts behind a context, decodes, all
of them with sampling that sorts the vocabulary, over blocks that may hold NaN. The peak over all of them,
above what the process held before the first, must stay within the profile, but for a slack: what the C
library keeps of freed memory differs by some MiB from run to run.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterator
from functools import partial
from random import Random

from rich import box
from rich.table import Table

from engine.core.plan import Batch, Chunk, PoolState, StepPlan, TableUpdate
from engine.core.spec import Limits, RequestSpec, Sampling
from engine.runtime.backend import TorchBackend
from engine.runtime.memory import peak_bytes
from engine.runtime.model import load_dummy
from experiments.output import stdout_console

Step = list[tuple[int, int]]
"""(start, number of tokens) of each sequence."""
SORTING = Sampling(temperature=1.0, top_k=50, top_p=0.9)


def _fill(limits: Limits, draw: Callable[[int], tuple[int, int]]) -> Step:
    """Sequences as they are drawn for the tokens that are left, until seats or tokens are out."""
    step: Step = []
    num_left = limits.max_num_batched_tokens
    while num_left and len(step) < limits.max_num_seqs:
        step.append(draw(num_left))
        num_left -= step[-1][1]
    return step


def extreme_steps(limits: Limits, num_random: int, rng: Random) -> Iterator[tuple[str, Step]]:
    """Steps at the limits, with names. The longest sequence that is computed has a token less than the
    window.
    """
    window, num_seqs = limits.max_model_len - 1, limits.max_num_seqs

    def from_head(head: int, num_left: int) -> tuple[int, int]:
        return head, min(window - head, num_left)

    def to_the_end(num_left: int) -> tuple[int, int]:
        return window - min(window, num_left), min(window, num_left)

    def anything(num_left: int) -> tuple[int, int]:
        num_tokens = min(window, rng.choice((1, num_left, rng.randint(1, num_left))))
        return rng.choice((0, window - num_tokens, rng.randint(0, window - num_tokens))), num_tokens

    for head in (0, 1, 16, window // 2):
        yield f"prompts from {head}", _fill(limits, partial(from_head, head))
    yield "prompts to the end", _fill(limits, to_the_end)
    yield "decodes", [(window - 1, 1)] * num_seqs
    yield "ragged decodes", [(max(0, window - 1 - 7 * i), 1) for i in range(num_seqs)]
    share = min(window, limits.max_num_batched_tokens // num_seqs)
    yield "equal chunks", [(window - share, share)] * num_seqs
    for number in range(num_random):
        yield f"random {number}", _fill(limits, anything)


def execute(backend: TorchBackend, step: Step, rng: Random) -> None:
    """Run a step of new requests on whatever blocks, and forget them."""
    num_blocks = backend.layout.num_blocks(backend.limits.max_model_len)
    chunks, updates = [], []
    for number, (start, num_tokens) in enumerate(step):
        name = f"r{number}"
        backend.add(RequestSpec(name, 0, start + num_tokens, 1, sampling=SORTING))
        chunks.append(Chunk(name, start, num_tokens, (0,), (0,)))
        blocks = [rng.randrange(backend.capacity.num_blocks) for _ in range(num_blocks)]
        updates.append(TableUpdate(name, 0, 0, tuple(blocks)))
    num_tokens = sum(chunk.num_tokens for chunk in chunks)
    nothing = PoolState(0, 0, 0, 0, 0, 0)
    plan = StepPlan(0, Batch.of(chunks), tuple(updates), (), (), (), (), (), num_tokens, nothing)
    backend.collect(backend.submit(plan))
    for chunk in chunks:
        backend.drop(chunk.request_id)


def drive(backend: TorchBackend, num_random: int, seed: int) -> dict[str, int]:
    """The peak of each step, and of all one after another, with clean blocks and with NaN, in bytes."""
    rng = Random(seed)
    named = list(extreme_steps(backend.limits, num_random, rng))
    peaks = {
        name: peak_bytes(partial(execute, backend, step, rng), backend.model.device) for name, step in named
    }

    def all_of_them() -> None:
        for value in (0.0, math.nan):
            backend.pools.device.fill_(value)
            for _, step in named:
                execute(backend, step, rng)

    return peaks | {"all, one after another": peak_bytes(all_of_them, backend.model.device)}


def main() -> None:
    """Command line; exits with 1 if a step takes more than the profile."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("seqs", 2), ("tokens", 8192), ("window", 4096), ("random", 8), ("vocab", 32000)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--architecture", default="LlamaConfig")
    parser.add_argument("--budget-mib", type=int, default=2048)
    parser.add_argument("--slack-mib", type=int, default=8, help="beyond the profile that is put up with")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    config = {
        "vocab_size": arguments.vocab, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": arguments.window,
    }  # fmt: skip
    limits = Limits(arguments.seqs, arguments.tokens, arguments.window)
    model = load_dummy(arguments.architecture, config)
    backend = TorchBackend(
        model, limits, memory_bytes=arguments.budget_mib << 20, num_host_blocks=0, num_threads=1
    )
    assert backend.profile is not None
    profiled = backend.profile.step_bytes
    table = Table(title=f"{limits}, {arguments.architecture}", box=box.SIMPLE_HEAD, title_justify="left")
    for column in ("step", "peak, MiB", "of the profile, %"):
        table.add_column(column, justify="left" if column == "step" else "right")
    peaks = drive(backend, arguments.random, arguments.seed)
    for name, peak in {"profiled at start-up": profiled, **peaks}.items():
        table.add_row(name, f"{peak / 2**20:,.1f}", f"{100 * peak / profiled:.1f}")
    stdout_console().print(table)
    excess = max(peaks.values()) - profiled
    print(f"the largest peak is {excess / 2**20:+,.1f} MiB off the profile")
    sys.exit(excess > arguments.slack_mib << 20)


if __name__ == "__main__":
    main()
