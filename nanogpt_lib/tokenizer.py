"""Text to token ids and back: GPT-2's byte-pair encoding and plain characters, one interface.

Exported from notebooks/03_sampling.ipynb; edit the notebook, not this file.
"""

import re

import numpy as np

from nanogpt_lib.support.errors import UserError
from nanogpt_lib.support.vocabulary import (
    decode_tokens,
    encode_gpt2,
    extended_encoding,
    without_surrogates,
)


class GPT2Tokenizer:
    """GPT-2's byte-level BPE: 50,257 tokens that can encode any text.

    `added` names additional tokens of fine-tuned models, numbered from 50257.
    """

    vocab_size = 50257
    eot = 50256  # <|endoftext|>, placed before every document in training

    def __init__(self, added: list[str] | None = None):
        self.added = list(added or [])
        self.vocab_size = 50257 + len(self.added)
        self.special = {name: 50256 + i for i, name in enumerate(["<|endoftext|>", *self.added])}
        self.encoding = extended_encoding(tuple(self.added))

    def encode(self, text: str) -> list[int]:
        """Text → ids. A literal `<|endoftext|>` in the text is ordinary text, never the token."""
        return self.encode_to_numpy(text).tolist()

    def encode_to_numpy(self, text: str) -> np.ndarray:
        """The same ids as a uint32 array, which is faster for long texts."""
        return encode_gpt2(text)

    def decode_bytes(self, ids: list[int]) -> bytes:
        """Ids → UTF-8 bytes; a token may end in the middle of a character."""
        return decode_tokens(self.encoding, ids)

    def decode(self, ids: list[int]) -> str:
        """Ids → text; invalid UTF-8 becomes U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def describe(self) -> dict:
        """What meta.json and checkpoints store; the inverse of `tokenizer_from`."""
        return {"name": "gpt2", "added": self.added} if self.added else {"name": "gpt2"}


class CharTokenizer:
    """One token per character of a fixed alphabet, in sorted order."""

    eot = None
    special: dict[str, int] = {}  # every token is a character

    def __init__(self, characters: str):
        self.characters = "".join(sorted(set(characters)))
        self.vocab_size = len(self.characters)
        self.ids = {c: i for i, c in enumerate(self.characters)}

    def encode(self, text: str) -> list[int]:
        """Text → ids. Raises UserError for a character outside the alphabet."""
        if strange := sorted(set(text) - set(self.characters)):
            raise UserError(
                f"character {strange[0]!r} is not in the alphabet of {self.vocab_size} characters"
            )
        return [self.ids[c] for c in text]

    def decode_bytes(self, ids: list[int]) -> bytes:
        """Ids → UTF-8 bytes."""
        return without_surrogates(self.decode(ids)).encode("utf-8")

    def decode(self, ids: list[int]) -> str:
        """Ids → text; raises UserError for an id outside the alphabet."""
        if wrong := [i for i in ids if not 0 <= i < self.vocab_size]:
            raise UserError(f"id {wrong[0]} is not among the {self.vocab_size} tokens")
        return "".join(self.characters[i] for i in ids)

    def describe(self) -> dict:
        """What meta.json and checkpoints store; the inverse of `tokenizer_from`."""
        return {"name": "char", "characters": self.characters}


def tokenizer_from(description: dict) -> GPT2Tokenizer | CharTokenizer:
    """Rebuild a tokenizer from `describe()`; raises UserError for an unknown one."""
    if description.get("name") == "gpt2":
        return GPT2Tokenizer(description.get("added"))
    if description.get("name") == "char" and isinstance(description.get("characters"), str):
        return CharTokenizer(description["characters"])
    raise UserError(f"unknown tokenizer {description.get('name')!r}; known: gpt2, char")


def same_tokenizer(a, b) -> bool:
    """Whether two tokenizers encode every text alike; an unknown one (None) equals none.

    Equal sizes prove nothing: two alphabets of 65 characters fit the same model.
    """
    return a is not None and b is not None and a.describe() == b.describe()


def encode_prompt(tokenizer: GPT2Tokenizer | CharTokenizer, text: str) -> list[int]:
    """Text → ids; unlike `encode`, it turns names of special tokens into those tokens."""
    names = sorted(tokenizer.special, key=len, reverse=True)  # the longest name first
    parts = re.split("(" + "|".join(map(re.escape, names)) + ")", text) if names else [text]
    ids = ([tokenizer.special[p]] if p in tokenizer.special else tokenizer.encode(p) for p in parts)
    return [i for part in ids for i in part]
