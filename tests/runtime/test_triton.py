"""The engine on Triton's kernels, in the interpreter: the tokens of the torch reference, whatever happens."""

import functools
import os
import subprocess
import sys

import pytest

from engine.core.policies.restore import Recompute, Swap
from engine.core.spec import Sampling
from engine.runtime.backend import TorchBackend
from engine.runtime.kernels import Reference, Triton
from engine.runtime.model import load_dummy
from tests.runtime.support import LIMITS, VOCAB_SIZE, load, prompts, request, run

CONFIG = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 96,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
}
LENGTHS = (5, 15, 30)
NUM_TOKENS = 7
PRESSURE = {
    "roomy": (Recompute(), 20, 0),
    "swap": (Swap(), 4, 8),
    "recompute": (Recompute(), 4, 0),
}


MODELS = {
    "llama": ("LlamaConfig", CONFIG),
    "gemma2": ("Gemma2Config", {**CONFIG, "sliding_window": 8, "attn_logit_softcapping": 2.0}),
    "gpt_oss": (
        "GptOssConfig",
        {**CONFIG, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8},
    ),
}
"""Plain; a window in every other layer and a soft cap; a window in every other layer and sinks."""


@functools.cache
def model(name="llama"):
    return load_dummy(*MODELS[name])


def served(attention, *, name="llama", chunked, pressure="roomy"):
    restore, num_blocks, num_host_blocks = PRESSURE[pressure]
    specs = [request(f"r{i}", prompt, NUM_TOKENS) for i, prompt in enumerate(prompts(LENGTHS))]
    return run(
        model(name),
        specs,
        chunked=chunked,
        restore=restore,
        num_blocks=num_blocks,
        num_host_blocks=num_host_blocks,
        block_size=16,
        attention=attention,
    )


@pytest.mark.parametrize("pressure", PRESSURE)
@pytest.mark.parametrize("chunked", [False, True], ids=["whole", "chunked"])
def test_tokens_equal_those_of_the_reference(chunked, pressure):
    found = served(Triton(), chunked=chunked, pressure=pressure)
    assert found.tokens == served(Reference(), chunked=False).tokens
    kinds = {preemption.kind for preemption in found.preemptions}
    assert kinds == ({pressure} if pressure != "roomy" else set())


@pytest.mark.parametrize("name", ["gemma2", "gpt_oss"])
def test_the_options_of_a_layer_are_honoured(name):
    found = served(Triton(), name=name, chunked=True, pressure="swap")
    assert found.tokens == served(Reference(), name=name, chunked=False).tokens
    assert found.preemptions


def test_sequences_that_part_copy_their_blocks():
    def parted(attention):
        hot = Sampling(temperature=0.8, top_k=30, top_p=0.9, seed=3)
        specs = [request("r", prompts((21,))[0], NUM_TOKENS, n=2, sampling=hot)]
        return run(model(), specs, num_blocks=20, block_size=16, attention=attention)

    found = parted(Triton())
    assert found.num_copies > 0
    assert found.tokens == parted(Reference()).tokens
    assert found.tokens["r", 0] != found.tokens["r", 1]


def test_a_shape_that_the_kernels_do_not_know_is_refused():
    with pytest.raises(ValueError, match="attention=triton cannot run: head_dim is 8"):
        TorchBackend(load("llama"), LIMITS, block_size=16, num_blocks=5, attention=Triton())
    with pytest.raises(ValueError, match="attention=triton cannot run: block_size is 4"):
        TorchBackend(model(), LIMITS, block_size=4, num_blocks=5, attention=Triton())


def test_a_machine_without_triton_is_told_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "pagedkv.triton_attention", None)
    with pytest.raises(ValueError, match=r"attention=triton cannot run: .*Install triton"):
        TorchBackend(model(), LIMITS, block_size=16, num_blocks=5, attention=Triton())


def test_a_cpu_is_refused_outside_the_interpreter():
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    code = (
        "import torch\n"
        "from pagedkv import KVLayout, StepLimits\n"
        "from engine.runtime.kernels import Triton\n"
        "layout = KVLayout(1, 2, 64, 16)\n"
        "pool = layout.allocate(2, torch.float32, torch.device('cpu'))\n"
        "Triton().attention(layout, pool, 4, StepLimits(2, 8, 32))\n"
    )
    finished = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False
    )
    assert finished.returncode != 0
    assert "attention=triton cannot run: the pool is on cpu: Triton needs a CUDA device" in finished.stderr
