"""Dataset folders made by other programs: nanoGPT, llm.c, the lecture's script."""

import json
import re
from pathlib import Path

from nanogpt_lib.support.errors import UserError
from nanogpt_lib.support.shard_files import open_shard

FOREIGN = re.compile(r"(?:(.+)_)?(train|val)(?:_\d+)?\.(bin|npy)")  # dataset, split, layout


def foreign_tokenizer(folder: Path) -> tuple[dict, int]:
    """Tokenizer and vocabulary size of a folder without meta.json: characters.json, else GPT-2's.

    nanoGPT keeps its characters in a pickle, which can run code when opened; we do not open it.
    """
    alphabet = folder / "characters.json"
    if not alphabet.exists() and (folder / "meta.pkl").exists():
        code = "json.dump(''.join(pickle.load(open('meta.pkl','rb'))['stoi']), open(F,'w'))"
        raise UserError(
            f"{folder}: its characters are listed only in meta.pkl, and pickles are not opened "
            f'here. If you made it, run in that folder: python -c "import json, pickle; '
            f'{code.replace("F", repr(alphabet.name))}"'
        )
    if not alphabet.exists():
        return {"name": "gpt2"}, 50257
    try:
        characters = json.loads(alphabet.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        characters = None
    if not isinstance(characters, str) or list(characters) != sorted(set(characters)):
        raise UserError(f"{alphabet}: must be one string of sorted characters")
    return {"name": "char", "characters": characters}, len(characters)


def foreign_meta(folder: Path) -> dict | None:
    """What meta.json would contain for shards of nanoGPT, llm.c or the lecture; None without any.

    A .npy needs a prefix, as in edufineweb_train_000001.npy: without one it is ours and unfinished.
    """
    splits, prefixes = {"train": [], "val": []}, set()
    for path in sorted(folder.iterdir()):
        match = FOREIGN.fullmatch(path.name)
        if match and (match[3] == "bin" or match[1]):
            splits[match[2]].append({"file": path.name, "tokens": open_shard(path).size})
            prefixes.add(match[1] or "")
    if len(prefixes) > 1:
        raise UserError(f"{folder}: shards of several datasets {sorted(prefixes)}; keep one")
    if not prefixes:
        return None
    tokenizer, vocab_size = foreign_tokenizer(folder)
    source = f"shards of another program, tokenizer assumed to be {tokenizer['name']}"
    meta = {"format": 1, "dtype": "uint16", "name": folder.resolve().name, "source": source}
    return {**meta, "tokenizer": tokenizer, "vocab_size": vocab_size, "splits": splits}
