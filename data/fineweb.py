"""Make the dataset fineweb: FineWeb-Edu's 10-billion-token sample, as in the lecture.

    python data/fineweb.py                                    sample-10BT  → data/fineweb
    python data/fineweb.py --pretokenized                     the same, published as tokens: 20 GB
    python data/fineweb.py --pretokenized --files 10          1 billion of them
    python data/fineweb.py --sample 100BT --out DIR           10BT, 100BT, 350BT or full
    python data/fineweb.py --dataset fineweb --out DIR        FineWeb, unfiltered for education
    python data/fineweb.py --files 1                          only the first parquet file
    python data/fineweb.py --local DIR [--column NAME]        parquet files you already have
    python data/fineweb.py --verify                           is data/fineweb still undamaged?

sample-10BT: 14 files, 28.5 GB, 9,672,101 documents. One file at a time is downloaded (2.2 GB),
tokenized and removed, so about 23 GB of disk space is enough. It can be killed at any time: the
same command continues. If NANOGPT_MIRROR is a folder with fineweb-edu/sample/10BT (or, for
practice, fineweb_edu_standin/sample/10BT), the files are read from there, as meta.json and the run
report.

The revisions are pinned: 87f0914 of fineweb-edu and 9bb295d (tag v1.4.0) of fineweb, as many
public projects pin them; --revision selects another tag, branch or commit.
"""

if __name__ == "__main__" and not __package__:  # run by path: import from the repository
    import sys
    from pathlib import Path

    sys.path[: not sys.flags.safe_path] = [str(Path(__file__).resolve().parents[1])]

from nanogpt_lib.recipes.fineweb import choose_source, fineweb_parser
from nanogpt_lib.recipes.parquet import make_shards, validation_tokens
from nanogpt_lib.recipes.pretokenized import PRETOKENIZED, download_shards, token_source
from nanogpt_lib.recipes.sources import parse, verify
from nanogpt_lib.support.cli import run_recipe


def main() -> None:
    """Make the shards, download published ones, or check them."""
    parser = fineweb_parser("fineweb.py", __doc__)
    what = "download published GPT-2 tokens"
    parser.add_argument("--pretokenized", action="store_true", help=what)
    args = parse(parser)
    if args.pretokenized and (args.local or (args.dataset, args.sample) not in PRETOKENIZED):
        published = ", ".join(map("-".join, PRETOKENIZED))
        parser.error(f"--pretokenized is available only from the hub, for {published}")
    if args.verify:
        verify(args.out)
    elif args.pretokenized:
        source = token_source(args.dataset, args.sample, args.out, args.revision, args.files)
        download_shards(source, args.out, f"{args.dataset}-{args.sample}")
    else:
        name, source = choose_source(args)
        sizes = dict(shard_tokens=args.shard_tokens)
        sizes["val_tokens"] = validation_tokens(source, args.shard_tokens)
        make_shards(source, args.out, name, keep=args.keep, **sizes)


if __name__ == "__main__":
    run_recipe("fineweb.py", main)
