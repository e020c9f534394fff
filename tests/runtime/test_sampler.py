"""Sampling: the distribution, its cuts, and what a draw depends on."""

import pytest
import torch

from engine.core.plan import FinishReason
from engine.core.spec import RequestSpec, Sampling
from engine.runtime.sampler import Draw, finish_reason, sample, sample_row, uniform

PROBABILITIES = torch.tensor([0.1, 0.4, 0.15, 0.3, 0.05])
LOGITS = PROBABILITIES.log()


def frequencies(sampling, num_draws=4000):
    counts = torch.zeros(5)
    for i in range(num_draws):
        counts[sample_row(LOGITS, sampling, (i + 0.5) / num_draws)] += 1
    return counts / num_draws


def test_an_even_grid_of_numbers_gives_the_distribution():
    torch.testing.assert_close(frequencies(Sampling(temperature=1.0)), PROBABILITIES, atol=1e-3, rtol=0)


def test_temperature_raises_probabilities_to_a_power():
    expected = PROBABILITIES**2 / (PROBABILITIES**2).sum()
    torch.testing.assert_close(frequencies(Sampling(temperature=0.5)), expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"top_k": 2}, [1, 3]),
        ({"top_k": 1}, [1]),
        ({"top_k": 5}, [0, 1, 2, 3, 4]),
        ({"top_k": 99}, [0, 1, 2, 3, 4]),
        ({"top_p": 0.65}, [1, 3]),
        ({"top_p": 0.75}, [1, 2, 3]),
        ({"top_p": 1e-9}, [1]),
        ({"top_p": 0.9999}, [0, 1, 2, 3, 4]),
        ({"top_k": 3, "top_p": 0.8}, [1, 3]),  # of 0.85 that top-k left, 0.7 is more than 80 %
    ],
)
def test_cuts_keep_the_likeliest_and_their_proportions(options, kept):
    expected = torch.zeros(5)
    expected[kept] = PROBABILITIES[kept] / PROBABILITIES[kept].sum()
    torch.testing.assert_close(frequencies(Sampling(temperature=1.0, **options)), expected, atol=1e-3, rtol=0)


def test_of_equally_likely_tokens_the_lowest_ids_are_kept():
    drawn = {sample_row(torch.zeros(6), Sampling(1.0, top_k=2), number / 50) for number in range(50)}
    assert drawn == {0, 1}


def test_the_ends_of_the_unit_interval_and_tokens_of_no_probability():
    logits = torch.tensor([float("-inf"), 0.0, float("-inf"), 0.0, float("-inf")])
    assert sample_row(logits, Sampling(1.0), 0.0) == 1
    assert sample_row(logits, Sampling(1.0), 1 - 2.0**-53) == 3


def test_the_stream_is_uniform_and_depends_on_seed_and_position():
    numbers = torch.tensor([uniform(5, position) for position in range(4000)])
    assert ((numbers >= 0) & (numbers < 1)).all()
    counts = torch.histc(numbers, bins=10, min=0, max=1)
    chi_square = float(((counts - 400) ** 2 / 400).sum())
    assert chi_square < 27.9  # 9 degrees of freedom, 0.1 %
    assert uniform(5, 1) == uniform(5, 1)
    assert len({uniform(5, 1), uniform(6, 1), uniform(5, 2), uniform(51, 0)}) == 4


def test_a_batch_mixes_greedy_and_drawn_rows_and_rows_may_be_shared():
    logits = torch.stack([LOGITS, LOGITS.flip(0)])
    hot = Sampling(temperature=1.0, seed=3)
    draws = [
        Draw("a", 0, 1, 7, Sampling()),
        Draw("b", 0, 0, 9, hot),
        Draw("b", 1, 0, 9, hot),
        Draw("c", 0, 0, 4, Sampling()),
    ]
    tokens = sample(logits, draws)
    assert (tokens[0], tokens[3]) == (3, 1)
    assert tokens[1] == sample_row(LOGITS, hot, uniform(3, 9))
    assert tokens[2] == sample_row(LOGITS, hot, uniform(4, 9))


def test_sequence_i_draws_from_the_stream_of_seed_plus_i():
    logits = torch.randn(1, 1000, generator=torch.Generator().manual_seed(0))
    together = sample(logits, [Draw("a", seq, 0, 12, Sampling(1.0, seed=40)) for seq in range(6)])
    apart = [sample(logits, [Draw("b", 0, 0, 12, Sampling(1.0, seed=40 + seq))])[0] for seq in range(6)]
    assert together == apart
    assert len(set(together)) > 1


@pytest.mark.parametrize("temperature", [1e-4, 1e-100, 1e-307, 1e-308, 1e-320, 5e-324])
@pytest.mark.parametrize("scale", [1.0, 1e30])
def test_a_tiny_temperature_is_greedy(temperature, scale):
    for options in ({}, {"top_k": 3, "top_p": 0.9}):
        sampling = Sampling(temperature, **options)
        assert {sample_row(LOGITS * scale, sampling, i / 20) for i in range(20)} == {1}


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.7), Sampling(0.7, top_k=2, top_p=0.9)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_row_that_is_not_finite_has_no_token_and_the_others_keep_theirs(sampling, dtype):
    logits = LOGITS.repeat(6, 1).to(dtype)
    alone = sample(logits[:1], [Draw("a", 0, 0, 7, sampling)])
    logits[1, 2] = float("nan")
    logits[2, 2] = float("inf")
    logits[3] = float("nan")
    logits[4] = float("-inf")
    logits[5, [0, 2, 3, 4]] = float("-inf")  # a mask, which leaves one token
    tokens = sample(logits, [Draw("a", 0, row, 7, sampling) for row in range(6)])
    assert tokens == [*alone, None, None, None, None, 1]


def test_what_ends_a_sequence():
    spec = RequestSpec("a", 0, 10, 20, num_output_tokens=5, sampling=Sampling(stop_token_ids=(7,)))
    assert finish_reason(spec, 7, 12, 100) is FinishReason.STOP
    assert finish_reason(spec, 1, 14, 100) is None
    assert finish_reason(spec, 1, 15, 100) is FinishReason.LENGTH
    assert finish_reason(spec, 1, 12, 12) is FinishReason.LENGTH
    assert finish_reason(RequestSpec("a", 0, 10, 20), 1, 29, 100) is None
    assert finish_reason(RequestSpec("a", 0, 10, 20), 1, 30, 100) is FinishReason.LENGTH
