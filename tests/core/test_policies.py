from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from engine.core.kv_cache import KVCache
from engine.core.policies.admission import FirstChunk, FullPrompt, Padded, Watermark
from engine.core.policies.batching import ArrivalFirstChunked, DecodeFirst, PrefillFirst, Static
from engine.core.policies.order import NS_PER_S, Fcfs, Priority
from engine.core.policies.reservation import OnDemand, WholePrompt
from engine.core.policies.restore import Cheapest, Recompute, Swap, SwapIfSeveral
from engine.core.policies.victim import LastAdmitted, LowestPriority
from engine.core.queues import Queue
from engine.core.request import Request
from engine.core.spec import Capacity, Limits, RequestSpec


def request(name: str = "a", arrival_ns: int = 0, num_prompt_tokens: int = 4, **rest: Any) -> Request:
    return Request(RequestSpec(name, arrival_ns, num_prompt_tokens, 8, **rest))


def computed(num_tokens: int) -> Request:
    """Entered with a prompt of 4 tokens, and has computed so many."""
    one = request()
    one.num_computed_tokens = num_tokens
    return one


@dataclass
class FakeState:
    """What a policy sees: a pool of 10 blocks of 4 tokens, some of them taken."""

    num_taken: int = 0
    is_busy: bool = False
    limits: Limits = field(default=Limits(8, 16, 64))
    running: list[Request] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.kv = KVCache(Capacity(10, 0, 4))
        self.kv.device.allocate(self.num_taken)

    @property
    def batch(self) -> list[Request]:
        return self.running


class Log:
    """Verbs that only take note; each of the counts is set by the test."""

    def __init__(
        self,
        num_swapped: int = 0,
        preempts: bool = False,
        admits: int = 0,
        running: Sequence[Request] = (),
    ) -> None:
        self.running = running
        self.num_swapped = num_swapped
        self.is_busy = bool(running)
        self.num_chunks = 0
        self.num_preemptions = 0
        self.verbs: list[str] = []
        self._preempts = preempts
        self._admits = admits

    def continue_running(self, **_: bool) -> None:
        self.verbs.append("continue")
        self.num_chunks += 1
        self.num_preemptions += self._preempts

    def resume_swapped(self, *, whole: bool = False) -> None:
        self.verbs.append("resume whole" if whole else "resume")

    def admit_waiting(self) -> None:
        self.verbs.append("admit")
        self.num_chunks += self._admits

    def put_prefills_first(self) -> None:
        self.verbs.append("lay out")


def test_fcfs_orders_by_arrival_and_ends_in_the_id() -> None:
    requests = [request("b", 5), request("c", 1), request("a", 5)]
    ordered = sorted(requests, key=lambda one: Fcfs().key(one, 9))
    assert [one.id for one in ordered] == ["c", "a", "b"]


def test_priority_goes_before_arrival() -> None:
    requests = [request("a", 1, priority=2), request("b", 9, priority=-1), request("c", 3, priority=2)]
    ordered = sorted(requests, key=lambda one: Priority().key(one, 9))
    assert [one.id for one in ordered] == ["b", "a", "c"]


def test_ageing_lets_the_old_overtake_the_important() -> None:
    order = Priority(ageing_per_s=0.5)
    old, new = request("old", 0, priority=1), request("new", 3 * NS_PER_S, priority=0)
    assert order.key(old, 4 * NS_PER_S) < order.key(new, 4 * NS_PER_S), "3 s x 0.5 are more than one level"
    soon = request("soon", NS_PER_S, priority=0)
    assert order.key(soon, 4 * NS_PER_S) < order.key(old, 4 * NS_PER_S)


def test_negative_ageing_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"Priority.ageing_per_s is -1: must be a number, at least 0"):
        Priority(ageing_per_s=-1)


