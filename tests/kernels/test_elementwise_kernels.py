"""Add + RMSNorm, SiLU-and-mul, sampling: the matrix on the interpreter, and what the launchers refuse."""

import pytest
import torch

pytest.importorskip("triton")

from pagedkv.checks.elementwise import CASES
from pagedkv.norm import add_rms_norm
from pagedkv.sampling import kept_reference, sample
from pagedkv.swiglu import silu_and_mul
from triton import knobs

from engine.core.backend import Sampling
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


@interpreted
def test_rows_without_a_likely_token_end():
    """A row of -inf or NaN is not allowed; it must not hang or leave the vocabulary all the same."""
    rows = torch.full((3, 70), float("-inf"))
    rows[1] = float("nan")
    rows[2, 3] = float("inf")
    half = torch.full((3,), 0.5)
    tokens = sample(rows, torch.ones(3), torch.full((3,), 4), half, half)
    assert all(0 <= token < 70 for token in tokens.tolist())
