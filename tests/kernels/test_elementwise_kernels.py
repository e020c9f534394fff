"""Add + RMSNorm, SiLU-and-mul, sampling: the matrix on the interpreter, and what the launchers refuse."""

import math
from itertools import product

import pytest
import torch

pytest.importorskip("triton")

from pagedkv.checks.elementwise import CASES
from pagedkv.launch import Launch
from pagedkv.norm import add_rms_norm
from pagedkv.sampling import kept_reference, sample
from pagedkv.swiglu import silu_and_mul
from triton import knobs

from engine.core.spec import Sampling
from engine.runtime.sampler import sample_row

interpreted = pytest.mark.skipif(
    not knobs.runtime.interpret, reason="needs TRITON_INTERPRET=1 from the start"
)
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy on infinities, which are meant
CPU = torch.device("cpu")


@interpreted
@pytest.mark.parametrize("case", [case for case in CASES if case.small], ids=lambda case: case.name)
def test_case(case):
    case.run(CPU)


def test_names_of_cases_are_unique():
    names = [case.name for case in CASES]
    assert len(names) == len(set(names))


X, WEIGHT = torch.zeros(3, 8), torch.zeros(8)
WRONG_NORMS = {
    "hidden_size 16400": lambda: add_rms_norm(torch.zeros(1, 16400), None, torch.zeros(16400), 1e-5),
    "not contiguous": lambda: add_rms_norm(torch.zeros(3, 16)[:, ::2], None, WEIGHT, 1e-5),
    r"weight must be \(8,\)": lambda: add_rms_norm(X, None, torch.zeros(9), 1e-5),
    "not .* torch.float64": lambda: add_rms_norm(X, None, WEIGHT.double(), 1e-5),
    "residual must be": lambda: add_rms_norm(X, torch.zeros(2, 8), WEIGHT, 1e-5),
    "residual_out without": lambda: add_rms_norm(X, None, WEIGHT, 1e-5, residual_out=X),
    "out must be": lambda: add_rms_norm(X, None, WEIGHT, 1e-5, out=torch.zeros(3, 8, dtype=torch.float16)),
}


@pytest.mark.parametrize("text", WRONG_NORMS)
def test_norm_refuses(text):
    with pytest.raises(ValueError, match=text):
        WRONG_NORMS[text]()


WRONG_GATES = {
    "gate must be": lambda: silu_and_mul(torch.zeros(8), torch.zeros(8)),
    r"up is \(3, 9\)": lambda: silu_and_mul(X, torch.zeros(3, 9)),
    "up is .* torch.float16": lambda: silu_and_mul(X, X.half()),
    "last stride 2": lambda: silu_and_mul(torch.zeros(3, 16)[:, ::2], X),
    "out is not contiguous": lambda: silu_and_mul(X, X, out=torch.zeros(8, 3).T),
}


@pytest.mark.parametrize("text", WRONG_GATES)
def test_silu_and_mul_refuses(text):
    with pytest.raises(ValueError, match=text):
        WRONG_GATES[text]()


def draw(logits=X, **changes):
    parameters = {"temperature": torch.ones(3), "top_k": torch.zeros(3, dtype=torch.int64)}
    parameters |= {"top_p": torch.ones(3), "numbers": torch.zeros(3)} | changes
    return sample(logits, **parameters)


WRONG_DRAWS = {
    "logits must be": lambda: draw(torch.zeros(8)),
    "torch.float64": lambda: draw(X.double()),
    r"strides \(16, 2\)": lambda: draw(torch.zeros(3, 16)[:, ::2]),
    "vocab_size 0": lambda: draw(torch.zeros(3, 0)),
    r"temperature must be \(3,\)": lambda: draw(temperature=torch.ones(1)),
    "top_k must be .* torch.float32": lambda: draw(top_k=torch.zeros(3)),
    "top_p must be": lambda: draw(top_p=torch.ones(3, 1)),
    "numbers must be": lambda: draw(numbers=torch.zeros(6)[::2]),
    "out must be": lambda: draw(out=torch.zeros(3, dtype=torch.int32)),
}


@pytest.mark.parametrize("text", WRONG_DRAWS)
def test_sample_refuses(text):
    with pytest.raises(ValueError, match=text):
        WRONG_DRAWS[text]()


@pytest.mark.parametrize("top_k", [0, 1, 5, 40])
@pytest.mark.parametrize("top_p", [1.0, 0.8, 0.2])
def test_the_reference_keeps_what_the_sampler_of_the_engine_keeps(top_k, top_p):
    logits = (torch.randn(40, generator=torch.Generator().manual_seed(top_k)) * 2).round()
    kept = kept_reference(logits, 2.0, top_k, top_p)
    sampling = Sampling(temperature=2.0, top_k=top_k, top_p=top_p)
    drawn = {sample_row(logits, sampling, (i + 0.5) / 20000) for i in range(20000)}
    assert drawn == set(kept.nonzero().flatten().tolist())


def rows_that_are_not_finite(vocab_size):
    """All, one, or a third of the logits are -inf, inf, or a NaN, whose bits are the least and the most."""
    nans = torch.tensor([0x7F800001, 0x7FFFFFFF, -1, -0x7FFFFF], dtype=torch.int32).view(torch.float32)
    values = torch.cat([nans, torch.tensor([-math.inf, math.inf])])[:, None]
    single = torch.arange(float(vocab_size)).repeat(len(values), 1)
    single[:, 11:12] = values
    several = single.clone()
    several[:, 1::3] = math.inf
    return torch.cat([values.expand(-1, vocab_size), single, several])


@interpreted
@pytest.mark.parametrize("turn", [0, 1])
def test_a_row_that_is_not_finite_stays_in_the_vocabulary_and_changes_no_other(turn):
    bad = rows_that_are_not_finite(40)
    good = torch.randn(6, 40, generator=torch.Generator().manual_seed(1))
    rows = torch.cat([good[:3], bad, good[3:]])
    choices = list(product((0, 4), (1.0, 0.5), ((0.7, 0.0), (0.7, 1.0), (1e-320, 0.5), (0.0, 0.5))))
    chosen = [choices[(5 * i + 8 * turn) % len(choices)] for i in range(len(rows))]
    top_k, top_p, draws = zip(*chosen, strict=True)
    temperature, number = torch.tensor(draws, dtype=torch.float64).T.contiguous()
    parameters = (temperature, torch.tensor(top_k), torch.tensor(top_p), number)
    launch = Launch(32, 1, 1, "")
    tokens = sample(rows, *parameters, launch=launch)
    assert ((tokens >= 0) & (tokens < 40)).all()
    is_good = rows.isfinite().all(1)
    alone = sample(good, *(x[is_good] for x in parameters), launch=launch)
    assert int(is_good.sum()) == 6 and torch.equal(tokens[is_good], alone)


@interpreted
def test_the_least_temperatures_draw_the_likeliest():
    """In float32 they are denormal or 0; the last is denormal in float64."""
    choices = list(product((1e-30, 1e-40, 1e-308, 1e-320), (1.0, 0.3), (0, 4)))
    temperature, top_p = (torch.tensor([c[i] for c in choices], dtype=torch.float64) for i in (0, 1))
    logits = torch.randn(len(choices), 40, generator=torch.Generator().manual_seed(1)) * 100
    logits[::2, 5:] = -math.inf
    numbers = torch.linspace(0, 1 - 2.0**-53, len(choices), dtype=torch.float64)
    tokens = sample(logits, temperature, torch.tensor([c[2] for c in choices]), top_p, numbers)
    assert torch.equal(tokens, logits.argmax(1))
