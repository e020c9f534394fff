"""Loading models, prepacked weights, and the refusal of models that cannot be served."""

import logging

import pytest
import torch
import transformers
from torch import nn

from engine.runtime import linear
from engine.runtime.attention import AttentionContext, paged_attention
from engine.runtime.backend import TorchBackend
from engine.runtime.linear import PackedLinear, compute_dtype_on_cpu, pack_linears
from engine.runtime.model import load_dummy, prepare
from engine.runtime.reach import UnsupportedModelError
from tests.runtime.support import CONFIGS, LIMITS, SMALL, build, load, prompts, request, run

needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")


def logits_of(model, prompt):
    """Logits at every position, from the engine's own forward pass: one chunk, then one token at a time."""
    from pagedkv import Piece

    backend = TorchBackend(model, LIMITS, block_size=4, num_blocks=20)
    table = [7, 3, 12, 1, 9, 0, 2, 5, 19]
    half = len(prompt) // 2
    parts = [(0, half)] + [(position, 1) for position in range(half, len(prompt))]
    with torch.inference_mode():
        rows = [
            backend._forward(
                prompt[start : start + n], [Piece(start, n, table)], list(range(n)), backend._attention
            )
            for start, n in parts
        ]
    return torch.cat(rows)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("prepack", [False, True])
def test_logits_equal_those_of_the_plain_model(name, prepack):
    """Among them Gemma 2 (softcap, alternating windows) and gpt-oss (sinks, windows)."""
    prompt = prompts((30,))[0]
    plain = build(name)
    plain.set_attn_implementation("eager")
    with torch.inference_mode():
        expected = plain(torch.tensor([prompt])).logits[0]
    found = logits_of(load(name, prepack), list(prompt))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


