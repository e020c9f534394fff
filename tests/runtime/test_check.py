"""What a model asks of attention is found out when it is loaded: served right, or refused with a reason."""

import pytest
import torch
import transformers
from torch import nn

from engine.runtime import check, reduced
from engine.runtime.check import differs
from engine.runtime.model import load_dummy, prepare
from engine.runtime.reach import Reach, UnsupportedModelError
from tests.runtime.support import CONFIGS, SMALL, build, generate, loud, prompts, request, run

LLAMA4 = {
    **SMALL,
    "num_hidden_layers": 4,  # the fourth has no RoPE, no chunks, and a query scale
    "head_dim": 8,
    "intermediate_size_mlp": 48,
    "num_local_experts": 2,
    "attention_chunk_size": 1024,
    "attn_temperature_tuning": False,
}
QWEN2_MOE = {
    **SMALL,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 24,
    "use_sliding_window": True,
    "sliding_window": 8,
    "max_window_layers": 3,
}
SERVED = {
    "llama4, chunks": ("Llama4TextConfig", {**LLAMA4, "attention_chunk_size": 16}),
    "llama4, query scale": (
        "Llama4TextConfig",
        {**LLAMA4, "attn_temperature_tuning": True, "floor_scale": 8, "attn_scale": 1.0},
    ),
    "qwen2-moe, window": ("Qwen2MoeConfig", QWEN2_MOE),
    "stablelm": ("StableLmConfig", {**SMALL, "pad_token_id": 0}),
    "nemotron": ("NemotronConfig", {**SMALL, "head_dim": 8}),
}


def loud_model(architecture, config):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = transformers.AutoModelForCausalLM.from_config(
            getattr(transformers, architecture)(**config)
        ).eval()
        loud(model)
    return model


@pytest.mark.parametrize("name", SERVED)
def test_tokens_of_models_whose_keywords_do_not_say_it_all(name):
    plain = loud_model(*SERVED[name])
    some = prompts((5, 19, 40))
    expected = [generate(plain, prompt, 16) for prompt in some]
    model = prepare(plain)
    for chunked in (False, True):
        specs = [request(f"r{i}", prompt, 16) for i, prompt in enumerate(some)]
        recorder = run(model, specs, chunked=chunked)
        assert [recorder.tokens[spec.request_id, 0] for spec in specs] == expected


def test_what_layers_see_is_learned_from_the_masks():
    reaches = prepare(loud_model(*SERVED["llama4, chunks"])).decoder.context.reaches
    assert reaches == {0: Reach(chunk=16), 1: Reach(chunk=16), 2: Reach(chunk=16), 3: Reach()}
    reaches = prepare(loud_model(*SERVED["qwen2-moe, window"])).decoder.context.reaches
    assert reaches == {0: Reach(window=8), 1: Reach(), 2: Reach(window=8)}


def test_positions_are_told_through_a_cache_only_where_they_must_be():
    assert not prepare(build("llama")).decoder.counts_seen
    assert prepare(loud_model(*SERVED["llama4, query scale"])).decoder.counts_seen


def subclass(name, **methods):
    """A model of `CONFIGS` whose class differs in these methods."""
    model = build(name)
    model.__class__ = type("Odd", (type(model),), methods)
    return model


def refuses(model, reason, **options):
    with pytest.raises(UnsupportedModelError, match=f"Odd cannot be served: .*{reason}"):
        prepare(model, **options)


def test_a_decoder_that_ignores_position_ids_is_refused_in_these_words():
    def forward(self, input_ids=None, logits_to_keep=0, use_cache=None, **kwargs):
        return super(type(self), self).forward(
            input_ids=input_ids, use_cache=False, logits_to_keep=logits_to_keep
        )

    model = subclass("gpt2", forward=forward)
    refuses(model, r"but not in parts: .*takes no notice of position_ids: it counts positions over")


def test_an_exception_in_the_trial_step_is_the_reason():
    def forward(self, input_ids=None, position_ids=None, **kwargs):
        if position_ids is not None and not torch.equal(position_ids[0], torch.arange(input_ids.shape[1])):
            raise IndexError("positions must be 0, 1, 2, ...\nand nothing else")
        return super(type(self), self).forward(input_ids=input_ids, position_ids=position_ids, **kwargs)

    refuses(
        subclass("llama", forward=forward),
        r"not in parts: a step ends in IndexError: positions must be 0, 1, 2, \.\.\. and nothing else",
    )


def test_what_attention_adds_beyond_the_interface_is_found_by_comparison():
    class Sharper(nn.Module):
        """Sharpens queries by what it knows of the layer's own attention: nothing comes by the interface."""

        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            eager = self.inner.config._attn_implementation == "eager"
            return self.inner.q_proj_(x) * (1.01 if eager else 1.0)

    model = build("llama")
    attention = model.model.layers[1].self_attn
    sharper = Sharper(nn.Module())
    sharper.inner.q_proj_, sharper.inner.config = attention.q_proj, model.config
    attention.q_proj = sharper
    with pytest.raises(UnsupportedModelError, match="one sequence alone, in one piece, is not served right"):
        prepare(model)


