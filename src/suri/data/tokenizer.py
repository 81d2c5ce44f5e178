"""What rows and prompts need of a tokenizer."""

from array import array
from collections.abc import Mapping, Sequence
from typing import Protocol


class Tokenizer(Protocol):
    """Text to ids and back; no BOS or EOS is added, and text like `</s>` stays text."""

    @property
    def eos_id(self) -> int:
        """The token that ends an answer."""
        ...

    @property
    def bos_id(self) -> int | None:
        """The token that the base's own tokenizer puts before a text; None: it puts none."""
        ...

    @property
    def special_tokens(self) -> Mapping[str, int]:
        """Tokens that no text is turned into, with their ids."""
        ...

    @property
    def names(self) -> Mapping[str, str]:
        """Special tokens by the names that templates use: bos_token, eos_token, ..."""
        ...

    @property
    def chat_template(self) -> str | None:
        """The base's own template of conversations (Jinja), if it has one."""
        ...

    @property
    def fingerprint(self) -> str:
        """The same for tokenizers that give the same ids."""
        ...

    def encode(self, text: str) -> list[int]:
        """The ids of a text."""
        ...

    def encode_many(self, texts: Sequence[str]) -> list["array[int]"]:
        """The ids of many texts, in arrays of C ints: faster for each."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens left out."""
        ...
