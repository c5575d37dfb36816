"""Make the dataset openwebtext: the open copy of GPT-2's WebText, split as nanoGPT splits it.

    python data/openwebtext.py                 → data/openwebtext
    python data/openwebtext.py --local DIR     parquet files you already have [--column NAME]
    python data/openwebtext.py --verify        is data/openwebtext still undamaged?

80 parquet files of about 0.3 GB, 8,013,769 documents, about 9 billion GPT-2 tokens, 18 GB. One file
at a time is downloaded, tokenized and removed. After a kill the same command continues.

Validation is the 4,007 documents that nanoGPT's split draws (0.05 %, seed 2357), so the counts
should be those in nanoGPT's prepare.py: 9,035,582,198 training and 4,434,897 validation tokens. The
last line says whether they are. Two things differ: eot comes before each document instead of after
it, and documents keep the order of the files instead of being shuffled.

The revision is pinned (b4325f0, as public projects pin it); --revision selects another.
"""

if __name__ == "__main__" and not __package__:  # run by path: import from the repository
    import sys
    from pathlib import Path

    sys.path[: not sys.flags.safe_path] = [str(Path(__file__).resolve().parents[1])]

import math
from argparse import Namespace
from pathlib import Path

import numpy as np

from nanogpt_lib.recipes.parquet import count_rows, make_shards
from nanogpt_lib.recipes.sources import (
    Source,
    hub_source,
    local_source,
    parse,
    recipe_parser,
    verify,
)
from nanogpt_lib.support.cli import run_recipe
from nanogpt_lib.support.download import from_mirror

REPO = "Skylion007/openwebtext"
REVISION = "b4325f019c648b1641a1784748667e8b74e5e064"
DOCUMENTS = 8_013_769
NANOGPT = {"train": 9_035_582_198, "val": 4_434_897}  # tokens, from its data/openwebtext/prepare.py


def choose_source(args: Namespace) -> tuple[str, Source]:
    """The dataset's name and files: from --local, the mirror, or the hub."""
    if args.local:
        given = args.local.resolve().name
        return given, local_source(args.local, f"parquet files of {given}", args.files, args.column)
    here = from_mirror("openwebtext")
    if isinstance(here, Path):
        title = "OpenWebText from the mirror"
        return "openwebtext", local_source(here, title, args.files, args.column)
    where = (args.revision or REVISION, args.out / "parquet")
    some = dict(keep=args.keep, files=args.files, column=args.column)
    return "openwebtext", hub_source(REPO, "plain_text", *where, **some)


def held_out(source: Source) -> set[int]:
    """Rows of the validation documents, numbered over all files, drawn as nanoGPT does.

    0.05 % of the rows and at least one; with less than 4 GB a larger share, up to one in ten.
    nanoGPT uses train_test_split of datasets: the first rows of a seeded permutation.
    """
    rows = DOCUMENTS
    if not source.remote:
        rows = sum(count_rows(source.fetch(name), name) for name, _ in source.files)
    share = 1 / min(2000, max(10, source.size // 2_000_000))
    order = np.random.default_rng(2357).permutation(rows)
    return set(order[: math.ceil(share * rows)].tolist())


def main() -> None:
    """Make the shards, or check them."""
    args = parse(recipe_parser("openwebtext", __doc__))
    if args.verify:
        return verify(args.out)
    name, source = choose_source(args)
    rows = held_out(source)
    options = dict(val_tokens=0, shard_tokens=args.shard_tokens, keep=args.keep)
    made = make_shards(source, args.out, name, held_out=lambda place: place[2] in rows, **options)
    if made and made["documents"] == DOCUMENTS:
        tokens = {split: sum(s["tokens"] for s in made["splits"][split]) for split in NANOGPT}
        print("the same counts as nanoGPT's" if tokens == NANOGPT else f"nanoGPT has {NANOGPT}")
    return None


if __name__ == "__main__":
    run_recipe("openwebtext.py", main)
