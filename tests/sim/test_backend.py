from __future__ import annotations

from collections.abc import Mapping

import pytest

from engine.core.plan import Chunk, Finish, FinishReason, StepPlan, StepResult, Transfer, TransferKind
from engine.core.spec import Capacity, RequestSpec
from engine.core.work import Work
from sim.backend import SimulatedBackend
from sim.cost.base import Beyond
from tests.sim.plans import decode, make_plan, prefill


class TokenCost:
    """10.3 ns a token and 5 ns a sampled token, to see what is rounded and when."""

    def parts_ns(self, step: Work) -> dict[str, float]:
        return {"linear": 10.3 * step.num_tokens, "sampling": 5.0 * step.num_sampled}

    def beyond(self, step: Work) -> Mapping[str, Beyond]:
        return {"num_tokens": Beyond(step.num_tokens, 10)} if step.num_tokens > 20 else {}

    @property
    def caveat(self) -> str | None:
        return None

    def recompute_ns(self, num_tokens: int) -> int:
        return 10 * num_tokens

    def transfer_ns(self, num_blocks: int) -> int:
        return num_blocks


def make_backend(*specs: RequestSpec, max_model_len: int = 1000) -> SimulatedBackend:
    backend = SimulatedBackend(Capacity(64, 8, 16), TokenCost(), max_model_len)
    for spec in specs:
        backend.add(spec)
    return backend


def run(backend: SimulatedBackend, plan: StepPlan) -> StepResult:
    return backend.collect(backend.submit(plan))


def spec(request_id: str, num_prompt: int, num_output: int, n: int = 1, max_tokens: int = 500) -> RequestSpec:
    return RequestSpec(request_id, 0, num_prompt, max_tokens, num_output, n=n)


def test_duration_is_the_rounded_sum_of_the_parts() -> None:
    result = run(make_backend(spec("a", 7, 9)), make_plan([prefill("a", 7)]))
    assert result == StepResult(duration_ns=77, parts_ns={"linear": 10.3 * 7, "sampling": 5.0})
    assert type(result.duration_ns) is int
    assert result.token_ids is None


def test_sequence_ends_with_the_token_that_reaches_its_length() -> None:
    backend = make_backend(spec("a", 7, 3))
    assert run(backend, make_plan([prefill("a", 7)])).finished == ()
    assert run(backend, make_plan([decode("a", 7)])).finished == ()
    assert run(backend, make_plan([decode("a", 8)])).finished == (Finish("a", 0, FinishReason.LENGTH),)


def test_single_token_of_output_ends_with_the_prompt() -> None:
    backend = make_backend(spec("a", 7, 1))
    first_half = run(backend, make_plan([prefill("a", 6, samples=())]))
    assert first_half.finished == ()
    last = run(backend, make_plan([Chunk("a", 6, 1, (0,), (0,))]))
    assert last.finished == (Finish("a", 0, FinishReason.LENGTH),)


def test_chunk_that_samples_nothing_ends_nothing() -> None:
    backend = make_backend(spec("a", 7, 1))
    assert run(backend, make_plan([prefill("a", 7, samples=())])).finished == ()


def test_recomputation_of_a_grown_request_counts_all_its_tokens() -> None:
    backend = make_backend(spec("a", 7, 4))
    assert run(backend, make_plan([prefill("a", 9)])).finished == ()
    assert run(backend, make_plan([prefill("a", 10)])).finished == (Finish("a", 0, FinishReason.LENGTH),)


def test_parallel_sequences_end_together_in_batch_order() -> None:
    backend = make_backend(spec("b", 4, 2, n=2), spec("a", 5, 2))
    first = make_plan([prefill("b", 4, samples=(0, 1)), prefill("a", 5)])
    assert run(backend, first).finished == ()
    second = make_plan([decode("b", 4, seqs=(0, 1)), decode("a", 5)])
    length = FinishReason.LENGTH
    assert run(backend, second).finished == (
        Finish("b", 0, length),
        Finish("b", 1, length),
        Finish("a", 0, length),
    )


