"""Run the core for as long as wanted on random input, with every law checked: `python -m experiments.soak`.

Each episode takes the next combination of policies, a pool and limits so small that everything is short,
random arrivals, aborts and ends, and serves to the end.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Callable, Iterator
from random import Random

from rich.progress import Progress

from engine.core.events import ENDINGS
from engine.core.laws import LawBroken, LawfulScheduler
from engine.core.plan import FinishReason, PreemptionKind
from engine.core.policies.base import Policies
from engine.core.scheduler import Scheduler
from engine.core.spec import Capacity, Limits, RequestSpec
from experiments.trial import Trial, every_combination

MakeScheduler = Callable[[Capacity, Limits, Policies], Scheduler]
STEPS_PER_EPISODE = 150
NAMES = [f"r{number}" for number in range(100)]
"""Ids, used again as soon as the end of the last bearer has been told."""
STOPS = {FinishReason.STOP: 9, FinishReason.NOT_FINITE: 1}
IN_FLIGHT = (1, 1, 2, 2, 3)
"""How many plans an episode may have out at once."""
NS_PER_S = 1_000_000_000


def random_setting(rng: Random, policies: Policies) -> tuple[Capacity, Limits]:
    """A small pool and tight limits: the budget far below the window, where the batching allows that."""
    block_size = rng.randint(1, 4)
    capacity = Capacity(rng.randint(1, 12), rng.randint(0, 8), block_size)
    max_num_seqs = rng.randint(1, 6)
    max_num_batched_tokens = max(max_num_seqs, rng.randint(1, 16))
    max_model_len = rng.randint(4, capacity.num_blocks * block_size + 8)
    if not policies.batching.splits_prompts:
        max_num_batched_tokens = max(max_num_batched_tokens, max_model_len - rng.randint(0, 1))
    return capacity, Limits(max_num_seqs, max_num_batched_tokens, max_model_len)


def random_spec(rng: Random, request_id: str, now_ns: int, scheduler: Scheduler) -> RequestSpec:
    """A request; its prompt may fill blocks exactly, or be longer than the pool or the window."""
    block_size, window = scheduler.state.kv.block_size, scheduler.limits.max_model_len
    half = max(1, window // 2)
    return RequestSpec(
        request_id=request_id,
        arrival_ns=max(0, now_ns - rng.choice((0, 0, 1, NS_PER_S))),
        num_prompt_tokens=rng.choices(
            (1, block_size, min(2 * block_size, half), rng.randint(1, half), rng.randint(1, window + 2)),
            weights=(1, 2, 2, 6, 1),
        )[0],
        max_tokens=rng.randint(1, 3 + half),
        n=rng.choices((1, min(2, scheduler.limits.max_num_seqs), 3), weights=(4, 2, 1))[0],
        priority=rng.randint(-1, 2),
    )


def episode(trial: Trial, rng: Random, num_steps: int) -> None:
    """`num_steps` steps of random arrivals, aborts and ends, then to the end. Raises LawBroken."""
    load = rng.choice((1, 3, 6))
    for _ in range(num_steps):
        while len(trial.outstanding) < load and rng.random() < 0.8:
            request_id = next(name for name in NAMES if name not in trial.backend.requests)
            trial.arrive(random_spec(rng, request_id, trial.now_ns, trial.scheduler))
        if rng.random() < 0.02:
            _abort_one(trial, rng)
        plan = trial.begin()
        trial.now_ns += rng.choice((0, 0, 1, NS_PER_S))
        if plan is None and not trial.flights:
            continue
        for chunk in () if plan is None else plan.chunks:
            for seq in chunk.samples:
                if rng.random() < 0.1:
                    reason = rng.choices(tuple(STOPS), weights=tuple(STOPS.values()))[0]
                    trial.backend.stop(chunk.request_id, seq, reason)
        if rng.random() < 0.02:
            _abort_one(trial, rng)
        if plan is None or len(trial.flights) == trial.in_flight:
            trial.end()
    trial.drain()


def _abort_one(trial: Trial, rng: Random) -> None:
    if trial.outstanding:
        request_id = rng.choice(trial.outstanding)
        trial.abort(request_id)
        trial.check_refuses_again(random_spec(rng, request_id, trial.now_ns, trial.scheduler))


def soak(seed: int, num_steps: int, make: MakeScheduler = LawfulScheduler) -> Iterator[Counter[str]]:
    """Episodes until `num_steps` steps are done, combinations of policies in turn; yields the counts of each.

    Raises:
        LawBroken: with the number of the episode and its setting, from which it can be run again.
    """
    combinations = every_combination()
    Random(f"{seed}/combinations").shuffle(combinations)
    index = num_done = 0
    while num_done < num_steps:
        counts = run_episode(seed, index, combinations[index % len(combinations)], make)
        num_done += counts["steps"]
        index += 1
        yield counts


def run_episode(seed: int, index: int, policies: Policies, make: MakeScheduler) -> Counter[str]:
    """One episode, from a random stream of its own."""
    rng = Random(f"{seed}/episode/{index}")
    capacity, limits = random_setting(rng, policies)
    trial = Trial(make(capacity, limits, policies), in_flight=rng.choice(IN_FLIGHT))
    try:
        episode(trial, rng, STEPS_PER_EPISODE)
    except LawBroken as broken:
        broken.add_note(f"episode {index} of seed {seed}, step {trial.tally['steps']}")
        broken.add_note(f"{capacity}, {limits}, {policies}, {trial.in_flight} plans in flight")
        raise
    return trial.report()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200_000, help="steps in all, at least")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    start_s = time.process_time()
    total: Counter[str] = Counter()
    with Progress(transient=True) as progress:
        task = progress.add_task("steps", total=arguments.steps)
        for counts in soak(arguments.seed, arguments.steps):
            total += counts
            progress.update(task, advance=counts["steps"])
    print(summary(total, time.process_time() - start_s))


def summary(total: Counter[str], cpu_s: float) -> str:
    """One line: what happened, and that all laws held."""
    names = (
        "steps", "tokens", "requests", *ENDINGS, *PreemptionKind, "fallbacks", "refusals", "forks",
        "blocks copy", "blocks swap_out", "blocks swap_in",
    )  # fmt: skip
    counts = ", ".join(f"{name} {total[name]:,}" for name in names)
    return f"all laws held: {counts}; {cpu_s:.0f} s CPU, {total['steps'] / max(cpu_s, 1e-9):,.0f} steps/s"


if __name__ == "__main__":
    main()
