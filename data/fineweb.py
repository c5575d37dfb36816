"""Make the dataset fineweb: FineWeb-Edu's 10-billion-token sample, as in the lecture.

    python data/fineweb.py                                    sample-10BT  → data/fineweb
    python data/fineweb.py --pretokenized                     the same tokens, ready-made: 20 GB
    python data/fineweb.py --pretokenized --files 10          1 billion of them
    python data/fineweb.py --sample 100BT --out DIR           10BT, 100BT, 350BT or full
    python data/fineweb.py --dataset fineweb --out DIR        FineWeb, unfiltered for education
    python data/fineweb.py --files 1                          only the first parquet file
    python data/fineweb.py --local DIR                        parquet files you already have
    python data/fineweb.py --verify                           is data/fineweb still undamaged?

sample-10BT: 14 files, 28.5 GB, 9,672,101 documents. One file at a time is downloaded (2.2 GB),
tokenized and removed, so about 23 GB of disk are enough. Kill it whenever you like: the same
command goes on. If NANOGPT_MIRROR is a folder with fineweb-edu/sample/10BT (or, for practice,
fineweb_edu_standin/sample/10BT), the files are taken from there.

The revisions are pinned: 87f0914 of fineweb-edu and 9bb295d (tag v1.4.0) of fineweb, as many
public projects pin them; --revision takes another tag, branch or commit.
"""

from pathlib import Path

from nanogpt_lib.recipes.parquet import make_shards, validation_tokens
from nanogpt_lib.recipes.pretokenized import PRETOKENIZED, take_shards, token_source
from nanogpt_lib.recipes.sources import (
    Source,
    hub_source,
    local_source,
    parse,
    recipe_parser,
    verify,
)
from nanogpt_lib.support.cli import OneLineParser, run_program
from nanogpt_lib.support.download import from_mirror

REVISIONS = {
    "fineweb-edu": "87f09149ef4734204d70ed1d046ddc9ca3f2b8f9",
    "fineweb": "9bb295ddab0e05d785b879661af7260fed5140fc",
}
STAND_IN = "stand-in for FineWeb-Edu (open textbooks and documentation; NOT FineWeb-Edu)"


def choose_source(args) -> tuple[str, Source]:
    """The name of the dataset and its files: a given folder, the mirror, or the hub."""
    name, folder = f"{args.dataset}-{args.sample}", f"sample/{args.sample}"
    folder = "data" if args.sample == "full" else folder
    if args.local:
        given = args.local.resolve().name
        return given, local_source(args.local, f"parquet files of {given}", args.files)
    here = from_mirror(f"{args.dataset}/{folder}")
    if isinstance(here, Path):
        return name, local_source(here, f"{args.dataset} {folder} from the mirror", args.files)
    here = from_mirror(f"fineweb_edu_standin/{folder}")
    if isinstance(here, Path) and args.dataset == "fineweb-edu":
        return "fineweb-edu-stand-in", local_source(here, STAND_IN, args.files)
    repo, revision = f"HuggingFaceFW/{args.dataset}", args.revision or REVISIONS[args.dataset]
    downloads = args.out / "parquet"
    return name, hub_source(repo, folder, revision, downloads, keep=args.keep, files=args.files)


def fineweb_parser() -> OneLineParser:
    """The flags that this recipe and fineweb_datatrove.py share."""
    parser = recipe_parser("fineweb", __doc__.split("\n")[0])
    parser.add_argument("--dataset", choices=list(REVISIONS), default="fineweb-edu")
    parser.add_argument("--sample", choices=["10BT", "100BT", "350BT", "full"], default="10BT")
    return parser


def main() -> None:
    """Make the shards, take published ones, or check them."""
    parser = fineweb_parser()
    parser.add_argument("--pretokenized", action="store_true", help="take published GPT-2 tokens")
    args = parse(parser)
    if args.pretokenized and (args.local or (args.dataset, args.sample) not in PRETOKENIZED):
        parser.error(f"--pretokenized is for the hub's {', '.join(map('-'.join, PRETOKENIZED))}")
    if args.verify:
        return verify(args.out)
    if args.pretokenized:
        source = token_source(args.dataset, args.sample, args.out, args.revision, args.files)
        return take_shards(source, args.out, f"{args.dataset}-{args.sample}")
    name, source = choose_source(args)
    sizes = dict(shard_tokens=args.shard_tokens)
    sizes["val_tokens"] = validation_tokens(source, args.shard_tokens)
    make_shards(source, args.out, name, keep=args.keep, **sizes)
    return None


if __name__ == "__main__":
    run_program("fineweb.py", main, goes_on="the same command goes on", outlives_terminal=True)