BLOOM = ("BloomConfig", {"vocab_size": 64, "hidden_size": 32, "n_layer": 2, "n_head": 4})
FALCON = (
    "FalconConfig",
    {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
)
MAMBA = ("MambaConfig", {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4})


@pytest.mark.parametrize(("architecture", "config"), [BLOOM, FALCON, MAMBA], ids=["bloom", "falcon", "mamba"])
def test_a_model_outside_the_attention_interface_is_refused(architecture, config):
    with pytest.raises(UnsupportedModelError, match="cannot be served: 0 calls for 2 layers"):
        load_dummy(architecture, config)


def test_options_and_masks_that_are_not_known_are_refused():
    module = nn.Module()
    module.layer_idx = 0
    module.attention_context = AttentionContext()
    x = torch.zeros(1, 2, 3, 4)
    with pytest.raises(
        UnsupportedModelError, match=r"attention options \['position_bias'\], which are not known"
    ):
        paged_attention(module, x, x, x, None, position_bias=x, position_ids=x, use_cache=False)
    with pytest.raises(UnsupportedModelError, match="its mask is neither causal nor causal within"):
        paged_attention(module, x, x, x, torch.zeros(1, 1, 3, 3))
    with pytest.raises(UnsupportedModelError, match="its mask carries a bias"):
        paged_attention(module, x, x, x, torch.arange(9.0).reshape(1, 1, 3, 3))
    with pytest.raises(UnsupportedModelError, match="not causal attention"):
        paged_attention(module, x, x, x, None, is_causal=False)
    with pytest.raises(UnsupportedModelError, match="dropout"):
        paged_attention(module, x, x, x, None, dropout=0.1)


@needs_onednn
def test_a_model_that_reads_the_weights_of_its_linear_layers_cannot_be_prepacked():
    class Reads(type(build("llama"))):
        def forward(self, *args, **kwargs):
            assert self.lm_head.weight is not None
            return super().forward(*args, **kwargs)

    model = build("llama")
    model.__class__ = Reads
    with pytest.raises(
        UnsupportedModelError, match=r"no attribute 'weight'; load the model with prepack=False"
    ):
        prepare(model)
    model = build("llama")
    model.__class__ = Reads
    assert prepare(model, prepack=False).packing.num_packed == 0


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_position_encodings_that_depend_on_the_batch_are_refused(kind):
    rope = {"rope_type": kind, "rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 64}
    if kind == "longrope":
        rope |= {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    with pytest.raises(UnsupportedModelError, match=f"rope_type '{kind}'"):
        load_dummy("LlamaConfig", {**SMALL, "rope_parameters": rope})


def test_the_probe_reports_the_shape_of_the_kv():
    assert load("qwen3").attention_shape == (3, 4, 2, 16)
    assert load("gpt2").attention_shape == (3, 4, 4, 8)


def test_random_weights_come_from_the_seed_and_leave_the_global_stream_alone():
    torch.manual_seed(9)
    expected = torch.rand(3)
    torch.manual_seed(9)
    models = [load_dummy("LlamaConfig", SMALL, seed=seed, prepack=False) for seed in (1, 1, 2)]
    assert torch.equal(torch.rand(3), expected)
    first, same, other = (model.module.lm_head.weight for model in models)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_names_that_are_not_known():
    with pytest.raises(
        ValueError, match="dtype 'int4' is not known: choose one of float32, bfloat16, float16"
    ):
        load_dummy("LlamaConfig", SMALL, dtype="int4")
    for name in ("LlamaConfg", "AutoModelForCausalLM"):
        with pytest.raises(ValueError, match=f"architecture '{name}': transformers has no config class"):
            load_dummy(name, SMALL)


@needs_onednn
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_packed_linear_equals_the_plain_one(dtype, bias):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        plain = nn.Linear(48, 40, bias=bias, dtype=dtype)
        x = torch.randn(2, 5, 48).to(dtype)
    compute_dtype, _ = compute_dtype_on_cpu(dtype)
    with torch.inference_mode():
        found = PackedLinear(plain.weight, plain.bias, compute_dtype)(x)
        expected = nn.functional.linear(
            x.float(), plain.weight.float(), None if not bias else plain.bias.float()
        )
    assert found.dtype == dtype
    tolerance = 4 * torch.finfo(dtype).eps  # rounded once at the end, sums of 48 in at least float32
    torch.testing.assert_close(found.float(), expected, rtol=tolerance, atol=tolerance)


@needs_onednn
@pytest.mark.parametrize("name", ["llama", "gpt2", "opt"])
def test_packing_replaces_every_linear_and_frees_its_weight(name):
    plain = build(name)
    size = sum(x.nbytes for x in (*plain.parameters(), *plain.buffers()))
    embedding = plain.get_input_embeddings().weight
    is_tied = plain.get_output_embeddings().weight is embedding
    model = prepare(plain)
    assert model.packing.num_packed == sum(isinstance(m, PackedLinear) for m in model.module.modules()) > 12
    assert model.packing.compute_dtype is torch.float32
    assert model.packing.reason == ""
    assert not any(type(m) in (nn.Linear, transformers.pytorch_utils.Conv1D) for m in model.module.modules())
    assert is_tied == (name != "llama")
    # Only a tied embedding is held twice: as a table, and packed as the output layer. Biases are in both.
    biases = sum(
        m.bias_packed.nbytes for m in model.module.modules() if getattr(m, "bias_packed", None) is not None
    )
    assert model.weight_bytes + biases == size + (embedding.nbytes if is_tied else 0)


@needs_onednn
def test_the_type_of_the_products_is_recorded_where_the_cpu_lacks_the_models_own(monkeypatch):
    monkeypatch.setattr(linear, "compute_dtype_on_cpu", lambda dtype: (torch.float32, "no instructions"))
    model = load_dummy("LlamaConfig", SMALL, dtype="bfloat16")
    assert (model.packing.compute_dtype, model.packing.reason) == (torch.float32, "no instructions")
    assert model.module.model.layers[0].mlp.up_proj.packed.dtype is torch.float32
    specs = [request("a", prompts((9,))[0], 6)]
    recorder = run(model, specs)
    assert len(recorder.tokens["a", 0]) == 6


def test_without_onednn_the_plain_layers_stay_and_the_reason_is_told(monkeypatch, caplog):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    with caplog.at_level(logging.WARNING):
        packing = pack_linears(build("llama"))
    assert (packing.num_packed, packing.compute_dtype) == (0, None)
    assert packing.reason == "this build of torch has no oneDNN"
    assert "not prepacked: this build of torch has no oneDNN" in caplog.text


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_models_are_served(dtype):
    model = load_dummy("LlamaConfig", SMALL, dtype=dtype)
    specs = [request(f"r{i}", prompt, 6) for i, prompt in enumerate(prompts((5, 17)))]
    recorder = run(model, specs, chunked=True)
    assert [len(tokens) for tokens in recorder.tokens.values()] == [6, 6]
