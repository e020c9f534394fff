"""Tiny models, their own greedy answers, and short ways to run requests through the engine."""

import random
from collections import defaultdict
from dataclasses import dataclass, field, replace

import torch
import transformers

from engine.core.drive import drive
from engine.core.events import ENDINGS
from engine.core.policies.admission import FirstChunk, FullPrompt
from engine.core.policies.base import Policies
from engine.core.policies.batching import DecodeFirst, PrefillFirst
from engine.core.policies.order import Fcfs
from engine.core.policies.reservation import OnDemand
from engine.core.policies.restore import Recompute
from engine.core.policies.victim import LastAdmitted
from engine.core.scheduler import Scheduler
from engine.core.serving import Serving
from engine.core.sources import Listed
from engine.core.spec import Limits, RequestSpec
from engine.runtime.backend import TorchBackend
from engine.runtime.clock import VirtualClock
from engine.runtime.model import prepare

VOCAB_SIZE = 101
SMALL = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,  # so that a wrong mask or position changes the tokens
}
OPT = {**SMALL, "ffn_dim": 48, "word_embed_proj_dim": 32, "init_std": 0.3}
del OPT["num_key_value_heads"], OPT["intermediate_size"], OPT["initializer_range"]
GPT2 = {
    "vocab_size": VOCAB_SIZE,
    "n_embd": 32,
    "n_layer": 3,
    "n_head": 4,
    "n_positions": 128,
    "initializer_range": 0.3,
}
NEOX = {key: value for key, value in SMALL.items() if key != "num_key_value_heads"}
GPT_OSS = {**SMALL, "head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8}

CONFIGS = {
    "llama": ("LlamaConfig", SMALL),
    "qwen2": ("Qwen2Config", SMALL),
    "qwen3": ("Qwen3Config", {**SMALL, "head_dim": 16}),
    "mistral": ("MistralConfig", {**SMALL, "sliding_window": 11}),
    "opt": ("OPTConfig", OPT),
    "gpt2": ("GPT2Config", GPT2),
    "gemma2": ("Gemma2Config", {**SMALL, "head_dim": 8, "sliding_window": 8, "attn_logit_softcapping": 2.0}),
    "gemma3": ("Gemma3TextConfig", {**SMALL, "head_dim": 8, "sliding_window": 8, "num_hidden_layers": 6}),
    "phi3": ("Phi3Config", {**SMALL, "pad_token_id": 0}),
    "mixtral": ("MixtralConfig", {**SMALL, "num_local_experts": 4}),
    "qwen3_moe": ("Qwen3MoeConfig", {**SMALL, "head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2}),
    "gpt_neox": ("GPTNeoXConfig", NEOX),
    "gpt_oss": ("GptOssConfig", GPT_OSS),
}
GENERATED = ("llama", "qwen2", "qwen3", "mistral", "opt", "gpt2")


def build(name, seed=3):
    """A plain transformers model in float32 with random weights, biases included."""
    architecture, config = CONFIGS[name]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(
            getattr(transformers, architecture)(**config)
        ).eval()
        loud(model)
    return model


def loud(model):
    """Random biases, and weights of a spread at which a wrong mask or position changes the tokens."""
    for parameter in model.requires_grad_(False).parameters():
        if parameter.ndim == 1 and not parameter.any():
            torch.nn.init.normal_(parameter, std=0.3)
        elif parameter.ndim >= 2 and 0 < float(parameter.std()) < 0.1:
            parameter.mul_(0.3 / float(parameter.std()))


def load(name, prepack=True):
    """The same model, ready to be served."""
    return prepare(build(name), prepack=prepack)


def prompts(lengths, seed=5):
    """A prompt of each length."""
    rng = random.Random(seed)
    return [tuple(rng.randrange(VOCAB_SIZE) for _ in range(length)) for length in lengths]


def generate(model, prompt, num_tokens):
    """Greedy continuation by transformers itself."""
    ids = torch.tensor([prompt])
    model.generation_config.eos_token_id = None
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=num_tokens, do_sample=False, pad_token_id=0
    )
    return out[0, len(prompt) :].tolist()


def request(request_id, prompt, num_output_tokens, **options):
    """A request whose every sequence ends after so many tokens."""
    return RequestSpec(
        request_id, 0, len(prompt), num_output_tokens, num_output_tokens, prompt_token_ids=prompt, **options
    )


@dataclass
class Recorder:
    """Tokens of each sequence, preemptions, and endings."""

    tokens: dict = field(default_factory=lambda: defaultdict(list))
    preemptions: list = field(default_factory=list)
    endings: dict = field(default_factory=dict)
    num_copies: int = 0
    starts_ns: list = field(default_factory=list)
    ends_ns: list = field(default_factory=list)
    closed_ns: list = field(default_factory=list)

    refusals: dict = field(default_factory=dict)

    def arrived(self, spec, now_ns):
        pass

    def refused(self, spec, reason, now_ns):
        self.refusals[spec.request_id] = reason

    def stepped(self, plan, result, start_ns, end_ns, events):
        self.preemptions += plan.preemptions
        self.num_copies += sum(len(t.src) for t in plan.transfers if t.kind == "copy")
        for key, token_id in (result.token_ids or {}).items():
            self.tokens[key].append(token_id)
        self.endings |= {e.request_id: e for e in events if e.kind in ENDINGS}
        self.starts_ns.append(start_ns)
        self.ends_ns.append(end_ns)

    def closed(self, now_ns):
        self.closed_ns.append(now_ns)


LIMITS = Limits(max_num_seqs=8, max_num_batched_tokens=128, max_model_len=128)
CHUNKED = replace(LIMITS, max_num_batched_tokens=13)


def policies(restore, *, chunked):
    """First come, first served; prompts in chunks between decodes, or whole prompts first."""
    batching = DecodeFirst() if chunked else PrefillFirst()
    admission = FirstChunk() if chunked else FullPrompt()
    return Policies(Fcfs(), admission, batching, LastAdmitted(), restore, OnDemand())


def run(model, specs, *, chunked=False, restore=None, num_blocks=200, clock=None, in_flight=1, **pool):
    """Serve some requests to their end; `pool` goes to the backend."""
    limits = CHUNKED if chunked else LIMITS
    backend = TorchBackend(model, limits, num_blocks=num_blocks, **{"block_size": 4, **pool})
    scheduler = Scheduler(backend.capacity, limits, policies(restore or Recompute(), chunked=chunked))
    recorder = Recorder()
    drive(Serving(scheduler, backend, [recorder]), Listed(specs), clock or VirtualClock(), in_flight)
    return recorder
