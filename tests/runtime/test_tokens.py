"""Law 8: whatever happens to a request, it yields the tokens that the plain model would."""

import copy
import functools

import pytest

from engine.core.policies.restore import Recompute, Swap
from engine.core.spec import Sampling
from engine.runtime.model import prepare
from tests.runtime.support import GENERATED, build, generate, prompts, request, run

LENGTHS = (5, 17, 30, 9, 3, 40)
NUM_TOKENS = 12
PRESSURE = {
    "roomy": (Recompute(), 200, 0, None),
    "swap": (Swap(), 22, 100, "swap"),
    "recompute": (Recompute(), 22, 0, "recompute"),
}


@functools.cache
def model_and_answers(name):
    plain = build(name)
    answers = [generate(plain, prompt, NUM_TOKENS) for prompt in prompts(LENGTHS)]
    return prepare(copy.deepcopy(plain)), answers


@pytest.mark.parametrize("in_flight", [1, 2])
@pytest.mark.parametrize("pressure", PRESSURE)
@pytest.mark.parametrize("chunked", [False, True], ids=["whole", "chunked"])
@pytest.mark.parametrize("name", GENERATED)
def test_tokens_equal_those_of_generate(name, chunked, pressure, in_flight):
    model, answers = model_and_answers(name)
    restore, num_blocks, num_host_blocks, kind = PRESSURE[pressure]
    specs = [request(f"r{i}", prompt, NUM_TOKENS) for i, prompt in enumerate(prompts(LENGTHS))]
    recorder = run(
        model,
        specs,
        chunked=chunked,
        restore=restore,
        num_blocks=num_blocks,
        num_host_blocks=num_host_blocks,
        in_flight=in_flight,
    )
    assert [recorder.tokens[spec.request_id, 0] for spec in specs] == answers
    if kind is None:
        assert not recorder.preemptions
    else:
        assert recorder.preemptions
        assert {preemption.kind for preemption in recorder.preemptions} == {kind}


@pytest.mark.parametrize("in_flight", [1, 2])
@pytest.mark.parametrize("pressure", PRESSURE)
@pytest.mark.parametrize("chunked", [False, True], ids=["whole", "chunked"])
def test_parallel_sampling_equals_separate_requests(chunked, pressure, in_flight):
    model, _ = model_and_answers("llama")
    restore, num_blocks, num_host_blocks, kind = PRESSURE[pressure]
    some = prompts((6, 21, 13))
    options = [
        Sampling(temperature=1.0, top_k=k, top_p=p, seed=s)
        for k, p, s in ((0, 1.0, 7), (20, 0.9, 3), (0, 0.8, 1))
    ]

    def outputs(n, i, seed):
        sampling = Sampling(options[i].temperature, options[i].top_k, options[i].top_p, seed)
        return request(f"{i}/{seed}", some[i], NUM_TOKENS, n=n, sampling=sampling)

    together = run(
        model,
        [outputs(2, i, options[i].seed) for i in range(3)],
        chunked=chunked,
        restore=restore,
        num_blocks=min(num_blocks, 24),
        num_host_blocks=num_host_blocks,
        in_flight=in_flight,
    )
    apart = run(model, [outputs(1, i, options[i].seed + seq) for i in range(3) for seq in range(2)])
    for i in range(3):
        for seq in range(2):
            seed = options[i].seed
            assert together.tokens[f"{i}/{seed}", seq] == apart.tokens[f"{i}/{seed + seq}", 0]
    assert together.num_copies > 0  # sequences parted within a block: copy-on-write
    assert kind is None or together.preemptions


@pytest.mark.parametrize("in_flight", [1, 2])
@pytest.mark.parametrize("pressure", PRESSURE)
def test_a_stop_token_that_nobody_could_foresee(pressure, in_flight):
    """Each sequence stops at its sixth token or before, wherever that token came first; others go on."""
    model, answers = model_and_answers("llama")
    restore, num_blocks, num_host_blocks, kind = PRESSURE[pressure]
    stops = [None if i % 3 == 2 else answer[5] for i, answer in enumerate(answers)]
    specs = [
        request(
            f"r{i}", prompt, NUM_TOKENS, sampling=Sampling(stop_token_ids=() if stop is None else (stop,))
        )
        for i, (prompt, stop) in enumerate(zip(prompts(LENGTHS), stops, strict=True))
    ]
    recorder = run(
        model,
        specs,
        chunked=True,
        restore=restore,
        num_blocks=num_blocks,
        num_host_blocks=num_host_blocks,
        in_flight=in_flight,
    )
    wanted = [
        answer if stop is None else answer[: answer.index(stop) + 1]
        for answer, stop in zip(answers, stops, strict=True)
    ]
    assert [recorder.tokens[spec.request_id, 0] for spec in specs] == wanted
    reasons = [recorder.endings[spec.request_id].detail for spec in specs]
    assert reasons == ["length" if stop is None else "stop" for stop in stops]
    assert kind is None or recorder.preemptions
