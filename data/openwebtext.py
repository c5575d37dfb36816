"""Make the dataset openwebtext: the open copy of GPT-2's WebText, as nanoGPT uses it.

    python data/openwebtext.py                 → data/openwebtext
    python data/openwebtext.py --local DIR     parquet files you already have

80 parquet files of about 0.3 GB, 8,013,769 documents, about 9 billion GPT-2 tokens, 18 GB. A file
at a time is downloaded, tokenized and removed; killed, the same command goes on. nanoGPT draws
0.05 % of the documents for validation with a random generator over the whole dataset; here a
document's place (file and row) decides, so a stream can be split too, the same way every time.

The revision is pinned (b4325f0, as public projects pin it); --revision takes another.
"""

import sys
import zlib
from pathlib import Path

from parquet import Source, hub_source, local_source, make_shards
from text import DATA, from_mirror, one_line

from nanogpt_lib.config import OneLineParser
from nanogpt_lib.shards import SHARD_TOKENS

REPO = "Skylion007/openwebtext"
REVISION = "b4325f019c648b1641a1784748667e8b74e5e064"


def one_in(source: Source) -> int:
    """One document in 2,000 is held out (0.05 %); of less than 4 GB more, at most one in ten."""
    return min(2000, max(10, source.size // 2_000_000))


def is_held_out(position: tuple[int, int, int], every: int) -> bool:
    """Whether a document is for validation: one in `every`, and always the very first."""
    file, row, _ = position
    return zlib.crc32(f"{file} {row}".encode()) % every == 0 or (file, row) == (0, 0)


def main() -> None:
    """Read the command line and make the shards."""
    parser = OneLineParser(prog="openwebtext.py", description=__doc__.split("\n")[0])
    parser.add_argument("--revision", default=REVISION, help="tag, branch or commit of the hub")
    parser.add_argument("--local", type=Path, metavar="DIR", help="folder with .parquet files")
    parser.add_argument("--files", type=int, metavar="N", help="only the first N parquet files")
    parser.add_argument("--keep", action="store_true", help="keep the parquet files in OUT/parquet")
    parser.add_argument("--out", type=Path, default=DATA / "openwebtext", help="(data/openwebtext)")
    parser.add_argument("--shard-tokens", type=int, default=SHARD_TOKENS, help="tokens per shard")
    args = parser.parse_args()
    if args.shard_tokens < 1 or (args.files is not None and args.files < 1):
        parser.error("--shard-tokens and --files must be at least 1")
    here = args.local or from_mirror("openwebtext")
    if isinstance(here, Path):
        source = local_source(
            here, f"OpenWebText, parquet files of {here.resolve().name}", args.files
        )
    else:
        where = (args.revision, args.out / "parquet", args.keep, args.files)
        source = hub_source(REPO, "plain_text", *where)
    every = one_in(source)
    make_shards(
        source,
        args.out,
        "openwebtext",
        val_tokens=0,
        shard_tokens=args.shard_tokens,
        keep=args.keep,
        held_out=lambda position: is_held_out(position, every),
    )


if __name__ == "__main__":
    sys.exit(one_line("openwebtext.py", main))
