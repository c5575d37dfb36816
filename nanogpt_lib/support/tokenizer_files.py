"""Tokenizer files: reading those of a checkpoint folder, and writing ours for transformers.

A tokenizer is represented here by its description, the dict that `describe()` of tokenizer.py
returns.
"""

import hashlib
import json
from functools import cache
from pathlib import Path

from nanogpt_lib.support.errors import UserError
from nanogpt_lib.support.huggingface import OPENAI, find_file
from nanogpt_lib.support.vocabulary import GPT2_FILES, gpt2_encoding

TOKENS = 50257  # in GPT-2's vocabulary
PADDED = 50304  # rows of wte in nanoGPT and build-nanogpt
GPT2 = {"name": "gpt2"}
NEVER_GPT2 = ("tokenizer.model", "spiece.model", "vocab.txt")  # SentencePiece and BERT
CUT = {"type": "Split", "pattern": {"Regex": "[\\s\\S]"}, "behavior": "Isolated", "invert": False}
Found = tuple[dict | None, str]  # a description (None if unknown), and text saying how it was found


def merge_of(token: bytes, ids: dict[bytes, int]) -> tuple[bytes, bytes]:
    """The two tokens that GPT-2 merged into `token`: merge its bytes, lowest id first, down to two.

    `ids` maps every token to its id, which is also the order in which merges were learned.
    """
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        pairs = [a + b for a, b in zip(parts[:-1], parts[1:], strict=True)]
        first = min(range(len(pairs)), key=lambda i: ids.get(pairs[i], len(ids)))
        parts[first : first + 2] = [pairs[first]]
    return parts[0], parts[1]


@cache
def gpt2_files() -> dict[str, str]:
    """vocab.json and merges.txt of GPT-2, byte for byte as OpenAI published them."""
    encoding = gpt2_encoding()
    tokens = [encoding.decode_single_token_bytes(i) for i in range(TOKENS - 1)]
    ids = {token: i for i, token in enumerate(tokens)}
    # these files show every byte as a visible character: itself, or one from U+0100 on
    seen = [*range(33, 127), *range(161, 173), *range(174, 256)]
    shown = {b: chr(b) for b in seen}
    shown |= {b: chr(256 + n) for n, b in enumerate(b for b in range(256) if b not in seen)}

    def show(token: bytes) -> str:
        return "".join(shown[b] for b in token)

    vocab = {show(token): i for i, token in enumerate(tokens)} | {"<|endoftext|>": TOKENS - 1}
    merges = [" ".join(map(show, merge_of(token, ids))) for token in tokens[256:]]
    return {
        "vocab.json": json.dumps(vocab),
        "merges.txt": "\n".join(["#version: 0.2", *merges, ""]),
    }


def char_files(tokenizer) -> dict[str, str]:
    """tokenizer.json of a CharTokenizer: split into characters and look each one up."""
    vocab = {character: i for i, character in enumerate(tokenizer.characters)}
    whole = {
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": CUT,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": ""},
        "decoder": {"type": "Fuse"},  # join without spaces
    }
    return {"tokenizer.json": json.dumps(whole)}


def tokenizer_files(tokenizer, block_size: int) -> dict[str, str]:
    """Name → text of the files that transformers needs for a GPT2Tokenizer or a CharTokenizer."""
    bpe = tokenizer.describe()["name"] == "gpt2"
    about: dict = {"tokenizer_class": "GPT2Tokenizer" if bpe else "PreTrainedTokenizerFast"}
    about["model_max_length"] = block_size
    if added := [name for name, i in tokenizer.special.items() if i >= TOKENS]:
        tokens = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
        about["added_tokens_decoder"] = {
            str(tokenizer.special[name]): {"content": name, "special": True, **tokens}
            for name in added
        }
    files = gpt2_files() if bpe else char_files(tokenizer)
    return files | {"tokenizer_config.json": json.dumps(about, indent=2) + "\n"}


def read_json(path: Path) -> dict:
    """Read a JSON file that holds an object; raises UserError for anything else."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: damaged, not a JSON object ({error})") from error


def differs(path: Path) -> UserError:
    """The error for a tokenizer that is not GPT-2's."""
    return UserError(f"{path}: not GPT-2's tokenizer, so its ids mean other tokens")


def is_original(text: str, name: str) -> bool:
    """Whether `text` equals OpenAI's published file of this name, byte for byte."""
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest() == GPT2_FILES[name]


def added_to_gpt2(path: Path, vocab: dict[str, int]) -> dict[str, int]:
    """A vocabulary's tokens after GPT-2's; raises UserError if it does not begin with GPT-2's."""
    ordered = sorted(vocab.items(), key=lambda entry: entry[1])
    if not is_original(json.dumps({t: i for t, i in ordered if i < TOKENS}), "encoder.json"):
        raise differs(path)
    return {token: i for token, i in ordered if i >= TOKENS}


def check_merges(path: Path, merges: list[str]) -> None:
    """Raise UserError unless these are GPT-2's 50,000 merges, in their order."""
    if not is_original("\n".join(["#version: 0.2", *merges, ""]), "vocab.bpe"):
        raise differs(path)


def read_characters(path: Path, whole: dict) -> dict:
    """The description of a character tokenizer.json, as `char_files` writes it."""
    vocab = whole["model"]["vocab"]
    characters = "".join(sorted(vocab))
    in_order = vocab == {character: i for i, character in enumerate(characters)}
    if not in_order or whole["pre_tokenizer"] != CUT or whole.get("normalizer"):
        raise UserError(f"{path}: neither GPT-2's tokenizer nor characters in sorted order")
    return {"name": "char", "characters": characters}


