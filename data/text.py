"""Make a dataset of your own text, and train on it.

    python data/text.py my.txt                          characters → data/my
    python data/text.py notes/ book.md --out data/all   files and folders
    python data/text.py my.txt --tokenizer gpt2         GPT-2 BPE  → data/my_gpt2
    python data/text.py posts.jsonl --column body       a field of .jsonl, a column of .parquet
    python data/text.py --verify --out data/my          is it still undamaged?

A .txt or .md file is one document; so is each line of .jsonl and each row of .parquet (its field or
column `text`, or the only one with strings). Text must be UTF-8, in any language. Folders are read
recursively; hidden files and other types are skipped. Documents are separated by a blank line or,
with GPT-2's tokenizer, by <|endoftext|>; the last tenth of the text is for validation.

After a kill the same command continues. The last line printed is a command that trains on the
dataset.
"""

if __name__ == "__main__" and not __package__:  # run by path: import from the repository
    import sys
    from pathlib import Path

    sys.path[: not sys.flags.safe_path] = [str(Path(__file__).resolve().parents[1])]

import os
import shlex
import sys
from pathlib import Path

from nanogpt_lib.recipes.own_text import make_text_dataset
from nanogpt_lib.recipes.sources import counted, verify
from nanogpt_lib.recipes.text import default_out, text_parser
from nanogpt_lib.shards import SHARD_TOKENS
from nanogpt_lib.support.cli import run_recipe
from nanogpt_lib.support.places import ROOT


def shown(path: Path) -> str:
    """A path, quoted for a command line: relative if it is inside the working directory."""
    path = path.resolve()
    below = path.is_relative_to(Path.cwd())
    return shlex.quote(os.path.relpath(path) if below else str(path))


def main() -> None:
    """Make the dataset, or check it."""
    parser = text_parser("text.py", __doc__)
    what = dict(nargs="*", default=(), type=Path, metavar="FILE|FOLDER")
    parser.add_argument("text", help="what to read", **what)
    parser.add_argument("--column", help="text field or column (default: text, or the only one)")
    parser.add_argument("--shard-tokens", type=int, default=SHARD_TOKENS, help="tokens per shard")
    args = parser.parse_args()
    if not args.text and not (args.verify and args.out):
        parser.print_usage(sys.stderr)
        parser.exit(2)
    if args.shard_tokens < 2:
        parser.error("--shard-tokens must be at least 2")
    name = args.text[0].resolve().stem if args.text else ""
    out = args.out or default_out(name, args.tokenizer)
    if args.verify:
        return verify(out)
    meta = make_text_dataset(args.text, out, name, args.tokenizer, args.column, args.shard_tokens)
    train, val = (sum(s["tokens"] for s in meta["splits"][split]) for split in ("train", "val"))
    print(
        f"{counted(meta['documents'], 'document')}, {meta['characters']:,} characters → "
        f"{train:,} training and {val:,} validation tokens, vocabulary {meta['vocab_size']:,}, "
        f"in {out}"
    )
    program = shown(ROOT / "nanogpt_lib" / "train.py")
    run = shlex.quote(f"runs/{out.name}")
    print(f"train on it: python {program} quickstart --data {shown(out)} --out {run}")
    return None


if __name__ == "__main__":
    run_recipe("text.py", main)
