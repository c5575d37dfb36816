"""Text to token ids and back: GPT-2's byte-pair encoding and plain characters, one interface.

Exported from notebooks/03_sampling.ipynb; edit the notebook, not this file.
"""

from nanogpt_lib.support.errors import UserError
from nanogpt_lib.support.vocabulary import gpt2_encoding


class GPT2Tokenizer:
    """GPT-2's byte-level BPE: 50,257 tokens, any text can be encoded."""

    vocab_size = 50257
    eot = 50256  # <|endoftext|>, placed before every document in training

    def __init__(self):
        self.encoding = gpt2_encoding()

    def encode(self, text: str) -> list[int]:
        """Text → ids. A literal `<|endoftext|>` in the text is ordinary text, never the token."""
        return self.encoding.encode_ordinary(text)

    def decode_bytes(self, ids: list[int]) -> bytes:
        """Ids → UTF-8 bytes; a token may end in the middle of a character."""
        return self.encoding.decode_bytes(ids)

    def decode(self, ids: list[int]) -> str:
        """Ids → text; bytes that are no valid UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def describe(self) -> dict:
        """What meta.json and checkpoints store; `tokenizer_from` turns it back."""
        return {"name": "gpt2"}


class CharTokenizer:
    """One token per character of a fixed alphabet, in sorted order."""

    eot = None

    def __init__(self, characters: str):
        self.characters = "".join(sorted(set(characters)))
        self.vocab_size = len(self.characters)
        self.ids = {c: i for i, c in enumerate(self.characters)}

    def encode(self, text: str) -> list[int]:
        """Text → ids. Raises UserError for a character outside the alphabet."""
        if strange := sorted(set(text) - set(self.characters)):
            raise UserError(
                f"character {strange[0]!r} is not among the {self.vocab_size} known ones"
            )
        return [self.ids[c] for c in text]

    def decode_bytes(self, ids: list[int]) -> bytes:
        """Ids → UTF-8 bytes."""
        return self.decode(ids).encode("utf-8")

    def decode(self, ids: list[int]) -> str:
        """Ids → text."""
        return "".join(self.characters[i] for i in ids)

    def describe(self) -> dict:
        """What meta.json and checkpoints store; `tokenizer_from` turns it back."""
        return {"name": "char", "characters": self.characters}


def tokenizer_from(description: dict) -> GPT2Tokenizer | CharTokenizer:
    """Rebuild a tokenizer from `describe()`; raises UserError for an unknown one."""
    if description.get("name") == "gpt2":
        return GPT2Tokenizer()
    if description.get("name") == "char" and isinstance(description.get("characters"), str):
        return CharTokenizer(description["characters"])
    raise UserError(f"unknown tokenizer {description.get('name')!r}; known: gpt2, char")
