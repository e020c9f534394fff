"""Cases of add + RMSNorm, SiLU-and-mul and sampling against their float64 references."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import product

import torch

from pagedkv.checks.common import GUARD, Case, poisoned, randn, tolerance
from pagedkv.launch import Launch
from pagedkv.norm import add_rms_norm, add_rms_norm_reference
from pagedkv.sampling import kept_reference, sample, sample_reference
from pagedkv.swiglu import silu_and_mul, silu_and_mul_reference

HALF = (torch.float16, torch.bfloat16)


def norm_tolerance(dtype: torch.dtype) -> float:
    """Roundings of the normalised row, of the product, and, in float32, of the mean and the root."""
    return tolerance(dtype, 8.0 if dtype == torch.float32 else 4.0)


def run_norm(
    shape: tuple[int, int], dtype: torch.dtype, add: bool, offset: float, size: float, device: torch.device
) -> None:
    """Rows of standard deviation `size`: against an eps of 1e-5 it tells where eps is."""
    x = randn(shape, torch.float32, device, 1).mul(size).to(dtype)
    residual = randn(shape, torch.float32, device, 2).mul(size).to(dtype) if add else None
    weight = randn(shape[1:], dtype, device, 3)
    expected, expected_sum = add_rms_norm_reference(x, residual, weight, 1e-5, offset)
    before = x.clone()
    out = poisoned(shape, dtype, device)
    total = poisoned(shape, dtype, device) if add else None
    result = add_rms_norm(
        x, residual, weight, 1e-5, offset, out=out.tensor, residual_out=total.tensor if total else None
    )
    out.check(expected, norm_tolerance(dtype))
    assert torch.equal(x, before), "the input changed"
    assert result[0] is out.tensor
    if total:
        total.check(expected_sum, 0.0)
        assert result[1] is total.tensor
    else:
        assert result[1] is x


def run_norm_in_place(device: torch.device) -> None:
    """The sum over the residual, and the norm over x."""
    x, residual = (randn((5, 96), torch.float32, device, seed) for seed in (1, 2))
    weight = randn((96,), torch.float32, device, 3)
    expected, expected_sum = add_rms_norm_reference(x, residual, weight, 1e-5)
    add_rms_norm(x, residual, weight, 1e-5, out=x, residual_out=residual)
    limit = norm_tolerance(torch.float32)
    torch.testing.assert_close(x.double(), expected, rtol=limit, atol=limit)
    torch.testing.assert_close(residual.double(), expected_sum, rtol=0, atol=0)


def run_swiglu(shape: tuple[int, int], dtype: torch.dtype, layout: str, device: torch.device) -> None:
    """Gates up to +-80, at which a sigmoid is 0 or 1 in every type; both or the gate in a wider matrix."""
    both = randn((shape[0], 2 * shape[1]), torch.float32, device, 1).mul(8).to(dtype)
    both[0, 0], both[0, -1] = -80.0, 80.0
    gate, up = both.chunk(2, dim=1)
    gate = gate.contiguous() if layout == "contiguous" else gate
    up = up if layout == "halves" else up.contiguous()
    out = poisoned(shape, dtype, device)
    assert silu_and_mul(gate, up, out=out.tensor) is out.tensor
    # In float32 the exponent, up to 60, is rounded before 2^x, and so the sigmoid by 60 x ln 2 roundings;
    # where it is that large, the gate times it is less than 1e-8. About 1 it is a few.
    out.check(silu_and_mul_reference(gate, up), tolerance(dtype, 16.0 if dtype == torch.float32 else 1.1))


Row = tuple[float, int, float, float]
"""Temperature, top-k, top-p, number."""


def sampling_rows(vocab_size: int, temperatures: Sequence[float], seed: int) -> list[Row]:
    """All combinations of the parameters, with numbers at the ends of [0, 1) and inside."""
    top_ks = sorted({0, 1, 7, vocab_size // 2, vocab_size})  # 7 is more than the smallest vocabularies
    inside = torch.rand(1000, generator=torch.Generator().manual_seed(seed)).tolist()
    combinations = product(temperatures, top_ks, (1.0, 0.9004, 0.3, 1e-6))
    ends = (0.0, 1 - 2.0**-53, 1.0)  # 1: what float32 makes of the last numbers below
    return [(*row, ends[i % 5] if i % 5 < 3 else inside[i]) for i, row in enumerate(combinations)]


def sampling_logits(kind: str, num_rows: int, vocab_size: int) -> torch.Tensor:
    """Logits with or without ties, all equal, a rounding apart, mostly -inf, or zeros of both signs."""
    logits = randn((num_rows, vocab_size), torch.float32, torch.device("cpu"), vocab_size) * 3
    if kind == "ties":
        return logits.round()
    if kind == "equal":
        return torch.full_like(logits, -1.5)
    if kind == "neighbours":
        return 1 + logits.argsort() * 2.0**-23
    if kind == "-inf":
        hidden = randn((num_rows, vocab_size), torch.float32, torch.device("cpu"), 2) > -0.5
        hidden[:, vocab_size // 3] = False
        return logits.masked_fill(hidden, float("-inf"))
    if kind == "zeros":
        logits = -logits.abs()
        logits[:, vocab_size // 2 :: 2] = 0.0
        logits[:, vocab_size // 2 + 1 :: 2] = -0.0
    return logits


def run_sampling(
    kind: str,
    vocab_size: int,
    dtype: torch.dtype,
    rows: list[Row],
    exact: bool,
    device: torch.device,
    launch: Launch | None = None,
) -> None:
    """The tokens of the reference; where not exact, those whose interval is 1e-5 away at most."""
    logits = sampling_logits(kind, len(rows), vocab_size).to(dtype).to(device)
    temperature, top_k, top_p, numbers = (
        torch.tensor(column, dtype=torch.float64, device=device) for column in zip(*rows, strict=True)
    )
    arguments = (logits, temperature, top_k.long(), top_p, numbers)
    buffer = torch.full((len(rows) + 2 * GUARD,), -7, dtype=torch.int64, device=device)
    tokens = buffer[GUARD:-GUARD]
    assert sample(*arguments, out=tokens, launch=launch) is tokens
    assert (buffer[:GUARD] == -7).all() and (buffer[-GUARD:] == -7).all(), "wrote outside its output"
    expected = sample_reference(*arguments)
    for i in (tokens != expected).nonzero().flatten().tolist():
        text = f"row {i} {rows[i]}: token {int(tokens[i])}, must be {int(expected[i])}"
        assert not exact and rows[i][0] > 0 and near(logits[i], rows[i], int(tokens[i])), text


def near(logits: torch.Tensor, row: Row, token: int) -> bool:
    """Whether a change of 1e-5 in p or in number could lead to the token."""
    temperature, top_k, top_p, number = row
    looser = kept_reference(logits, temperature, top_k, top_p if top_p >= 1 else top_p * (1 + 1e-5))
    kept = kept_reference(logits, temperature, top_k, top_p)
    running = kept.cumsum(0) / kept.sum()
    before = float(running[token - 1]) if token else 0.0
    return bool(looser[token] > 0) and before - 1e-5 <= number <= float(running[token]) + 1e-5


def _norm_cases() -> Iterator[Case]:
    shapes = [(1, 1), (3, 17), (17, 96), (3, 257), (1, 1000), (3, 2048)]
    for i, (shape, dtype) in enumerate(product(shapes, (torch.float32, torch.float16, torch.bfloat16))):
        for add, offset in ((True, 0.0), (False, 0.0), (True, 1.0)):
            size = (1.0, 3e-3, 30.0)[i % 3]
            name = f"norm {shape} {dtype}{' + residual' if add else ''}, offset {offset}, size {size}"
            run = partial(run_norm, shape, dtype, add, offset, size)
            yield Case(name, run, small=dtype != torch.bfloat16)
    yield Case("norm in place", run_norm_in_place)
    for shape, dtype in product([(64, 4096), (3001, 5120), (7, 16384)], HALF):
        run = partial(run_norm, shape, dtype, True, 0.0, 1.0)
        yield Case(f"norm {shape} {dtype} large", run, small=False)


def _swiglu_cases() -> Iterator[Case]:
    shapes = [(1, 1), (3, 17), (17, 257), (3, 1024), (1, 2500)]
    layouts = ("contiguous", "halves", "gate strided")
    for shape, dtype, layout in product(shapes, (torch.float32, *HALF), layouts):
        name = f"swiglu {shape} {dtype}, {layout}"
        yield Case(name, partial(run_swiglu, shape, dtype, layout), small=dtype != torch.bfloat16)
    for shape, dtype in product([(64, 14336), (3001, 11008)], HALF):
        yield Case(f"swiglu {shape} {dtype} large", partial(run_swiglu, shape, dtype, "halves"), small=False)


def _sampling_cases() -> Iterator[Case]:
    kinds = ("random", "ties", "equal", "-inf", "zeros")
    for vocab_size, kind in product((1, 5, 1000), kinds):
        rows = sampling_rows(vocab_size, (0.0, 0.7), vocab_size)
        run = partial(run_sampling, kind, vocab_size, torch.float32, rows, True)
        yield Case(f"sample {vocab_size} {kind}", run)
    # Many tiles: else each lane has one token, and the bound from the lanes is the threshold already.
    launch = Launch(32, 1, 1, "")
    for kind in (*kinds, "neighbours"):
        rows = sampling_rows(257, (0.0, 0.7), 257)
        run = partial(run_sampling, kind, 257, torch.float32, rows, True, launch=launch)
        yield Case(f"sample 257 {kind}, tiles of 32", run)
    for dtype, temperature in ((torch.float16, 1.3), (torch.bfloat16, 0.01)):
        rows = sampling_rows(4099, (temperature,), 5)
        # At a low temperature float32 weights are 0 where those in float64 are not; number 0 draws the first.
        run = partial(run_sampling, "random", 4099, dtype, rows, temperature > 0.1)
        yield Case(f"sample 4099 {dtype} temperature {temperature}", run)
    for kind, dtype in product(("random", "ties", "-inf"), (torch.float32, torch.bfloat16)):
        rows = sampling_rows(128_256, (0.0, 0.6, 1.0), 6)
        run = partial(run_sampling, kind, 128_256, dtype, rows, False)
        yield Case(f"sample 128,256 {kind} {dtype}", run, small=False)


CASES = [*_norm_cases(), *_swiglu_cases(), *_sampling_cases()]