def test_a_mask_that_is_not_positions_alone_is_refused(monkeypatch):
    from transformers.models.llama import modeling_llama

    plain = modeling_llama.create_causal_mask

    def sees_the_first_two(**options):
        return plain(**options, or_mask_function=lambda batch, head, query, slot: slot < 2)

    monkeypatch.setattr(modeling_llama, "create_causal_mask", sees_the_first_two)
    with pytest.raises(UnsupportedModelError, match="its mask is neither causal nor causal within"):
        prepare(build("llama"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_judged_in_float32_and_left_as_it_was(dtype):
    model = build("gemma2").to(dtype)
    before = {name: x.clone() for name, x in model.state_dict().items()}
    prepare(model, prepack=False)
    after = model.state_dict()
    assert all(after[name].dtype == x.dtype and torch.equal(after[name], x) for name, x in before.items())
    wrong = subclass("gemma2").to(dtype)
    for layer in wrong.model.layers:  # a scale that is off by a hundredth would drown in bfloat16's rounding
        layer.self_attn.register_forward_pre_hook(_scale_if_served, with_kwargs=True)
    refuses(wrong, "logits at positions")


def _scale_if_served(module, args, kwargs):
    factor = 1.0 if module.config._attn_implementation == "eager" else 1.01
    return args, kwargs | {"hidden_states": kwargs["hidden_states"] * factor}


def test_of_a_large_model_the_first_layers_are_checked(monkeypatch):
    monkeypatch.setattr(check, "WHOLE_COST", 0)
    ran = set()
    model = loud_model(*SERVED["llama4, chunks"])
    for i, layer in enumerate(model.model.layers):
        layer.register_forward_pre_hook(lambda *_, i=i: ran.add((i, model.config._attn_implementation)))
    prepare(model, prepack=False)
    assert {i for i, name in ran if name == "eager"} == {0, 1, 2, 3}  # the fourth is of a kind of its own
    ran.clear()
    llama = build("llama").to(torch.bfloat16)
    for i, layer in enumerate(llama.model.layers):
        layer.register_forward_pre_hook(lambda module, *_, i=i: ran.add((i, module.mlp.up_proj.weight.dtype)))
    prepare(llama, prepack=False)
    assert {i for i, dtype in ran if dtype is torch.float32} == {0}
    odd = subclass("gemma2")
    odd.model.layers[0].self_attn.register_forward_pre_hook(_scale_if_served, with_kwargs=True)
    refuses(odd, "hidden states at positions")


def test_limits_beyond_a_cheap_check_are_lowered_meanwhile():
    name, config = CONFIGS["mistral"]
    model = load_dummy(name, {**config, "sliding_window": 100, "max_position_embeddings": 4096})
    assert model.decoder.context.reaches[0] == Reach(window=100)
    assert model.module.config.sliding_window == 100
    with reduced.lowered_limits(model.module, 64, 24):
        assert model.module.config.sliding_window == 24
    odd = loud_model("Llama4TextConfig", {**LLAMA4, "attn_temperature_tuning": True, "attn_scale": 1.0})
    assert odd.config.floor_scale == 8192
    assert prepare(odd).decoder.counts_seen  # the scale was in force


def test_a_comparison_does_not_pass_on_what_is_not_finite():
    fine = torch.ones(4, 3)
    broken = fine.clone()
    broken[1, 1] = torch.nan
    assert differs(fine, fine, fine) is None
    assert differs(fine + 1e-6, fine, fine) is None
    assert "differ by 0.001" in differs(fine + 1e-3, fine, fine)
    assert differs(broken, fine, fine) == "are not finite where the model's own are"
    assert differs(fine, broken, broken) == "are not finite where the model's own are"
    assert differs(broken, broken, broken) is None  # one value of twelve, in both
    nothing = fine * torch.nan
    assert "not finite in the model's own forward pass either" in differs(nothing, nothing, nothing)
    assert "not finite in the model's own" in differs(fine, nothing, nothing)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_one_broken_embedding_does_not_keep_a_model_from_serving_but_broken_layers_do(value):
    model = build("llama")
    model.model.embed_tokens.weight.data[7] = value
    prepare(model)
    model = subclass("llama")
    model.model.layers[1].mlp.up_proj.weight.data[3] = float("nan")
    refuses(model, "are not finite in the model's own forward pass either: its weights overflow")
    model = subclass("llama")
    model.model.embed_tokens.weight.data[:] = float("nan")
    refuses(model, "its embeddings are not finite")


def test_a_failed_check_leaves_the_config_as_it_was():
    model = subclass("mistral")
    model.config.sliding_window = 100
    model.model.layers[0].self_attn.register_forward_pre_hook(_scale_if_served, with_kwargs=True)
    refuses(model, "logits")
    assert model.config.sliding_window == 100
    assert model.config._attn_implementation == "pagetwin"


def test_two_threads_may_run_one_model():
    """The context of attention belongs to the thread that runs a step."""
    from concurrent.futures import ThreadPoolExecutor

    model = prepare(build("llama"))
    some = prompts((9, 30))
    alone = [run(model, [request("a", prompt, 12)]).tokens["a", 0] for prompt in some]
    with ThreadPoolExecutor(2) as threads:
        both = list(
            threads.map(lambda prompt: run(model, [request("a", prompt, 12)]).tokens["a", 0], some * 3)
        )
    assert both == alone * 3
