"""Make the dataset fineweb: FineWeb-Edu's 10-billion-token sample, as in the lecture.

    python data/fineweb.py                                    sample-10BT  → data/fineweb
    python data/fineweb.py --sample 100BT --out DIR           a larger sample
    python data/fineweb.py --dataset fineweb --out DIR        FineWeb, unfiltered for education
    python data/fineweb.py --files 1                          only the first parquet file
    python data/fineweb.py --local DIR                        parquet files you already have

sample-10BT: 14 files, 28.5 GB, 9,672,101 documents. One file at a time is downloaded (2.2 GB),
tokenized and removed, so about 23 GB of disk are enough. Kill it whenever you like: the same
command goes on. If NANOGPT_MIRROR is a folder with fineweb-edu/sample/10BT (or, for practice,
fineweb_edu_standin/sample/10BT), the files are taken from there.

The revisions are pinned: 87f0914 of fineweb-edu and 9bb295d (tag v1.4.0) of fineweb, as many
public projects pin them; --revision takes another tag, branch or commit.
"""

import sys
from pathlib import Path

from parquet import Source, hub_source, local_source, make_shards, validation_tokens
from text import DATA, from_mirror, one_line

from nanogpt_lib.config import OneLineParser
from nanogpt_lib.shards import SHARD_TOKENS

REVISIONS = {
    "fineweb-edu": "87f09149ef4734204d70ed1d046ddc9ca3f2b8f9",
    "fineweb": "9bb295ddab0e05d785b879661af7260fed5140fc",
}
STAND_IN = "stand-in for FineWeb-Edu (open textbooks and documentation; NOT FineWeb-Edu)"


def choose_source(args) -> tuple[str, Source]:
    """The name of the dataset and its files: a given folder, the mirror, or the hub."""
    name, folder = f"{args.dataset}-{args.sample}", f"sample/{args.sample}"
    if args.local:
        return name, local_source(
            args.local, f"parquet files of {args.local.resolve().name}", args.files
        )
    here = from_mirror(f"{args.dataset}/{folder}")
    if isinstance(here, Path):
        return name, local_source(here, f"{args.dataset} {folder} from the mirror", args.files)
    here = from_mirror(f"fineweb_edu_standin/{folder}")
    if isinstance(here, Path) and args.dataset == "fineweb-edu":
        return "fineweb-edu-stand-in", local_source(here, STAND_IN, args.files)
    return name, hub_source(
        f"HuggingFaceFW/{args.dataset}",
        folder,
        args.revision or REVISIONS[args.dataset],
        args.out / "parquet",
        args.keep,
        args.files,
    )


def main() -> None:
    """Read the command line and make the shards."""
    parser = OneLineParser(prog="fineweb.py", description=__doc__.split("\n")[0])
    parser.add_argument("--dataset", choices=list(REVISIONS), default="fineweb-edu")
    parser.add_argument("--sample", choices=["10BT", "100BT", "350BT"], default="10BT")
    parser.add_argument("--revision", help="tag, branch or commit (default: the pinned commit)")
    parser.add_argument("--local", type=Path, metavar="DIR", help="folder with .parquet files")
    parser.add_argument("--files", type=int, metavar="N", help="only the first N parquet files")
    parser.add_argument("--keep", action="store_true", help="keep the parquet files in OUT/parquet")
    parser.add_argument("--out", type=Path, default=DATA / "fineweb", help="(data/fineweb)")
    parser.add_argument("--shard-tokens", type=int, default=SHARD_TOKENS, help="tokens per shard")
    args = parser.parse_args()
    if args.shard_tokens < 1 or (args.files is not None and args.files < 1):
        parser.error("--shard-tokens and --files must be at least 1")
    name, source = choose_source(args)
    make_shards(
        source,
        args.out,
        name,
        val_tokens=validation_tokens(source, args.shard_tokens),
        shard_tokens=args.shard_tokens,
        keep=args.keep,
    )


if __name__ == "__main__":
    sys.exit(one_line("fineweb.py", main))
