"""The tokenizer and the chat template of a checkpoint directory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from engine.core.errors import UserError


class CheckpointTokenizer:
    """What transformers reads from a checkpoint directory, when somebody first asks for a token.

    Raises:
        UserError: at that moment, if there is no directory, no transformers, or no tokenizer in it.
    """

    def __init__(self, path: str | None = None) -> None:
        self._path = path

    @property
    def name(self) -> str:
        """The directory's name."""
        return Path(self._path or "").resolve().name

    @cached_property
    def _tokenizer(self) -> Any:
        if self._path is None:
            raise UserError(
                "workload.tokenizer.path names no checkpoint directory: set it, or choose model=checkpoint "
                "model.path=... whose tokenizer it is (sharegpt_json can do with workload.chars_per_token=4)"
            )
        try:
            from transformers import AutoTokenizer  # an extra: a simulation of lengths does without
        except ImportError as error:
            raise UserError(
                "workload.tokenizer needs transformers, which comes with the extra: "
                f"pip install 'pagetwin[engine]' ({error}). "
                "workload=sharegpt_json can do without: workload.chars_per_token=4"
            ) from error
        if not Path(self._path).is_dir():
            raise UserError(f"workload.tokenizer.path: there is no directory {self._path}")
        try:
            return AutoTokenizer.from_pretrained(self._path, local_files_only=True)
        except Exception as error:  # whatever transformers raises, it is about this directory
            text = " ".join(str(error).split())[:200]
            raise UserError(f"{self._path}: transformers finds no tokenizer here: {text}") from error

    def stop_token_ids(self) -> tuple[int, ...]:
        """The end-of-sequence token; none if the tokenizer has none."""
        eos_token_id = self._tokenizer.eos_token_id
        return () if eos_token_id is None else (eos_token_id,)

    def encode(self, text: str) -> list[int]:
        """Token ids, with the special tokens that the checkpoint puts around a text (BOS, say)."""
        return list(self._tokenizer(text)["input_ids"])

    def chat(self, messages: Sequence[Mapping[str, object]]) -> list[int]:
        """Token ids of a conversation; the template says which special tokens there are.

        Raises:
            UserError: there is no template, or it refuses these messages.
        """
        if self._tokenizer.chat_template is None:
            raise UserError(
                f"{self._path}: the tokenizer has no chat template, which messages need: give prompts as text"
            )
        try:
            text = self._tokenizer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=True
            )
        except Exception as error:  # a template raises what it likes
            raise UserError(f"the chat template of {self._path} refuses the messages: {error}") from error
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text, without special tokens."""
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=True))
