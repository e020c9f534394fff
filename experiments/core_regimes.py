"""The regimes in which the core is timed: a scheduler that is kept in one of them, step after step.

Nothing executes anything: a regime decides itself which sequences end, and when. It uses no more of a
scheduler than `add`, `schedule` and `commit`, so that two versions of the core can be compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count, cycle, islice

from engine.core.plan import Finish, FinishReason, StepResult
from engine.core.policies.admission import FullPrompt
from engine.core.policies.base import Policies
from engine.core.policies.batching import DecodeFirst
from engine.core.policies.order import Fcfs, Order
from engine.core.policies.reservation import OnDemand
from engine.core.policies.restore import Recompute
from engine.core.policies.victim import LastAdmitted
from engine.core.request import Request
from engine.core.scheduler import Scheduler
from engine.core.spec import Capacity, Limits, RequestSpec

BLOCK_SIZE = 16
NUM_PROMPT_TOKENS = 64
CHUNK_TOKENS = 512
CHUNKS_PER_PROMPT = 16
STEPS_PER_END = 8
"""In a tight pool: an end, and an arrival, in every eighth step."""
NS_PER_MS = 1_000_000

RunStep = Callable[[], None]
Regime = Callable[[int, int], RunStep]
"""Takes the number of running requests and of the steps that will be run at most."""


def policies(order: Order | None = None) -> Policies:
    """Decodes first, prompts in chunks, recomputation."""
    return Policies(order or Fcfs(), FullPrompt(), DecodeFirst(), LastAdmitted(), Recompute(), OnDemand())


def decode(num_running: int, num_steps: int, order: Order | None = None) -> RunStep:
    """Every running request decodes, each at its own position in its block; there are blocks for all."""
    scheduler = _decoding(num_running, num_steps, order)
    return lambda: step(scheduler)


def prefill_chunk(num_running: int, num_steps: int) -> RunStep:
    """The same, but one of them has 512 tokens of a long prompt computed in each step.

    With the last chunk of its prompt it ends, and the next one takes its place.
    """
    num_prompt_tokens = CHUNK_TOKENS * CHUNKS_PER_PROMPT
    scheduler = _decoding(num_running - 1, num_steps, num_tokens_beside=num_prompt_tokens)
    numbers = count()

    def next_step() -> None:
        prompt, chunk = divmod(next(numbers), CHUNKS_PER_PROMPT)
        request_id = f"p{prompt:06d}"
        if chunk == 0:
            scheduler.add(Request(RequestSpec(request_id, 0, num_prompt_tokens, 1)), 0)
        step(scheduler, (request_id,) if chunk == CHUNKS_PER_PROMPT - 1 else ())

    return next_step


def tight_pool(num_running: int, num_steps: int) -> RunStep:
    """All decode, and from a quarter to three quarters as many blocks as there are sequences are free.

    Ages are spread evenly: in every eighth step the oldest ends, and another comes in its place. In the steps
    between them the others take half as many blocks as there are sequences, which is what an end gives back.
    The first ones begin with prompts as long as their ages.
    """
    lifetime = STEPS_PER_END * num_running
    ages = [STEPS_PER_END * (num_running - 1 - index) for index in range(num_running)]
    lengths = [_prompt_tokens(index) + age for index, age in enumerate(ages)]
    num_held = sum(-(-length // BLOCK_SIZE) for length in lengths)
    num_blocks = num_held + STEPS_PER_END * num_running // BLOCK_SIZE + num_running // 4
    max_model_len = NUM_PROMPT_TOKENS + BLOCK_SIZE + lifetime + 1
    limits = Limits(num_running, max(sum(lengths), max_model_len), max_model_len)
    scheduler = Scheduler(Capacity(num_blocks, 0, BLOCK_SIZE), limits, policies())
    for index, (length, age) in enumerate(zip(lengths, ages, strict=True)):
        scheduler.add(Request(RequestSpec(f"t{index:06d}", 0, length, lifetime - age)), 0)
    numbers = count(1)

    def next_step() -> None:
        index, steps_since_end = divmod(next(numbers), STEPS_PER_END)
        if steps_since_end:
            step(scheduler)
            return
        step(scheduler, (f"t{index - 1:06d}",))
        newcomer = num_running + index - 1
        spec = RequestSpec(f"t{newcomer:06d}", 0, _prompt_tokens(newcomer), lifetime)
        scheduler.add(Request(spec), 0)

    next_step()  # all prompts
    return next_step


def arrivals_waiting(num_running: int, num_steps: int) -> RunStep:
    """All decode with 1,000 waiting behind them, of whom none finds a seat; one more joins in each step."""
    return queueing(num_running, num_steps, num_waiting=1000)


def queueing(num_running: int, num_steps: int, *, num_waiting: int, order: Order | None = None) -> RunStep:
    """A step of decodes with a queue behind them, before which one more request joins it."""
    scheduler = _decoding(num_running, num_steps, order)
    arrivals = _arrivals()
    for request in islice(arrivals, num_waiting):
        scheduler.add(request, 0)

    def join_and_step() -> None:
        scheduler.add(next(arrivals), 0)
        step(scheduler)

    return join_and_step


REGIMES: dict[str, Regime] = {
    "decode": decode,
    "prefill chunk": prefill_chunk,
    "tight pool": tight_pool,
    "arrivals waiting": arrivals_waiting,
}


def step(scheduler: Scheduler, ends: tuple[str, ...] = ()) -> None:
    """One step that takes no time, with which these requests end."""
    plan = scheduler.schedule(0)
    if plan is None:
        raise RuntimeError("nothing to do: the benchmark's requests ended early")
    finished = tuple(Finish(request_id, 0, FinishReason.LENGTH) for request_id in ends)
    scheduler.commit(plan, StepResult(0, finished), 0)


def _decoding(
    num_requests: int, num_steps: int, order: Order | None = None, *, num_tokens_beside: int = 0
) -> Scheduler:
    """A scheduler whose requests have all had their prompts computed.

    It has blocks for `num_steps` more, and to the end a free one for each request. With `num_tokens_beside`
    there are also a seat, a chunk of the budget and blocks for one request of that length.
    """
    budget = num_requests + CHUNK_TOKENS if num_tokens_beside else 8192
    lengths = [_prompt_tokens(index) for index in range(num_requests)]
    num_first_steps = -(-sum(lengths) // (budget - num_requests))
    longest = max(lengths) + num_first_steps + num_steps
    num_blocks = num_requests * (-(-longest // BLOCK_SIZE) + 1) + -(-num_tokens_beside // BLOCK_SIZE)
    max_model_len = max(longest, num_tokens_beside) + 1
    limits = Limits(num_requests + bool(num_tokens_beside), budget, max_model_len)
    scheduler = Scheduler(Capacity(num_blocks, 0, BLOCK_SIZE), limits, policies(order))
    for index, length in enumerate(lengths):
        scheduler.add(Request(RequestSpec(f"r{index:06d}", 0, length, longest)), 0)
    for _ in range(num_first_steps):
        step(scheduler)
    return scheduler


def _prompt_tokens(index: int) -> int:
    """Of the request with this index; so that no two of any 16 in a row are at the same place in a block."""
    return NUM_PROMPT_TOKENS + index % BLOCK_SIZE


def _arrivals() -> Iterator[Request]:
    priorities = cycle((2, 0, 1))
    for index in count():
        priority = next(priorities)
        yield Request(RequestSpec(f"w{index:06d}", index * NS_PER_MS, 64, 64, priority=priority))
