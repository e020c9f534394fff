"""Tiny decoders with random weights, each plain and served, with one token that may be poison."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from functools import cache
from random import Random
from typing import Any

import torch
import transformers

from engine.core.events import EventKind
from engine.runtime.model import LoadedModel, prepare

WINDOW = 64
VOCAB_SIZE = 101
NUM_ANSWERED = 32
"""Tokens that are generated for a prompt."""
NUM_PROMPTS = 25
"""Of each model, without the bad token and as many with it."""
BAD_TOKEN = 100
"""Prompts hold it only if they are to."""
POISONS = ("none", "nan", "inf", "1e30")
"""What its embedding is made of; none: it is a token like others."""

_SMALL = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": WINDOW,
    "initializer_range": 0.3,  # so that a wrong mask or position changes the tokens
    "tie_word_embeddings": False,  # a poisoned embedding must not poison the output layer
    "bos_token_id": None,
    "eos_token_id": None,
}
_GPT2 = {
    "vocab_size": VOCAB_SIZE,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": WINDOW,
    "initializer_range": 0.3,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": None,
}
_CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", _SMALL),
    "gpt2": ("GPT2Config", _GPT2),
    "mistral": ("MistralConfig", {**_SMALL, "sliding_window": 11}),
    "gemma2": ("Gemma2Config", {**_SMALL, "head_dim": 8, "sliding_window": 8, "attn_logit_softcapping": 2.0}),
}
NAMES = tuple(_CONFIGS)
_WINDOWED = ("mistral", "gemma2")


@dataclass(frozen=True, slots=True)
class Answer:
    """What transformers' `generate` says to a prompt, greedily."""

    tokens: tuple[int, ...]
    """Up to the first step whose logits are not finite."""
    ending: EventKind
    """How the request must end."""


@dataclass(frozen=True, slots=True)
class TinyModel:
    """A plain model and the same model on the engine."""

    name: str
    poison: str
    plain: Any = field(repr=False)
    served: LoadedModel = field(repr=False)

    @classmethod
    def of(cls, name: str, poison: str) -> TinyModel:
        """Built once."""
        return _model(name, poison)

    def prompt(self, rng: Random, *, poisoned: bool) -> tuple[int, ...]:
        """One of NUM_PROMPTS, so that most answers are known already."""
        number = rng.randrange(NUM_PROMPTS)
        own = Random(f"{self.name}/{number}/{poisoned}")
        length = own.choice((1, 2, *own.choices(range(3, 21), k=3), own.randint(3, WINDOW - 1), WINDOW - 1))
        prompt = [own.randrange(BAD_TOKEN) for _ in range(length)]
        if poisoned:
            prompt[own.randrange(length)] = BAD_TOKEN
        return tuple(prompt)

    def answer(self, prompt: tuple[int, ...], num_tokens: int) -> Answer | None:
        """What must come; None if transformers cannot tell.

        With a window, its mask is added to scores, so that what is not finite reaches beyond the window.
        """
        known = _answer(self.name, self.poison, prompt)
        num_tokens = min(num_tokens, WINDOW - len(prompt))
        is_whole = num_tokens <= len(known)
        meets_poison = BAD_TOKEN in (*prompt, *known[:num_tokens])
        if self.name in _WINDOWED and meets_poison and self.poison in ("nan", "inf"):
            return None
        return Answer(known[:num_tokens], EventKind.FINISHED if is_whole else EventKind.FAILED)


@cache
def _model(name: str, poison: str) -> TinyModel:
    architecture, options = _CONFIGS[name]
    with torch.random.fork_rng():
        torch.manual_seed(3)
        config = getattr(transformers, architecture)(**options)
        plain: Any = transformers.AutoModelForCausalLM.from_config(config).eval()  # type: ignore[no-untyped-call]
        for parameter in plain.parameters():
            if parameter.ndim == 1 and not parameter.any():
                torch.nn.init.normal_(parameter, std=0.3)
    served = prepare(copy.deepcopy(plain))
    if poison != "none":
        with torch.no_grad():
            modules: tuple[Any, ...] = (plain, served.module)
            for module in modules:
                embedding = module.get_input_embeddings()
                embedding.weight[BAD_TOKEN] = float(poison)
    return TinyModel(name, poison, plain, served)


@cache
def _answer(name: str, poison: str, prompt: tuple[int, ...]) -> tuple[int, ...]:
    """All tokens that the window leaves room for, NUM_ANSWERED at most."""
    ids = torch.tensor([prompt])
    out = _model(name, poison).plain.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=min(NUM_ANSWERED, WINDOW - len(prompt)),
        do_sample=False,
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
    )
    tokens: list[int] = out.sequences[0, len(prompt) :].tolist()
    finite = [bool(logits[0].max().isfinite()) for logits in out.logits]
    return tuple(tokens[: finite.index(False)] if False in finite else tokens)
