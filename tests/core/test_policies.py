from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from engine.core.policies.admission import FirstChunk, FullPrompt, Padded, Watermark
from engine.core.policies.batching import ArrivalFirstChunked, DecodeFirst, PrefillFirst, Static
from engine.core.policies.order import NS_PER_S, Fcfs, Priority
from engine.core.policies.reservation import OnDemand, WholePrompt
from engine.core.policies.restore import Cheapest, Recompute, Swap, SwapIfSeveral
from engine.core.policies.victim import LastAdmitted, LowestPriority, Need
from engine.core.queues import Queue
from engine.core.request import Request
from engine.core.spec import Capacity, Limits, RequestSpec
from engine.core.state import State
from engine.core.view import View


def request(name: str = "a", arrival_ns: int = 0, num_prompt_tokens: int = 4, **rest: Any) -> Request:
    return Request(RequestSpec(name, arrival_ns, num_prompt_tokens, 8, **rest))


def computed(num_tokens: int) -> Request:
    """Entered with a prompt of 4 tokens, and has computed so many."""
    one = request()
    one.num_computed_tokens = num_tokens
    return one


LIMITS = Limits(8, 16, 64)


def view(
    num_taken: int = 0,
    running: Sequence[Request] = (),
    waiting: Sequence[Request] = (),
    swapped: Sequence[Request] = (),
    limits: Limits = LIMITS,
) -> View:
    """What a policy sees: a pool of 10 blocks of 4 tokens, some of them taken, and some requests."""
    state = State(Capacity(10, 10, 4), limits, lambda name, state: Queue())
    state.kv.device.take(num_taken)
    for queue, requests in ((state.running, running), (state.waiting, waiting), (state.swapped, swapped)):
        for one in requests:
            queue.join(one)
    return View(state)


NOW = view()


class Log:
    """Verbs that only take note: one request runs, one is swapped and one waits, unless told otherwise."""

    def __init__(
        self,
        running: Sequence[Request] = (),
        swapped: Sequence[Request] = (),
        *,
        admits: bool = True,
        is_its_own_victim: bool = False,
    ) -> None:
        self.view = view(running=running, waiting=[request("w")], swapped=swapped)
        self.batch: list[Request] = []
        self.is_all_decode = False
        self.num_preemptions = 0
        self.admitted: list[Request] = []
        self.resumed: list[Request] = []
        self.verbs: list[str] = []
        self._admits = admits
        self._is_its_own_victim = is_its_own_victim

    def running(self) -> Sequence[Request]:
        self.verbs.append("running")
        return self.view.running

    def swapped(self) -> Sequence[Request]:
        self.verbs.append("swapped")
        return self.view.swapped

    def waiting(self) -> Sequence[Request]:
        self.verbs.append("waiting")
        return self.view.waiting

    def clip(self, request: Request) -> int:
        return min(request.num_behind, 3)

    def keeps(self, victim: Request) -> bool:
        return False

    def advance(self, request: Request, *, headroom_per_seq: int | None = None) -> bool:
        self.verbs.append(f"advance {request.id}" + (" alone" if headroom_per_seq == 0 else ""))
        if self._is_its_own_victim and headroom_per_seq is None:
            return False
        self.batch.append(request)
        return True

    def resume(self, request: Request, num_tokens: int) -> bool:
        self.verbs.append(f"resume {request.id} {num_tokens}")
        return False

    def admit(self, request: Request, num_tokens: int) -> bool:
        self.verbs.append(f"admit {request.id} {num_tokens}")
        if self._admits:
            self.batch.append(request)
        return self._admits

    def preempt(self, victim: Request) -> None:
        self.verbs.append(f"preempt {victim.id}")
        self.num_preemptions += 1

    def lay_out(self, *_: object) -> None:
        self.verbs.append("lay out")


def test_fcfs_orders_by_arrival_and_ends_in_the_id() -> None:
    requests = [request("b", 5), request("c", 1), request("a", 5)]
    ordered = sorted(requests, key=lambda one: Fcfs().key(one, NOW))
    assert [one.id for one in ordered] == ["c", "a", "b"]


