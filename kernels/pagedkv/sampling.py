"""Temperature, top-k, top-p and the draw of a token, one program a row, without sorting.

A logit x becomes an integer key with the same order: the bits of the float32, those of a negative number but
the sign inverted. Temperature does not change the order, so what is kept is a threshold t on keys:

    top-k:  the largest t with #{key >= t} >= k
    top-p:  the largest t with sum of w over {key >= t} >= p * (sum of w over what top-k kept)

with w = 2^((x - max) * log2 e / temperature). Of the tokens at t only some are needed: k less those above t,
or the fewest whose weights fill what is missing to p; those with the lowest ids stay. Then the token is the
first, in order of ids, at which the running sum of kept weights exceeds number * total.

A threshold is found by bisection between keys, and a probe is one pass over the row (from L2: a row of
128,256 float32 is 0.5 MB). Two things shorten it. Each bound moves on to the next key that occurs, so the
search ends on a logit of the row. And it starts close: every lane of the tile remembers its largest key, a
token each, so a threshold at which those alone suffice is a lower bound; it is found in registers.

Exactness: the order, hence top-k, is exact. Weights and their sums are float32 (carried over tiles in
float64), with a relative error of about 1e-6: where a sum comes that close to p or to number, the
neighbouring token may be taken. A p of 1 or more, a k of 0 or of the vocabulary and more, keep all: no sum
decides that.

Counted for `engine/runtime/sampler.py`, vocabulary 128,256, with top-k or top-p: a row is about 12 launches
(to float64, division, sort, softmax, running sum, two searches ...) and three waits for the device (number
kept, index, id), and the sort moves keys and ids, 16 bytes, 8 times or so: 33 MB. 64 rows are 770 launches
and 192 waits; at 2 us a launch and 10 us a wait 3.5 ms, about as long as the step itself (16 GB of weights at
4.3 TB/s: 3.7 ms). Here it is one launch for all rows, and one wait, for the tokens.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl

from pagedkv.aot import Variant
from pagedkv.contracts import require
from pagedkv.launch import Launch, sampling_launch

LOG2_E = tl.constexpr(1.4426950408889634)
KEY_MIN = tl.constexpr(-(2**31))
"""Below the key of every logit: what lies outside of the row."""
KEY_MAX = tl.constexpr(2**31 - 1)
KEY_NEG_INF = tl.constexpr(-2139095041)
"""Key of a logit of -inf."""
EPS = tl.constexpr(2.0**-52)
"""Of float64; a power of two, since constants are float32."""


@triton.jit
def _load(row_ptr, ids, VOCAB: tl.constexpr):
    """Logits as float32, and their keys."""
    x = tl.load(row_ptr + ids, ids < VOCAB, float("-inf")).to(tl.float32)
    x = tl.where(x == 0, 0.0, x)  # -0 is as likely as 0
    bits = x.to(tl.int32, bitcast=True)
    return x, tl.where(ids < VOCAB, bits ^ ((bits >> 31) & 0x7FFFFFFF), KEY_MIN)


@triton.jit
def _logit(key):
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def _weight(x, top, scale):
    return tl.exp2((x - top) * scale)


@triton.jit
def _middle(low, high):
    """Half of low + high, rounded up, without overflow."""
    return (low | high) - ((low ^ high) >> 1)


@triton.jit
def _threshold(
    row_ptr,
    lanes,
    low,
    high,
    goal,
    top,
    scale,
    BY_WEIGHT: tl.constexpr,
    VOCAB: tl.constexpr,
    TILE: tl.constexpr,
):
    """The largest key of the row, low <= t <= high, at which tokens >= t reach the goal: number or weight.

    Those >= low reach it. `lanes` has the largest key of each lane.
    """
    amounts = _weight(_logit(lanes), top, scale) if BY_WEIGHT else tl.full([TILE], 1.0, tl.float32)
    bound = high
    while low < bound:
        middle = _middle(low, bound)
        enough = tl.sum(tl.where(lanes >= middle, amounts, 0.0), 0) >= goal
        low = tl.where(enough, middle, low)
        bound = tl.where(enough, bound, middle - 1)
    while low < high:
        middle = _middle(low, high)
        reached = tl.full([TILE], 0.0, tl.float32)
        least = tl.full([TILE], KEY_MAX, tl.int32)
        most = tl.full([TILE], KEY_MIN, tl.int32)
        for start in range(0, VOCAB, TILE):
            x, key = _load(row_ptr, start + tl.arange(0, TILE), VOCAB)
            inside = key >= middle
            reached += tl.where(inside, _weight(x, top, scale) if BY_WEIGHT else 1.0, 0.0)
            least = tl.minimum(least, tl.where(inside, key, KEY_MAX))
            most = tl.maximum(most, tl.where(inside, KEY_MIN, key))
        reach = tl.sum(reached, 0)
        next_above, next_below = tl.min(least, 0), tl.max(most, 0)
        low = tl.where(reach >= goal, next_above, low)
        high = tl.where(reach >= goal, high, next_below)
        if not BY_WEIGHT:
            high = tl.where(reach == goal, next_above, high)
    return low


@triton.jit
def _tally(row_ptr, threshold, top, scale, VOCAB: tl.constexpr, TILE: tl.constexpr):
    """Number and weight of the tokens above the threshold, and number at it."""
    above = tl.full([TILE], 0, tl.int32)
    at = tl.full([TILE], 0, tl.int32)
    weight = tl.full([TILE], 0.0, tl.float32)
    for start in range(0, VOCAB, TILE):
        x, key = _load(row_ptr, start + tl.arange(0, TILE), VOCAB)
        above += (key > threshold).to(tl.int32)
        at += (key == threshold).to(tl.int32)
        weight += tl.where(key > threshold, _weight(x, top, scale), 0.0)
    return tl.sum(above, 0), tl.sum(weight, 0).to(tl.float64), tl.sum(at, 0)


@triton.jit
def _amounts(row_ptr, ids, threshold, last_tie, top, scale, TIES: tl.constexpr, VOCAB: tl.constexpr):
    """What a token adds to the running sum: 1 if it is at the threshold, or its weight if it is kept."""
    x, key = _load(row_ptr, ids, VOCAB)
    if TIES:
        amounts = (key == threshold).to(tl.float32)
    else:
        kept = (key > threshold) | ((key == threshold) & (ids <= last_tie))
        amounts = tl.where(kept, _weight(x, top, scale), 0.0)
    return amounts


@triton.jit
def _locate(
    row_ptr,
    threshold,
    last_tie,
    goal,
    top,
    scale,
    TIES: tl.constexpr,
    VOCAB: tl.constexpr,
    TILE: tl.constexpr,
):
    """The first token at which the running sum of amounts exceeds the goal, which is less than all of it."""
    start = 0
    before = tl.full([], 0.0, tl.float64)
    ids = tl.arange(0, TILE)
    amounts = _amounts(row_ptr, ids, threshold, last_tie, top, scale, TIES, VOCAB)
    after = before + tl.sum(amounts, 0)
    while (after <= goal) & (start + TILE < VOCAB):
        start += TILE
        before = after
        amounts = _amounts(row_ptr, start + ids, threshold, last_tie, top, scale, TIES, VOCAB)
        after = before + tl.sum(amounts, 0)
    # The sum over the tile and its running sum add in different orders: the latter may just miss the goal.
    exceeds = before + tl.cumsum(amounts, 0) > goal
    first = tl.min(tl.where(exceeds, start + ids, VOCAB), 0)
    last = tl.max(tl.where(amounts > 0, start + ids, 0), 0)
    return tl.where(first < VOCAB, first, last)


@triton.jit
def _keep(row_ptr, lanes, high, top, scale, top_k, top_p, VOCAB: tl.constexpr, TILE: tl.constexpr):
    """What top-k and then top-p keep: all above a threshold, and at it the ids up to the last tie."""
    threshold = tl.full([], KEY_NEG_INF, tl.int32)
    limited = (top_k > 0) & (top_k < VOCAB)
    if limited:
        goal = top_k.to(tl.float32)
        threshold = _threshold(row_ptr, lanes, threshold, high, goal, top, scale, False, VOCAB, TILE)
    above, weight, at = _tally(row_ptr, threshold, top, scale, VOCAB, TILE)
    ties = tl.where(limited, top_k - above, at)
    if top_p < 1:
        low = threshold
        goal = top_p * (weight + ties * _weight(_logit(low), top, scale).to(tl.float64))
        threshold = _threshold(row_ptr, lanes, low, high, goal, top, scale, True, VOCAB, TILE)
        above, weight, at = _tally(row_ptr, threshold, top, scale, VOCAB, TILE)
        each = _weight(_logit(threshold), top, scale).to(tl.float64)
        needed = tl.maximum(tl.ceil((goal - weight) / tl.maximum(each, 1e-300)), 1.0)
        most = tl.where(threshold == low, ties, at)
        ties = tl.minimum(needed, most.to(tl.float64)).to(tl.int32)
    last_tie = tl.full([], VOCAB, tl.int32)
    if ties < at:
        goal = ties.to(tl.float64) - 1
        last_tie = _locate(row_ptr, threshold, last_tie, goal, top, scale, True, VOCAB, TILE)
    return threshold, last_tie


@triton.jit
def sample_kernel(
    logits_ptr,
    temperature_ptr,
    top_k_ptr,
    top_p_ptr,
    numbers_ptr,
    tokens_ptr,
    row_stride,
    VOCAB: tl.constexpr,
    TILE: tl.constexpr,
):
    """A program draws the token of a row."""
    row = tl.program_id(0).to(tl.int64)
    row_ptr = logits_ptr + row * row_stride
    ids = tl.arange(0, TILE)
    lanes = tl.full([TILE], KEY_MIN, tl.int32)
    tokens = tl.full([TILE], 0, tl.int32)
    for start in range(0, VOCAB, TILE):
        _, key = _load(row_ptr, start + ids, VOCAB)
        tokens = tl.where(key > lanes, start + ids, tokens)
        lanes = tl.maximum(lanes, key)
    high = tl.max(lanes, 0)
    token = tl.min(tl.where(lanes == high, tokens, VOCAB), 0)
    temperature = tl.load(temperature_ptr + row).to(tl.float32)
    if temperature > 0:
        top = _logit(high)
        scale = tl.minimum(1.0 / temperature * LOG2_E, 3e38)  # not inf: the exponent of the likeliest is 0
        top_k = tl.load(top_k_ptr + row).to(tl.int32)
        top_p = tl.load(top_p_ptr + row).to(tl.float64)
        threshold = tl.full([], KEY_NEG_INF, tl.int32)
        last_tie = tl.full([], VOCAB, tl.int32)
        if (top_p < 1) | ((top_k > 0) & (top_k < VOCAB)):
            threshold, last_tie = _keep(row_ptr, lanes, high, top, scale, top_k, top_p, VOCAB, TILE)
        total = tl.full([], 0.0, tl.float64)
        for start in range(0, VOCAB, TILE):
            amounts = _amounts(row_ptr, start + ids, threshold, last_tie, top, scale, False, VOCAB)
            total += tl.sum(amounts, 0)
        number = tl.load(numbers_ptr + row).to(tl.float64)
        goal = tl.minimum(total * number, total - total * EPS)  # less than the total, as `_locate` needs it
        token = _locate(row_ptr, threshold, last_tie, goal, top, scale, False, VOCAB, TILE)
    tl.store(tokens_ptr + row, token.to(tl.int64))


def sample(
    logits: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    numbers: torch.Tensor,
    *,
    out: torch.Tensor | None = None,
    launch: Launch | None = None,
) -> torch.Tensor:
    """Draw a token of each row.

    Logits `(num_rows, vocab_size)`, float16, bfloat16 or float32, the last dimension contiguous. Of a row
    with NaN or +inf, or of nothing but -inf, the token is any of the vocabulary, and no other row changes:
    who must know looks at the logits first. Of each row, `(num_rows,)`: temperature, 0 for the likeliest
    token (of equals the lowest id), as is what float32 rounds to 0; top_k, integer, 0 for all; top_p, 1 for
    all; numbers in [0, 1), which decide. Reals are float32 or, better, float64: 0.3 in float32 is more than
    0.3. The result is `(num_rows,)` int64. `launch` is the configuration to try. Raises ValueError if shapes
    or types are not like this.
    """
    num_rows, vocab_size = logits.shape if logits.dim() == 2 else (0, 0)
    out = torch.empty(num_rows, dtype=torch.int64, device=logits.device) if out is None else out
    _check(logits, temperature, top_k, top_p, numbers, out)
    if num_rows:
        launch = launch or sampling_launch(vocab_size)
        sample_kernel[(num_rows,)](
            logits,
            temperature,
            top_k,
            top_p,
            numbers,
            out,
            logits.stride(0),
            VOCAB=vocab_size,
            TILE=launch.tile,
            num_warps=launch.num_warps,
        )
    return out


def kept_reference(logits: torch.Tensor, temperature: float, top_k: int, top_p: float) -> torch.Tensor:
    """Weights of one row, `(vocab_size,)` float64, of the likeliest 1, of a dropped token 0; by sorting."""
    scaled, order = torch.sort(logits.double(), descending=True, stable=True)
    weights = torch.exp((scaled - scaled[0]) / temperature)
    if top_k > 0:
        weights[top_k:] = 0
    if top_p < 1:
        cumulative = weights.cumsum(0)
        num_kept = int(torch.searchsorted(cumulative, top_p * cumulative[-1])) + 1
        weights[num_kept:] = 0
    return torch.zeros_like(weights).scatter_(0, order, weights)


def sample_reference(
    logits: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    numbers: torch.Tensor,
) -> torch.Tensor:
    """The same in float64, row by row."""
    tokens = []
    for i, row in enumerate(logits):
        if temperature[i] == 0:
            tokens.append(int(row.argmax()))
            continue
        kept = kept_reference(row, float(temperature[i]), int(top_k[i]), float(top_p[i]))
        running = kept.cumsum(0)
        index = int(torch.searchsorted(running, numbers[i].double() * running[-1], right=True))
        tokens.append(min(index, int(kept.nonzero()[-1])))
    return torch.tensor(tokens, dtype=torch.int64, device=logits.device)


def _check(
    logits: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    numbers: torch.Tensor,
    out: torch.Tensor,
) -> None:
    require(logits.dim() == 2, f"logits must be (num_rows, vocab_size), not {tuple(logits.shape)}")
    num_rows, vocab_size = logits.shape
    require(
        logits.dtype in (torch.float16, torch.bfloat16, torch.float32) and logits.stride(1) == 1,
        f"logits: {logits.dtype}, strides {logits.stride()}; must be of 16 or 32 bits, last stride 1",
    )
    require(0 < vocab_size < 2**24, f"vocab_size {vocab_size} is not between 1 and 2^24")
    reals = (torch.float32, torch.float64)
    integers = (torch.int32, torch.int64)
    for name, x, dtypes in (
        ("temperature", temperature, reals),
        ("top_k", top_k, integers),
        ("top_p", top_p, reals),
        ("numbers", numbers, reals),
        ("out", out, (torch.int64,)),
    ):
        require(
            x.shape == (num_rows,) and x.dtype in dtypes and x.is_contiguous(),
            f"{name} must be ({num_rows},) of {dtypes}, contiguous, not {tuple(x.shape)} {x.dtype}",
        )


def variants() -> Iterator[Variant]:
    """For ahead-of-time compilation: Llama-3 in bf16 and float32."""
    for dtype in ("bf16", "fp32"):
        launch = sampling_launch(128_256)
        reals = dict.fromkeys(("temperature_ptr", "top_p_ptr", "numbers_ptr"), "*fp64")
        yield Variant(
            f"sample 128,256 {dtype}",
            sample_kernel,
            reals
            | {"logits_ptr": f"*{dtype}", "top_k_ptr": "*i64", "tokens_ptr": "*i64", "row_stride": "i32:16"},
            {"VOCAB": 128_256, "TILE": launch.tile},
            launch.num_warps,
            launch.num_stages,
            max_registers=128,
            max_shared_bytes=16384,
        )