@pytest.mark.parametrize(
    ("num_output", "max_tokens", "max_model_len", "num_expected"),
    [(5, 500, 1000, 5), (5, 3, 1000, 3), (50, 500, 20, 10), (None, 4, 1000, 4)],
)
def test_true_length(num_output: int | None, max_tokens: int, max_model_len: int, num_expected: int) -> None:
    request = RequestSpec("a", 0, 10, max_tokens, num_output)
    backend = make_backend(request, max_model_len=max_model_len)
    num_sampled, finished = 1, run(backend, make_plan([prefill("a", 10)])).finished
    while not finished:
        finished = run(backend, make_plan([decode("a", 9 + num_sampled)])).finished
        num_sampled += 1
    assert num_sampled == num_expected


def test_plan_that_only_tells_takes_no_time() -> None:
    assert run(make_backend(), make_plan()) == StepResult(duration_ns=0)


def test_plan_that_only_moves_blocks_is_priced() -> None:
    plan = make_plan(transfers=[Transfer(TransferKind.SWAP_OUT, "a", (1,), (2,))])
    assert set(run(make_backend(spec("a", 7, 1)), plan).parts_ns) == {"linear", "sampling"}


class OverlappedCost(TokenCost):
    """Blocks move while the step computes."""

    def parts_ns(self, step: Work) -> dict[str, float]:
        moved = step.num_blocks_swapped_out + step.num_blocks_swapped_in + step.num_blocks_copied
        return {"longer of the two": max(10.0 * step.num_tokens, 25.4 * moved)}


@pytest.mark.parametrize(("num_blocks", "num_ns"), [(0, 0), (1, 0), (2, 0), (3, 6), (4, 32)])
def test_transfer_time_is_what_the_step_would_not_take_without_them(num_blocks: int, num_ns: int) -> None:
    backend = SimulatedBackend(Capacity(64, 8, 16), OverlappedCost(), 1000)
    backend.add(spec("a", 7, 9))
    blocks = tuple(range(num_blocks))
    moves = [Transfer(TransferKind.SWAP_IN, "b", blocks, blocks)] if blocks else []
    result = run(backend, make_plan([prefill("a", 7)], moves))
    assert (result.duration_ns, result.transfer_ns) == (70 + num_ns, num_ns)
    assert type(result.transfer_ns) is int


def test_submitting_twice_in_a_row_keeps_results_apart() -> None:
    backend = make_backend(spec("a", 7, 3), spec("b", 2, 3))
    tickets = [backend.submit(make_plan([prefill("a", 7)])), backend.submit(make_plan([prefill("b", 2)]))]
    assert [backend.collect(ticket).duration_ns for ticket in tickets] == [77, 26]


def test_misuse_is_named() -> None:
    backend = make_backend(spec("a", 7, 1))
    with pytest.raises(ValueError, match="request a was added twice"):
        backend.add(spec("a", 7, 1))
    with pytest.raises(ValueError, match=r"plan 3 computes request 'b', which the backend does not know"):
        backend.submit(make_plan([prefill("b", 7)], step_id=3))
    with pytest.raises(ValueError, match="request b was dropped, but the backend does not know it"):
        backend.drop("b")
    backend.drop("a")
    with pytest.raises(ValueError, match="does not know"):
        backend.submit(make_plan([prefill("a", 7)]))
    with pytest.raises(ValueError, match="max_model_len is 0"):
        make_backend(max_model_len=0)


def test_capacity_is_what_was_given() -> None:
    assert make_backend().capacity == Capacity(64, 8, 16)


def test_steps_that_the_cost_model_guesses_are_counted_until_told() -> None:
    backend = make_backend(spec("a", 30, 9), spec("b", 7, 9))
    run(backend, make_plan([prefill("b", 7)]))
    assert backend.pop_remark() is None
    run(backend, make_plan([prefill("a", 30)]))
    for position in (30, 31, 32):
        run(backend, make_plan([decode("a", position)]))
    assert backend.pop_remark() == (
        "25% of the steps (1 of 4) lie beyond twice the calibrated range of the cost model: "
        "num_tokens up to 30 (calibrated up to 10)"
    )
    assert backend.pop_remark() is None