def test_priority_goes_before_arrival() -> None:
    requests = [request("a", 1, priority=2), request("b", 9, priority=-1), request("c", 3, priority=2)]
    ordered = sorted(requests, key=lambda one: Priority().key(one, NOW))
    assert [one.id for one in ordered] == ["b", "a", "c"]


def test_ageing_lets_the_old_overtake_the_important() -> None:
    order = Priority(ageing_per_s=0.5)
    old, new = request("old", 0, priority=1), request("new", 3 * NS_PER_S, priority=0)
    assert order.key(old, NOW) < order.key(new, NOW), "3 s x 0.5 are more than one level"
    soon = request("soon", NS_PER_S, priority=0)
    assert order.key(soon, NOW) < order.key(old, NOW)


def test_negative_ageing_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"Priority.ageing_per_s is -1: must be a number, at least 0"):
        Priority(ageing_per_s=-1)


def test_full_prompt_wants_all_tokens_and_first_chunk_only_some() -> None:
    one = request(num_prompt_tokens=16)
    assert FullPrompt().enter(one, 4, view(num_taken=6))
    assert not FullPrompt().enter(one, 4, view(num_taken=7))
    assert FirstChunk().enter(one, 4, view(num_taken=9))
    assert not FirstChunk().enter(one, 5, view(num_taken=9))


@pytest.mark.parametrize("admission", [FullPrompt(watermark=0.25), FirstChunk(watermark=0.25)])
def test_the_watermark_of_full_prompt_is_asked_only_while_others_run(admission: FullPrompt) -> None:
    one = request(num_prompt_tokens=4)
    assert admission.enter(one, 4, view(num_taken=9))
    assert admission.enter(one, 4, view(num_taken=7, running=[one]))
    assert not admission.enter(one, 4, view(num_taken=8, running=[one]))


def test_padded_counts_the_whole_batch_at_the_length_of_its_longest() -> None:
    """The pool has 10 blocks of 4. Prompt 9 and 8 outputs: 17 tokens, of which 16 are computed."""
    long, short = request("long", num_prompt_tokens=9), request("short", num_prompt_tokens=1)
    pair = request("pair", num_prompt_tokens=5, n=2)
    assert Padded().enter(long, 9, view())
    assert Padded().enter(long, 9, view(running=[short])), "2 x 4 blocks"
    assert Padded().enter(short, 1, view(running=[long]))
    assert not Padded().enter(short, 1, view(running=[long, short])), "3 x 4 blocks"
    assert Padded().enter(short, 1, view(running=[short] * 4)), "5 x 2 blocks"
    assert not Padded().enter(pair, 5, view(running=[long])), "3 x 4 blocks"
    cut = view(running=[long, short], limits=Limits(8, 16, 13))
    assert Padded().enter(short, 1, cut), "3 x 3 blocks: the window ends a sequence at 13 tokens"
    assert Padded().never(request(num_prompt_tokens=33), view()) is None
    reason = str(Padded().never(request(num_prompt_tokens=34), view()))
    assert (
        "34 tokens and max_tokens of 8 need 11 blocks of 4 for n = 1 sequences, and the pool has 10" in reason
    )


def test_watermark_keeps_a_share_free() -> None:
    admission = Watermark(fraction=0.25)
    one = request(num_prompt_tokens=8)
    assert admission.enter(one, 8, view(num_taken=6))
    assert not admission.enter(one, 8, view(num_taken=7))
    assert admission.never(request(num_prompt_tokens=32), view()) is None
    assert "pool allows 8 of its 10" in str(admission.never(request(num_prompt_tokens=33), view()))
    assert admission.resume(one, 9, view()), "alone it may come back above the watermark"
    assert not admission.resume(one, 9, view(running=[one]))


def test_watermark_must_be_a_share() -> None:
    with pytest.raises(ValueError, match=r"Watermark.fraction is 1: must be a number, at least 0"):
        Watermark(fraction=1)


IN_PROMPT, DONE = computed(3), computed(5)
ON_HOST = request("s", num_prompt_tokens=8)


