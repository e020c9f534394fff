"""What a workload of texts asks of a tokenizer: the checkpoint's own, where there is one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

Message = Mapping[str, object]
"""One turn of a conversation: role and content, and whatever else the chat template knows."""


class Tokenizer(Protocol):
    """Text to token ids and back (engine.runtime.tokenizer)."""

    @property
    def name(self) -> str:
        """Of the checkpoint, for messages."""
        ...

    def stop_token_ids(self) -> tuple[int, ...]:
        """The tokens with which the model ends an answer."""
        ...

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, with the special tokens that the checkpoint puts around one."""
        ...

    def chat(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a conversation in the checkpoint's chat template, up to where the answer begins.

        Raises:
            UserError: there is no template, or it refuses these messages.
        """
        ...

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of an answer, without special tokens."""
        ...