def test_a_queue_is_sorted_only_if_the_order_says_so() -> None:
    first, second = request("a", 1), request("b", 2)
    plain, sorted_ = Queue("waiting", Fcfs()), Queue("running", Fcfs(sorts=("running",)))
    for queue in (plain, sorted_):
        queue.join(second)
        queue.join(first)
        queue.arrange(5)
    assert [one.id for one in plain] == ["b", "a"]
    assert [one.id for one in sorted_] == ["a", "b"]
    plain.rejoin(third := request("c", 9))
    plain.arrange(9)
    assert plain[0] is third, "a victim is the first again"


def test_full_prompt_wants_all_tokens_and_first_chunk_only_some() -> None:
    one = request(num_prompt_tokens=16)
    assert FullPrompt().enter(one, 4, FakeState(num_taken=6))
    assert not FullPrompt().enter(one, 4, FakeState(num_taken=7))
    assert FirstChunk().enter(one, 4, FakeState(num_taken=9))
    assert not FirstChunk().enter(one, 5, FakeState(num_taken=9))


@pytest.mark.parametrize("admission", [FullPrompt(watermark=0.25), FirstChunk(watermark=0.25)])
def test_the_watermark_of_full_prompt_is_asked_only_while_others_run(admission: FullPrompt) -> None:
    one = request(num_prompt_tokens=4)
    assert admission.enter(one, 4, FakeState(num_taken=9))
    assert admission.enter(one, 4, FakeState(num_taken=7, is_busy=True))
    assert not admission.enter(one, 4, FakeState(num_taken=8, is_busy=True))


def test_padded_counts_the_whole_batch_at_the_length_of_its_longest() -> None:
    """The pool has 10 blocks of 4. Prompt 9 and 8 outputs: 17 tokens, of which 16 are computed."""
    long, short = request("long", num_prompt_tokens=9), request("short", num_prompt_tokens=1)
    pair = request("pair", num_prompt_tokens=5, n=2)
    assert Padded().enter(long, 9, FakeState())
    assert Padded().enter(long, 9, FakeState(running=[short])), "2 x 4 blocks"
    assert Padded().enter(short, 1, FakeState(running=[long]))
    assert not Padded().enter(short, 1, FakeState(running=[long, short])), "3 x 4 blocks"
    assert Padded().enter(short, 1, FakeState(running=[short] * 4)), "5 x 2 blocks"
    assert not Padded().enter(pair, 5, FakeState(running=[long])), "3 x 4 blocks"
    cut = FakeState(running=[long, short], limits=Limits(8, 16, 13))
    assert Padded().enter(short, 1, cut), "3 x 3 blocks: the window ends a sequence at 13 tokens"
    assert Padded().never(request(num_prompt_tokens=33), FakeState()) is None
    reason = str(Padded().never(request(num_prompt_tokens=34), FakeState()))
    assert (
        "34 tokens and max_tokens of 8 need 11 blocks of 4 for n = 1 sequences, and the pool has 10" in reason
    )


def test_watermark_keeps_a_share_free() -> None:
    admission = Watermark(fraction=0.25)
    one = request(num_prompt_tokens=8)
    assert admission.enter(one, 8, FakeState(num_taken=6))
    assert not admission.enter(one, 8, FakeState(num_taken=7))
    assert admission.never(request(num_prompt_tokens=32), FakeState()) is None
    assert "pool allows 8 of its 10" in str(admission.never(request(num_prompt_tokens=33), FakeState()))
    assert admission.resume(9, FakeState()), "alone it may come back above the watermark"
    assert not admission.resume(9, FakeState(is_busy=True))


def test_watermark_must_be_a_share() -> None:
    with pytest.raises(ValueError, match=r"Watermark.fraction is 1: must be a number, at least 0"):
        Watermark(fraction=1)