@pytest.mark.parametrize(
    ("batching", "log", "verbs"),
    [
        (Static(), Log(admits=False), ["waiting", "admit w 4", "running", "swapped"]),
        (Static(), Log(), ["waiting", "admit w 4"]),
        (Static(), Log([computed(4)]), ["waiting", "admit w 4"]),
        (Static(), Log([computed(4), DONE]), ["running", "advance a", "advance a", "swapped"]),
        (Static(), Log([DONE], is_its_own_victim=True), ["running", "advance a", "preempt a"]),
        (Static(), Log(swapped=[ON_HOST]), ["running", "swapped", "resume s 3"]),
        (PrefillFirst(), Log([DONE]), ["waiting", "admit w 4"]),
        (
            PrefillFirst(),
            Log([DONE], admits=False),
            ["waiting", "admit w 4", "running", "advance a", "swapped"],
        ),
        (PrefillFirst(), Log(swapped=[ON_HOST]), ["running", "swapped", "resume s 3"]),
        (
            PrefillFirst(),
            Log([DONE], admits=False, is_its_own_victim=True),
            ["waiting", "admit w 4", "running", "advance a", "preempt a"],
        ),
        (
            ArrivalFirstChunked(),
            Log([DONE], [ON_HOST]),
            ["running", "advance a", "swapped", "resume s 0", "waiting", "admit w 3", "lay out"],
        ),
        (
            ArrivalFirstChunked(),
            Log([IN_PROMPT], is_its_own_victim=True),
            ["running", "advance a", "advance a alone", "swapped", "waiting", "admit w 3", "lay out"],
        ),
        (
            ArrivalFirstChunked(),
            Log([DONE, DONE], is_its_own_victim=True),
            ["running", *["advance a", "preempt a"] * 2, "waiting", "admit w 3", "lay out"],
        ),
        (DecodeFirst(), Log([DONE]), ["running", "advance a", "swapped", "waiting", "admit w 3"]),
        (DecodeFirst(splits_prompts=False), Log(), ["running", "swapped", "waiting", "admit w 4"]),
        (DecodeFirst(), Log(swapped=[ON_HOST]), ["running", "swapped", "resume s 3"]),
        (DecodeFirst(), Log([DONE, DONE], is_its_own_victim=True), ["running", "advance a", "preempt a"]),
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
    now, need = view(running=running), Need(running[0], 1)
    assert LastAdmitted().choose(now, need).id == "d"
    assert LowestPriority().choose(now, need).id == "c"


def test_restore() -> None:
    one, several, now = request(), request(n=2), view()
    assert [Swap().swaps(one, now), Recompute().swaps(one, now)] == [True, False]
    assert [SwapIfSeveral().swaps(one, now), SwapIfSeveral().swaps(several, now)] == [False, True]
    several.live = (1,)
    assert not SwapIfSeveral().swaps(several, now), "what counts is who is alive"


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
    now, victim = view(), request(num_prompt_tokens=12)
    victim.tables = {0: [0, 1, 2]}
    victim.num_computed_tokens = 12
    assert Cheapest(Costs(block_ns=19)).swaps(victim, now)
    assert not Cheapest(Costs(block_ns=20)).swaps(victim, now), "a tie saves the link"


def test_reservation() -> None:
    now = view()
    one, several = request(num_prompt_tokens=12), request(num_prompt_tokens=12, n=2)
    one.num_tokens = several.num_tokens = 15  # recomputed after three tokens
    assert OnDemand().tokens(one, 5, now) == 5
    assert WholePrompt().tokens(one, 5, now) == 15
    assert WholePrompt().tokens(several, 5, now) == 12, "the sequences part after the prompt"
    several.num_computed_tokens = 12
    assert WholePrompt().tokens(several, 13, now) == 15


@pytest.mark.parametrize("name", ["max_num_seqs", "max_num_batched_tokens", "max_model_len"])
def test_limits_must_be_positive(name: str) -> None:
    values = {"max_num_seqs": 1, "max_num_batched_tokens": 1, "max_model_len": 1, name: 0}
    with pytest.raises(ValueError, match=rf"Limits.{name} is 0: must be a whole number, at least 1"):
        Limits(**values)


def test_a_step_must_have_a_token_for_each_sequence() -> None:
    with pytest.raises(ValueError, match="a step could not give every sequence one token"):
        Limits(max_num_seqs=9, max_num_batched_tokens=8, max_model_len=8)
