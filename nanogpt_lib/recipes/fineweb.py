"""FineWeb's files, for data/fineweb.py and data/fineweb_datatrove.py."""

from argparse import Namespace
from pathlib import Path

from nanogpt_lib.recipes.sources import Source, hub_source, local_source, recipe_parser
from nanogpt_lib.support.cli import OneLineParser
from nanogpt_lib.support.download import from_mirror

REVISIONS = {
    "fineweb-edu": "87f09149ef4734204d70ed1d046ddc9ca3f2b8f9",
    "fineweb": "9bb295ddab0e05d785b879661af7260fed5140fc",
}
STAND_IN = "stand-in for FineWeb-Edu (open textbooks and documentation; NOT FineWeb-Edu)"


def fineweb_parser(prog: str, description: str) -> OneLineParser:
    """The options that both recipes share."""
    parser = recipe_parser("fineweb", description, prog=prog)
    parser.add_argument("--dataset", choices=list(REVISIONS), default="fineweb-edu")
    parser.add_argument("--sample", choices=["10BT", "100BT", "350BT", "full"], default="10BT")
    return parser


def choose_source(args: Namespace) -> tuple[str, Source]:
    """The dataset's name and files: from --local, the mirror, or the hub.

    Name and title describe the files actually used, not those requested: they go into meta.json,
    and a run prints them.
    """
    name, folder = f"{args.dataset}-{args.sample}", f"sample/{args.sample}"
    folder = "data" if args.sample == "full" else folder
    some = dict(files=args.files, column=args.column)
    if args.local:
        given = args.local.resolve().name
        return given, local_source(args.local, f"parquet files of {given}", **some)
    here = from_mirror(f"{args.dataset}/{folder}")
    if isinstance(here, Path):
        return name, local_source(here, f"{args.dataset} {folder} from the mirror", **some)
    here = from_mirror(f"fineweb_edu_standin/{folder}")
    if isinstance(here, Path) and args.dataset == "fineweb-edu":
        return "fineweb-edu-stand-in", local_source(here, STAND_IN, **some)
    repo, revision = f"HuggingFaceFW/{args.dataset}", args.revision or REVISIONS[args.dataset]
    downloads = args.out / "parquet"
    return name, hub_source(repo, folder, revision, downloads, keep=args.keep, **some)
