"""Make data/hellaswag/val.jsonl: HellaSwag's validation set, 10,042 items.

    python data/hellaswag.py          the published file (12 MB), from the mirror or the internet
    python data/hellaswag.py --own    32 items of our own in the same format, no download

Without a connection it falls back to our own items and says so. They are easy and few: they show
that the code runs, and a score on them is no HellaSwag score. The programs tell by the field
source_id ("own~…"); data/hellaswag/source.json says where the items came from.

NANOGPT_MIRROR (a folder or URL) is asked first, for hellaswag/hellaswag_val.jsonl; a mirror that is
a folder may hold hellaswag_val.jsonl.gz, a text version with the evaluation harness's clean-up.
"""

import gzip
import hashlib
import json
import sys
from pathlib import Path

from nanogpt_lib.recipes.text import DATA
from nanogpt_lib.support.cli import OneLineParser, run_program
from nanogpt_lib.support.download import from_mirror, obtain
from nanogpt_lib.support.errors import UserError
from nanogpt_lib.support.files import write_atomically, write_json

URL = "https://raw.githubusercontent.com/rowanz/hellaswag/master/data/hellaswag_val.jsonl"
# SHA-256 of the published file (recorded by Hugging Face datasets) and of the text version
PUBLISHED = "0aa3b88843990f3f10a97b9575c94d7b71fb2205240ba04ae4884d9e9c992588"
CLEANED = "c8d1f2fbb2afc7ab182ae3570f634228d89c09658ffed911c6190704d472bbd7"
TITLES = {
    PUBLISHED: "HellaSwag validation set, the published file",
    CLEANED: "HellaSwag validation set, text version with the harness's clean-up",
}
OWN = DATA / "hellaswag_own.jsonl"


def published_items() -> tuple[bytes, str]:
    """The validation set and where it came from; raises UserError if it cannot be had."""
    packed = from_mirror("hellaswag/hellaswag_val.jsonl.gz")
    if isinstance(packed, Path):
        try:
            items = gzip.decompress(packed.read_bytes())
        except (OSError, EOFError) as error:
            raise UserError(f"{packed}: damaged ({error})") from error
        return items, "the mirror"
    path = DATA / "downloads" / "hellaswag_val.jsonl"
    where = obtain("hellaswag/hellaswag_val.jsonl", URL, path, PUBLISHED)
    return path.read_bytes(), where


def write_items(out: Path, items: bytes, source: str) -> None:
    """Write val.jsonl and, beside it, what it is."""
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "val.jsonl", items)
    count = items.count(b"\n")
    digest = hashlib.sha256(items).hexdigest()
    write_json(out / "source.json", {"source": source, "items": count, "sha256": digest})
    print(f"{count:,} items in {out / 'val.jsonl'}: {source}")


def main() -> None:
    """Read the command line, get the items, write them."""
    parser = OneLineParser(prog="hellaswag.py", description=__doc__.split("\n")[0])
    parser.add_argument("--own", action="store_true", help="items of our own, no download")
    parser.add_argument("--out", type=Path, default=DATA / "hellaswag", help="(data/hellaswag)")
    args = parser.parse_args()
    note = args.out / "source.json"
    if note.exists() and (args.out / "val.jsonl").exists():
        have = json.loads(note.read_text(encoding="utf-8"))
        digest = hashlib.sha256((args.out / "val.jsonl").read_bytes()).hexdigest()
        if digest == have["sha256"] and (digest in TITLES or args.own):
            print(f"{args.out / 'val.jsonl'}: already there: {have['source']}")
            return
    if not args.own:
        try:
            items, where = published_items()
            digest = hashlib.sha256(items).hexdigest()
            if digest not in TITLES:
                raise UserError(f"HellaSwag from {where}: damaged or another version")
            write_items(args.out, items, TITLES[digest])
            return
        except UserError as error:
            print(f"hellaswag.py: {error}", file=sys.stderr)
            print("HellaSwag cannot be had here; taking our own items, which are NOT HellaSwag")
    write_items(args.out, OWN.read_bytes(), "items of our own, NOT HellaSwag")


if __name__ == "__main__":
    run_program("hellaswag.py", main, goes_on="the same command goes on", outlives_terminal=True)