@pytest.mark.parametrize(
    ("batching", "log", "verbs"),
    [
        (Static(), Log(), ["admit", "continue", "resume"]),
        (Static(), Log(admits=1), ["admit"]),
        (Static(), Log(running=[computed(4)], admits=1), ["admit"]),
        (Static(), Log(running=[computed(4), computed(5)], admits=1), ["continue", "resume"]),
        (Static(), Log(running=[computed(5)], preempts=True), ["continue"]),
        (Static(), Log(num_swapped=1, admits=1), ["continue", "resume"]),
        (PrefillFirst(), Log(admits=1), ["admit"]),
        (PrefillFirst(), Log(), ["admit", "continue", "resume"]),
        (PrefillFirst(), Log(num_swapped=1, admits=1), ["continue", "resume"]),
        (PrefillFirst(), Log(preempts=True), ["admit", "continue"]),
        (ArrivalFirstChunked(), Log(), ["continue", "resume whole", "admit", "lay out"]),
        (ArrivalFirstChunked(), Log(preempts=True), ["continue", "admit", "lay out"]),
        (DecodeFirst(), Log(), ["continue", "resume", "admit"]),
        (DecodeFirst(), Log(num_swapped=1), ["continue", "resume"]),
        (DecodeFirst(), Log(preempts=True), ["continue"]),
    ],
)
def test_batching_programs(batching: Any, log: Log, verbs: list[str]) -> None:
    batching.fill(log)
    assert log.verbs == verbs


def test_victims() -> None:
    running = [
        request("a", 3, priority=5),
        request("b", 7, priority=5),
        request("c", 7, priority=5),
        request("d", 9, priority=1),
    ]
    assert LastAdmitted().choose(running).id == "d"
    assert LowestPriority().choose(running).id == "c"


def test_restore() -> None:
    one, several, state = request(), request(n=2), FakeState()
    assert [Swap().swaps(one, state), Recompute().swaps(one, state)] == [True, False]
    assert [SwapIfSeveral().swaps(one, state), SwapIfSeveral().swaps(several, state)] == [False, True]
    several.live = (1,)
    assert not SwapIfSeveral().swaps(several, state), "what counts is who is alive"


@dataclass(frozen=True)
class Costs:
    """10 ns a token, and a price for a block."""

    block_ns: int

    def recompute_ns(self, num_tokens: int) -> int:
        return 10 * num_tokens

    def transfer_ns(self, num_blocks: int) -> int:
        return self.block_ns * num_blocks


def test_cheapest_weighs_both_ways_of_a_transfer_against_recomputation() -> None:
    """12 computed tokens in 3 blocks: 120 ns to compute again, 2 x 3 blocks to move out and in."""
    state = FakeState()
    victim = request(num_prompt_tokens=12)
    state.kv.prepare(victim, 12)
    victim.num_computed_tokens = 12
    assert Cheapest(Costs(block_ns=19)).swaps(victim, state)
    assert not Cheapest(Costs(block_ns=20)).swaps(victim, state), "a tie saves the link"


def test_reservation() -> None:
    state = FakeState()
    one, several = request(num_prompt_tokens=12), request(num_prompt_tokens=12, n=2)
    one.num_tokens = several.num_tokens = 15  # recomputed after three tokens
    assert OnDemand().num_tokens(one, 5, state) == 5
    assert WholePrompt().num_tokens(one, 5, state) == 15
    assert WholePrompt().num_tokens(several, 5, state) == 12, "the sequences part after the prompt"
    several.num_computed_tokens = 12
    assert WholePrompt().num_tokens(several, 13, state) == 15


@pytest.mark.parametrize("name", ["max_num_seqs", "max_num_batched_tokens", "max_model_len"])
def test_limits_must_be_positive(name: str) -> None:
    values = {"max_num_seqs": 1, "max_num_batched_tokens": 1, "max_model_len": 1, name: 0}
    with pytest.raises(ValueError, match=rf"Limits.{name} is 0: must be a whole number, at least 1"):
        Limits(**values)


def test_a_step_must_have_a_token_for_each_sequence() -> None:
    with pytest.raises(ValueError, match="a step could not give every sequence one token"):
        Limits(max_num_seqs=9, max_num_batched_tokens=8, max_model_len=8)
