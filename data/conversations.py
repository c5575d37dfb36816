"""Make a dataset of conversations, for fine-tuning a model that answers.

    python data/conversations.py                           Dolly, 15,000 instructions → data/dolly
    python data/conversations.py my.jsonl --out data/my    your own, for GPT-2
    python data/conversations.py my.jsonl --out data/my --tokenizer runs/my-model
    python data/conversations.py --verify --out data/my    is it still undamaged?

A line of the file is a JSON object, with "messages", a list of {"role": "user" or "assistant",
"content": text} in turn, or with "instruction", "response" and perhaps "context", as Dolly has
(Databricks, CC BY-SA 3.0; 13 MB; NANOGPT_MIRROR is tried first, for
dolly/databricks-dolly-15k.jsonl).
Role tokens are added to the tokenizer; every twentieth conversation is for validation.
"""

if __name__ == "__main__" and not __package__:  # run by path: import from the repository
    import sys
    from pathlib import Path

    sys.path[: not sys.flags.safe_path] = [str(Path(__file__).resolve().parents[1])]

import argparse
import json
from pathlib import Path

import numpy as np
from tqdm import tqdm

from nanogpt_lib.conversations import encode_conversation, with_roles
from nanogpt_lib.recipes.sources import refuse_other_dataset, verify
from nanogpt_lib.recipes.text import for_text, known_tokenizer, make_meta, write_splits
from nanogpt_lib.support.cli import OneLineParser, run_recipe
from nanogpt_lib.support.download import obtain
from nanogpt_lib.support.errors import UserError
from nanogpt_lib.support.files import make_folder
from nanogpt_lib.support.places import DATA

DOLLY = "databricks-dolly-15k"
URL = f"https://huggingface.co/datasets/databricks/{DOLLY}/resolve/main/{DOLLY}.jsonl"


def messages_of(entry: dict) -> list[dict]:
    """The messages of a line, whichever of the two forms it has."""
    if "messages" in entry:
        return [
            {name: str(message[name]) for name in ("role", "content")}
            for message in entry["messages"]
        ]
    context = entry.get("context") or ""
    question = f"{entry['instruction']}\n\n{context}" if context else entry["instruction"]
    return [
        {"role": "user", "content": question},
        {"role": "assistant", "content": str(entry["response"])},
    ]


def read_conversations(path: Path) -> list[list[dict]]:
    """The messages of every line of a file; raises UserError that names a bad line."""
    found = []
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise UserError(f"{path}: not UTF-8 text") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            found.append(messages_of(json.loads(line)))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            what = f"no {error}" if isinstance(error, KeyError) else str(error)
            raise UserError(f"{path}, line {number}: no conversation ({what})") from error
        if len(found[-1]) % 2 or not found[-1]:
            raise UserError(f"{path}, line {number}: a conversation must end with an answer")
    if len(found) < 20:
        raise UserError(f"{path}: {len(found)} conversations are too few; at least 20 are needed")
    return found


def main() -> None:
    """Make the dataset, or check it."""
    parser = OneLineParser(prog="conversations.py", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("file", nargs="?", type=Path, help="JSON lines (default: Dolly, downloaded)")
    which = "gpt2 (default), or the model to fine-tune"
    add("--tokenizer", default="gpt2", metavar="gpt2|MODEL", help=which)
    add("--out", type=Path, help="folder for the dataset (default: data/dolly)")
    add("--verify", action="store_true", help="check the dataset in OUT")
    args = parser.parse_args()
    if args.tokenizer == "char" or (args.file and not args.out):
        parser.error("--tokenizer is gpt2 or a model; with a file of yours give --out, too")
    out = args.out or DATA / "dolly"
    if args.verify:
        return verify(out)
    known, name = known_tokenizer(args.tokenizer), "dolly"
    source = "Dolly 15k, Databricks, CC BY-SA 3.0"
    if args.file:
        name, source = args.file.stem, f"conversations in {args.file.name}"
    make_folder(out)
    refuse_other_dataset(out, name, known.describe()["name"])
    path = args.file or DATA / "downloads" / f"{DOLLY}.jsonl"
    if not args.file:
        print("Dolly:", obtain(f"dolly/{DOLLY}.jsonl", URL, path))
    conversations = read_conversations(path)
    characters = {c for talk in conversations for message in talk for c in message["content"]}
    tokenizer, talks = with_roles(for_text(known, "".join(characters))), []
    for number, talk in enumerate(tqdm(conversations, disable=None, leave=False), 1):
        try:
            talks.append(encode_conversation(tokenizer, talk))
        except UserError as error:
            raise UserError(f"{path}, conversation {number}: {error}") from error
    train = np.concatenate([talk for number, talk in enumerate(talks) if number % 20])
    val = np.concatenate(talks[::20])
    write_splits(out, make_meta(name, source, tokenizer), train, val)
    print(
        f"{len(talks):,} conversations → {train.size:,} training and {val.size:,} "
        f"validation tokens, the longest has {max(map(len, talks)):,}, in {out}"
    )
    return None


if __name__ == "__main__":
    run_recipe("conversations.py", main)