def read_fast(path: Path) -> dict:
    """Read tokenizer.json: the description of a CharTokenizer, or the tokens added to GPT-2's."""
    whole = read_json(path)
    try:
        if whole["model"]["type"] == "WordLevel":
            return read_characters(path, whole)
        model, cut = whole["model"], whole["pre_tokenizer"]
        plain = cut["type"] == "ByteLevel" and not cut["add_prefix_space"]
        plain = plain and cut.get("use_regex", True)
        if model["type"] != "BPE" or not plain or whole.get("normalizer"):
            raise differs(path)
        added = {token["content"]: token["id"] for token in whole.get("added_tokens") or []}
        check_merges(path, [m if isinstance(m, str) else " ".join(m) for m in model["merges"]])
        return added_to_gpt2(path, {**model["vocab"], **added})
    except (KeyError, TypeError, AttributeError) as error:
        raise differs(path) from error


def read_slow(vocab: Path, merges: Path) -> dict[str, int]:
    """Read vocab.json and merges.txt: the tokens added to GPT-2's."""
    lines = merges.read_text(encoding="utf-8", errors="replace").splitlines()
    check_merges(merges, [line for line in lines if line and not line.startswith("#version")])
    try:
        return added_to_gpt2(vocab, read_json(vocab))
    except TypeError as error:
        raise differs(vocab) from error


def read_added(path: Path) -> dict[str, int]:
    """The tokens in added_tokens.json or tokenizer_config.json, except GPT-2's own."""
    about = read_json(path)
    if about.get("add_prefix_space") is True:
        raise UserError(f"{path}: add_prefix_space, so its ids are not GPT-2's")
    if path.name == "tokenizer_config.json":
        about = about.get("added_tokens_decoder") or {}
    try:
        if path.name == "tokenizer_config.json":
            about = {token["content"]: int(i) for i, token in about.items()}
        return {token: int(i) for token, i in about.items() if token != "<|endoftext|>"}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: damaged, not tokens with ids ({error})") from error


def with_added(source: str, tokens: dict[str, int], rows: int) -> Found:
    """GPT-2's tokenizer with added tokens, as far as the weights have rows for them."""
    if rows < TOKENS:
        raise UserError(f"{source}: its tokenizer has {TOKENS:,} tokens, its wte {rows:,} rows")
    names = sorted(tokens, key=tokens.get)
    if sorted(tokens.values()) != list(range(TOKENS, TOKENS + len(names))):
        raise UserError(f"{source}: the tokens added to GPT-2's are not numbered from {TOKENS}")
    usable = names[: rows - TOKENS]
    about = "GPT-2's tokenizer"
    if usable:
        about += f" and {', '.join(usable[:3])}{' …' if len(usable) > 3 else ''}"
    if len(usable) < len(names):
        about += f" (without {names[len(usable)]}: the weights have no row for it)"
    return ({**GPT2, "added": usable} if usable else GPT2), about


def read_alphabet(folder: Path, rows: int) -> Found:
    """The characters in characters.json, which a user wrote; `rows` as in read_tokenizer."""
    path = folder / "characters.json"
    try:
        characters = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        characters = None
    if not isinstance(characters, str) or list(characters) != sorted(set(characters)):
        raise UserError(f"{path}: must be one string of sorted characters")
    return fitting(path, {"name": "char", "characters": characters}, rows)


def fitting(path: Path, description: dict, rows: int) -> Found:
    """Check that a character tokenizer has as many characters as wte has rows."""
    count = len(description["characters"])
    if count != rows:
        raise UserError(f"{path}: {count} characters, but wte has {rows} rows")
    return description, f"{count} characters"


def by_rows(rows: int) -> Found:
    """Without any file: GPT-2's tokenizer if wte has as many rows as GPT-2's, else unknown."""
    if rows in (TOKENS, PADDED):
        return GPT2, f"no tokenizer files; {rows:,} rows, so assumed to be GPT-2's tokenizer"
    return None, f"no tokenizer files, so the meaning of its {rows:,} tokens is unknown"


def read_tokenizer(source: str, rows: int) -> Found:
    """The tokenizer of a Hugging Face checkpoint whose wte has `rows` rows.

    Files are compared by contents, not by size: a tokenizer.json, vocab.json or merges.txt that is
    neither GPT-2's nor a CharTokenizer's raises UserError that names it.
    """
    if source in OPENAI:
        return GPT2, "GPT-2's tokenizer"
    if (Path(source) / "characters.json").exists():
        return read_alphabet(Path(source), rows)
    fast, vocab, merges, *odd = (
        find_file(source, name, optional=True)
        for name in ("tokenizer.json", "vocab.json", "merges.txt", *NEVER_GPT2)
    )
    tokens = read_fast(fast) if fast else {}
    if tokens.get("name") == "char":
        return fitting(fast, tokens, rows)
    if vocab and merges:
        tokens |= read_slow(vocab, merges)
    elif not fast:
        if lonely := next(filter(None, (vocab, merges, *odd)), None):
            raise differs(lonely)
        return by_rows(rows)
    for name in ("added_tokens.json", "tokenizer_config.json"):
        if path := find_file(source, name, optional=True):
            tokens |= read_added(path)
    return with_added(source, tokens, rows)
